"""The harness of child processes: argv, or a command line run by `/bin/sh -c`."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from executor_service.assignment import Assignment, InvalidWork
from executor_service.descendants import Reaper
from executor_service.harness.base import Attempt
from executor_service.line_protocol import LineScanner, Report
from executor_service.outcome import Outcome
from executor_service.output import NAMES, STDERR, STDOUT, Capture
from executor_service.process_group import Command, ProcessGroup, SpawnFailed

#: Variables of the executor that children inherit. Everything else, credentials above all, stays out.
INHERITED: Final = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "USER", "SHELL")


class ShellHarness:
    """Runs child processes."""

    name = "shell"
    version = ""
    pool = "shell"
    end_seconds_max = 20.0  # a sweep, and the last of the output

    def __init__(
        self, reaper: Reaper, folder: Path, *, env_allow: Iterable[str], output_bytes: int, output_bytes_max: int
    ) -> None:
        self._reaper = reaper
        self._folder = folder
        self._allowed = frozenset((*INHERITED, *env_allow))
        self._output_bytes = output_bytes
        self._output_bytes_max = output_bytes_max

    async def run(self, spec: Mapping[str, Any], attempt: Attempt) -> Outcome:
        """Runs the child to its end and everything it started with it."""
        work = spec.get("shell")
        if not isinstance(work, dict) or bool(work.get("argv")) == bool(work.get("command_line")):
            raise InvalidWork("a shell effect needs exactly one of argv and command_line")
        child = _Child(attempt, self._capture_size(work))
        try:
            with self._working_directory(work.get("cwd") or "", attempt.assignment) as cwd:
                group = ProcessGroup(self._command(work, cwd, attempt), attempt.marker, self._reaper, child.sinks)
                status, proven = await child.watch(group)
        except SpawnFailed as error:
            return Outcome().fail("SPAWN_FAILED", str(error))
        return child.outcome(status, proven=proven, check=bool(work.get("check")))

    def _command(self, work: Mapping[str, Any], cwd: str, attempt: Attempt) -> Command:
        argv = work.get("argv") or ["/bin/sh", "-c", work["command_line"]]
        return Command(argv, cwd, self._environment(work.get("env") or {}, attempt.assignment), work.get("stdin"))

    def _environment(self, given: Mapping[str, str], assignment: Assignment) -> dict[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if name in self._allowed or name.startswith("LC_")
        }
        return inherited | dict(given) | identity(assignment)

    def _capture_size(self, work: Mapping[str, Any]) -> int:
        asked = int(work.get("output_bytes_max") or self._output_bytes)
        return max(0, min(asked, self._output_bytes_max))

    @contextlib.contextmanager
    def _working_directory(self, cwd: str, assignment: Assignment) -> Iterator[str]:
        """The directory asked for, or a fresh one that is removed afterwards."""
        if cwd:
            if not os.path.isdir(cwd):  # noqa: PTH112 - the answer for a path with NUL is no as well
                raise InvalidWork(f"working directory {cwd!r} is no directory on this executor")
            yield cwd
            return
        fresh = self._folder / f"{assignment.effect_id}-{assignment.attempt}"
        try:
            fresh.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpawnFailed(f"no working directory could be made: {error}") from error
        try:
            yield str(fresh)
        finally:
            _remove(fresh)


def _remove(folder: Path) -> None:
    """Removes a directory; what is in it goes in a thread, which no result waits for."""
    try:
        folder.rmdir()
    except OSError:
        asyncio.get_running_loop().run_in_executor(None, partial(shutil.rmtree, folder, ignore_errors=True))


def identity(assignment: Assignment) -> dict[str, str]:
    """Variables that tell a child who it is. They cannot be overridden."""
    return {
        "BACKBURNER_RUN_ID": assignment.run_id,
        "BACKBURNER_EFFECT_ID": assignment.effect_id,
        "BACKBURNER_EFFECT_KEY": assignment.effect_key.replace("\0", ""),
        "BACKBURNER_ATTEMPT_NUMBER": str(assignment.attempt),
    }


class _Child:
    """What one child says and how it ends."""

    def __init__(self, attempt: Attempt, output_bytes: int) -> None:
        self._attempt = attempt
        self._captures = {stream: Capture(stream, output_bytes) for stream in (STDOUT, STDERR)}
        self._reports = LineScanner(self._report, prefixed=False)
        self._scanners = {stream: LineScanner(self._report, prefixed=True) for stream in (STDOUT, STDERR)}
        self._result: bytes | None = None
        self._result_error = ""
        self._ending: asyncio.Task[None] | None = None
        self.sinks = (self._sink(STDOUT), self._sink(STDERR), self._reports.feed)

    async def watch(self, group: ProcessGroup) -> tuple[int, bool]:
        """Waits for the end; returns the exit status and whether every descendant is proven dead."""
        self._attempt.started(group.pid)
        self._attempt.on_end(lambda: self._end(group))
        status = await group.wait()
        if self._ending is not None:
            await self._ending
        proven = await group.finish(killed=self._ending is not None)
        for scanner in (self._reports, *self._scanners.values()):
            scanner.close()
        return status, proven

    def outcome(self, status: int, *, proven: bool, check: bool) -> Outcome:
        """The outcome of the child by itself."""
        outcome = Outcome(value_json=self._result, death_proven=proven, captured=self._captured())
        if status < 0:
            outcome.signal = -status
            return outcome.fail("KILLED_BY_SIGNAL", f"the child was killed by {_signal_name(-status)}")
        outcome.exit_code = status
        if status != 0 and check:
            return outcome.fail("EXITED_NONZERO", f"the child exited with code {status}")
        if self._result_error:
            return outcome.fail("INVALID_RESULT", self._result_error, final=True)
        return outcome

    def _end(self, group: ProcessGroup) -> None:
        self._ending = asyncio.create_task(group.end(self._attempt.kill_grace_s), name=f"end {group.pid}")

    def _sink(self, stream: int) -> Callable[[bytes], None]:
        capture, scanner = self._captures[stream], self._scanners[stream]

        def take(data: bytes) -> None:
            self._attempt.output(capture, data)
            scanner.feed(data)

        return take

    def _report(self, report: Report) -> None:
        if report.result_json is not None or report.result_error:
            self._result, self._result_error = report.result_json, report.result_error
        self._attempt.report(report)

    def _captured(self) -> dict[str, dict[str, Any]]:
        return {NAMES[stream]: capture.as_json() for stream, capture in self._captures.items() if capture.total}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
