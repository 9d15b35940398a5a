"""`backburner verify`: stored journals against the invariants."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from scheduler_service.cli.address import find_database
from scheduler_service.cli.database import reading
from scheduler_service.cli.errors import UsageProblem
from scheduler_service.cli.exit_codes import ExitCode
from scheduler_service.cli.output import console, details, put

if TYPE_CHECKING:
    from scheduler_service.journal.verify import Verified, Violation


@click.command("verify")
@click.argument("runs", metavar="[RUN]...", nargs=-1, type=click.UUID)
@click.option("--database-url", envvar="DATABASE_URL", metavar="URL",
              help="[DATABASE_URL; default: that of the `backburner dev` here]")  # fmt: skip
@click.option("--rules", "list_rules", is_flag=True, help="Only list what is checked.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines: the violations, then the counts.")
def verify_command(runs: Sequence[object], database_url: str | None, list_rules: bool, as_json: bool) -> int:
    """Check stored journals against the invariants: all of the database, or the runs with these ids.

    Reads only, one run at a time from a snapshot of its own, so a live system may go on. Exit code 1 when a rule is
    broken: a bug of Backburner, or somebody wrote to its tables.

    \b
    Examples:
      backburner verify
      backburner verify --json > violations.jsonl
      backburner verify --rules
    """
    if list_rules:
        return _list_rules()
    dsn = database_url or find_database()
    if dsn is None:
        raise UsageProblem("there is no database to check", "give --database-url, or set DATABASE_URL")
    report = _Report(as_json=as_json)
    reading(_verify(dsn, [str(run_id) for run_id in runs] or None, report))
    return report.finish(expected=len(set(runs)) or None)


async def _verify(dsn: str, run_ids: Sequence[str] | None, report: _Report) -> None:
    from scheduler_service.journal.verify import verify

    async with aclosing(verify(dsn, run_ids)) as checked:
        async for run in checked:
            report.add(run)


class _Report:
    """Says violations as they are found, how far the check is on a terminal, and the counts at the end."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._status = console(stderr=True)
        self._runs = self._rows = 0
        self._broken: Counter[str] = Counter()

    def add(self, run: Verified) -> None:
        """One run that was checked."""
        self._runs += 1
        self._rows += run.rows
        for violation in run.violations:
            self._broken[violation.rule] += 1
            click.echo(json.dumps(violation._asdict()) if self._as_json else _line(violation))
        if self._status.is_terminal and self._runs % 100 == 0:
            self._status.print(f"{self._runs} runs, {self._rows} rows", end="\r")

    def finish(self, expected: int | None) -> int:
        """The counts; the exit code."""
        counts = {"runs": self._runs, "rows": self._rows, "violations": self._broken.total()}
        if self._as_json:
            click.echo(json.dumps({**counts, "by_rule": dict(self._broken)}))
        else:
            put(console(), f"{self._runs} runs, {self._rows} rows, {self._broken.total()} violations")
        if expected is not None and self._runs < expected:
            raise UsageProblem(f"{expected - self._runs} of the runs are not in this database", "see `backburner ps`")
        return ExitCode.FAILED if self._broken else ExitCode.OK


def _line(violation: Violation) -> str:
    where = f"{violation.run_id}{f'/{violation.key}' if violation.key else ''}"
    return f"{violation.rule}: {where}{f' at {violation.seq}' if violation.seq else ''}: {violation.message}"


def _list_rules() -> int:
    from scheduler_service.journal.verify import RULES

    put(console(), details([(name, f"{rule.says} ({rule.invariant})") for name, rule in RULES.items()]))
    return ExitCode.OK
