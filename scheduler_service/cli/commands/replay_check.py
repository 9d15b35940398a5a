"""`backburner replay-check`: would today's code go on with the runs that there are?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from scheduler_service.cli.address import find_database
from scheduler_service.cli.errors import CliError, UsageProblem
from scheduler_service.cli.exit_codes import ExitCode
from scheduler_service.cli.output import console, put
from scheduler_service.cli.replaying import Source

#: Any two will do: code that hangs on the order of a set of text falls apart under one of them, sooner or later.
SEEDS: Final = ("0", "1")
_BAD: Final = ("DIVERGED", "BROKEN")
_HASH_ORDER: Final = (
    "only under PYTHONHASHSEED={seed}: the code hangs on the order of a set or of hashes; use sorted(...)"
)


@click.command("replay-check")
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(exists=True, dir_okay=False))
@click.option("--run", "runs", multiple=True, type=click.UUID, metavar="RUN", help="A run of the database. Repeatable.")
@click.option("--process", "names", multiple=True, metavar="NAME", help="All runs of a process. Repeatable.")
@click.option("--live", is_flag=True, help="Runs that have not ended: of --process, else of every process loaded.")
@click.option("--process-module", "modules", multiple=True, metavar="MODULE", envvar="BACKBURNER_PROCESS_MODULES",
              help="Python module that defines processes. Repeatable. [BACKBURNER_PROCESS_MODULES]")  # fmt: skip
@click.option("--database-url", envvar="DATABASE_URL", metavar="URL",
              help="[DATABASE_URL; default: that of the `backburner dev` here]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="JSON lines: what was not fine, then the counts.")
def replay_check_command(
    *,
    files: tuple[str, ...],
    runs: tuple[object, ...],
    names: tuple[str, ...],
    live: bool,
    modules: tuple[str, ...],
    database_url: str | None,
    as_json: bool,
) -> int:
    """Replay stored journals with the code that is here, and say what would diverge.

    Each journal is replayed twice, under two hash seeds, by children of this command. It reads only, one journal in
    memory at a time, and runs no effect. As a gate before a deploy: --live with the new code.

    Exit code 0: every run would go on. 1: the code would park a run. 2: something could not be checked.

    \b
    Examples:
      backburner replay-check --process-module myapp.processes --live
      backburner journal RUN --json > run.jsonl
      backburner replay-check --process-module myapp.processes run.jsonl
    """
    if not modules:
        raise UsageProblem("no code to replay with", "give --process-module MODULE")
    if bool(files) + bool(runs) + bool(names or live) != 1:
        raise UsageProblem("give FILEs, --run, or --process and --live", "`backburner replay-check --help`")
    dsn = "" if files else database_url or find_database()
    if dsn is None:
        raise UsageProblem("there is no database to read", "give --database-url, or set DATABASE_URL")
    wanted = tuple(str(run_id) for run_id in runs)
    split = tuple(name for given in modules for name in given.split(",") if name)
    source = Source(split, tuple(files), dsn, wanted, names, live)
    report = _Report(as_json=as_json, passes=len(SEEDS))
    for seed in SEEDS:
        report.begin_pass(seed)
        for line in _replay(source, seed):
            report.add(line)
    return report.finish(expected=len(set(wanted)))


def _replay(source: Source, seed: str) -> Iterator[Mapping[str, Any]]:
    """What the child says of each journal. Raises CliError when it could not do its work."""
    command = [sys.executable, "-m", "scheduler_service.cli.replaying", source.as_json()]
    env = {**os.environ, "PYTHONHASHSEED": seed}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, encoding="utf-8") as child:
        assert child.stdout is not None  # noqa: S101 - asked for above
        try:
            for line in child.stdout:
                said = json.loads(line)
                if "problem" in said:
                    raise UsageProblem(said["problem"], said["remedy"])
                yield said
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        raise CliError(f"the child that replays ended with {child.returncode}", "its error is above", ExitCode.USAGE)


class _Report:
    """Counts what is fine, says what is not: in the second pass only what the first has not said."""

    def __init__(self, *, as_json: bool, passes: int) -> None:
        self._as_json = as_json
        self._status = console(stderr=True)
        self._passes = passes
        self._pass = 0
        self._seed = ""
        self._counts: Counter[str] = Counter()
        self._events = 0
        self._seen = 0
        self._bad: dict[str, int] = {}  # run -> the pass in which it was bad

    def begin_pass(self, seed: str) -> None:
        """What is added from now on was replayed under this hash seed."""
        self._pass, self._seed, self._seen = self._pass + 1, seed, 0

    def add(self, said: Mapping[str, Any]) -> None:
        """One journal that was replayed."""
        self._seen += 1
        first = self._pass == 1
        run_id, verdict = said["run_id"], said["verdict"]
        if first:
            self._events += said["events"]
            self._counts[verdict] += 1
        if verdict in _BAD and run_id not in self._bad:
            self._bad[run_id] = self._pass
            if not first:
                self._counts["FINE"] -= 1
                self._counts[verdict] += 1
            self._say(said, _HASH_ORDER.format(seed=self._seed) if not first else "")
        elif verdict != "FINE" and first:
            self._say(said)
        elif verdict == "FINE" and not first and self._bad.get(run_id) == 1:
            self._say({**said, "verdict": "HASH_ORDER", "message": _HASH_ORDER.format(seed=SEEDS[0])})
        if self._status.is_terminal and self._seen % 100 == 0:
            self._status.print(f"{self._seen} journals (pass {self._pass} of {self._passes})", end="\r")

    def _say(self, said: Mapping[str, Any], note: str = "") -> None:
        message = f"{note}\n{said['message']}" if note else said["message"]
        if self._as_json:
            click.echo(json.dumps({**said, "message": message}))
        else:
            indented = message.replace("\n", "\n  ")
            click.echo(f"{said['verdict']}: run {said['run_id']} of {said['process'] or '?'}\n  {indented}")

    def finish(self, expected: int) -> int:
        """The counts; the exit code."""
        counts = {verdict.lower(): count for verdict, count in sorted(self._counts.items()) if count}
        total = sum(counts.values())
        if self._as_json:
            click.echo(json.dumps({"journals": total, "events": self._events, **counts}))
        else:
            parts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "none"
            journals = f"{total} journal{'s' * (total != 1)}, {self._events} events"
            put(console(), f"{journals} under {self._passes} hash seeds: {parts}")
        if self._bad:
            return ExitCode.FAILED
        if total < expected:
            raise UsageProblem(
                f"{expected - total} of the runs are not here, or have no process", "see `backburner ps`"
            )
        return ExitCode.USAGE if counts.get("unchecked") else ExitCode.OK
