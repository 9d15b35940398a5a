"""The child of `backburner replay-check`: replays journals under the hash seed that it was started with.

`python -m scheduler_service.cli.replaying OPTIONS`, where OPTIONS is the JSON of `Source`. Prints a JSON line for each
journal (`Checked`), or one line `{"problem", "remedy"}` when it cannot begin. A process of its own because the seed of
a running interpreter cannot be changed.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import itertools
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from scheduler_service.authoring.definitions import processes
from scheduler_service.authoring.values import normalise
from scheduler_service.cli.errors import CliError
from scheduler_service.replay.checking import check_history
from scheduler_service.replay.events import Event
from scheduler_service.replay.failures import StepBlocked

#: Longest a step may take; a scheduler allows less (BACKBURNER_STEP_SECONDS_MAX), on a machine that is its own.
STEP_SECONDS_MAX: Final = 10.0


@dataclass(frozen=True)
class Source:
    """Which journals, and where the code is: files, or a database with runs, processes, or all that is live."""

    modules: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    dsn: str = ""
    runs: tuple[str, ...] = ()
    processes: tuple[str, ...] = ()
    live: bool = False

    def as_json(self) -> str:
        """For the child's command line."""
        return json.dumps(asdict(self))


def main() -> int:
    """Check everything; the exit code says only whether that could be done."""
    # What process code prints must not get between our lines.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    sys.stdout = io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        source = Source(**json.loads(sys.argv[1]))
        _load(source)
        asyncio.run(_check(source, out.write))
    except CliError as problem:
        out.write(json.dumps({"problem": problem.message, "remedy": problem.remedy}) + "\n")
        return int(problem.code)
    return 0


def _load(source: Source) -> None:
    from scheduler_service.__main__ import ProcessModuleError, load_modules

    sys.path.insert(0, "")  # as for `backburner dev`: modules of the folder one is in
    try:
        load_modules(source.modules)
    except ProcessModuleError as error:
        raise CliError(str(error), "run it where the module can be imported") from error


async def _check(source: Source, write: Callable[[str], object]) -> None:
    signal.signal(signal.SIGALRM, _block)
    async with aclosing(_journals(source)) as journals:
        async for run_id, events in journals:
            checked = check_history(processes(), run_id, events, _rewind)
            signal.setitimer(signal.ITIMER_REAL, 0)
            write(json.dumps(checked.as_json()) + "\n")
            sys.stdout = io.StringIO()


def _rewind() -> None:
    signal.setitimer(signal.ITIMER_REAL, STEP_SECONDS_MAX)


def _block(_signal: int, _frame: object) -> None:
    raise StepBlocked(f"a step ran for {STEP_SECONDS_MAX:g} s without waiting: a @bb.function is the place for it")


async def _journals(source: Source) -> AsyncGenerator[tuple[str, Sequence[Event]], None]:
    for file in source.files:
        for journal in read_export(Path(file)):
            yield journal
    if source.dsn:
        async for journal in _stored(source):
            yield journal


async def _stored(source: Source) -> AsyncGenerator[tuple[str, Sequence[Event]], None]:
    from scheduler_service.journal.errors import JournalError
    from scheduler_service.journal.histories import histories

    if unknown := sorted(set(source.processes) - processes().keys()):
        known = ", ".join(sorted(processes())) or "none"
        raise CliError(f"no process {unknown[0]!r} is loaded; there are: {known}", "is its --process-module given?")
    names = source.processes or (None if source.runs else tuple(processes()))
    chosen = histories(source.dsn, run_ids=source.runs or None, processes=names, live=source.live)
    try:
        async with aclosing(chosen) as journals:
            async for journal in journals:
                yield journal
    except JournalError as error:
        raise CliError(str(error), "is DATABASE_URL right, and may its role read?") from error


def read_export(path: Path) -> Iterator[tuple[str, Sequence[Event]]]:
    """The journals of an export (`backburner journal RUN --json`), one after the other. Raises CliError."""
    try:
        with path.open(encoding="utf-8") as lines:
            rows = (_row(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip())
            for run_id, group in itertools.groupby(rows, lambda row: row[0]):
                yield run_id, [event for _run_id, event in group]
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{path} cannot be read: {error}") from error


def _row(line: str, place: str) -> tuple[str, Event]:
    try:
        row = json.loads(line)
        return row["run_id"], event_of_export(row)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CliError(
            f"{place} is no line of an exported journal: {type(error).__name__}: {error}",
            "export it with `backburner journal RUN --json > run.jsonl`",
        ) from error


_FIELDS: Final = ("run_id", "seq", "type", "recorded_at", "cause", "effect_key", "effect_id", "attempt", "actor")


def event_of_export(row: Mapping[str, Any]) -> Event:
    """An event from its proto3 JSON with proto field names."""
    data: dict[str, Any] = next((value for name, value in row.items() if name not in _FIELDS), {})
    return Event(
        seq=int(row["seq"]),
        type=row["type"].removeprefix("EVENT_TYPE_"),
        recorded_at=dt.datetime.fromisoformat(row["recorded_at"]),
        cause=int(row.get("cause", 0)),
        effect_id=row.get("effect_id", ""),
        effect_key=row.get("effect_key", ""),
        attempt=row.get("attempt", 0),
        actor=row.get("actor", ""),
        data=normalise(data),
    )


if __name__ == "__main__":
    sys.exit(main())
