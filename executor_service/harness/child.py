"""One child process of an attempt, for every harness that runs a program: where it runs, what it says, how it ends.

Its output is captured and shown live, its reports by the line protocol are passed on, and when it has ended nothing it
started is alive, or the end says that this could not be shown.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from executor_service import failpoints
from executor_service.assignment import Assignment, InvalidWork
from executor_service.cgroups import Cgroups
from executor_service.harness.base import Attempt
from executor_service.harness.lines import Lines
from executor_service.keepers import Keepers
from executor_service.line_protocol import LineScanner, Report
from executor_service.masking import sensitive
from executor_service.outcome import Failure, Outcome
from executor_service.output import NAMES, STDERR, STDOUT
from executor_service.process_group import Command, ProcessGroup, SpawnFailed, start_group

#: Variables of the executor that children inherit. Everything else, credentials above all, stays out.
INHERITED: Final = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "USER", "SHELL")
#: Longest that the end of a child may take after its grace: a sweep, and the last of the output.
END_SECONDS_MAX: Final = 20.0

OnLine = Callable[[bytes], None]
#: The pipe of the line protocol, beside the output streams.
_REPORTS: Final = 0


@dataclass(frozen=True, slots=True)
class ChildWork:
    """A program to run. `argv` is run without a shell; `env` goes on top of what children inherit."""

    argv: Sequence[str]
    #: Working directory. Empty: a fresh one, removed when the child has ended.
    cwd: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    #: Text for its stdin. None: /dev/null.
    stdin: str | None = None
    #: Most bytes kept of each output stream. 0: the executor's default.
    output_bytes_max: int = 0
    #: What its group gets when it shall end; KILL follows after the grace.
    first_signal: signal.Signals = signal.SIGTERM


class ChildControl:
    """Lets a harness end its child because the work is done: the end is not a failure then."""

    def __init__(self) -> None:
        #: True from `finish` on: no timeout ends it any more.
        self.finishing = False
        #: True once it was ended because it lingered: its exit is ours, and says nothing.
        self.reaped = False
        #: Set by the child that is run.
        self.end: Callable[[float], None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def finish(self, linger_s: float, grace_s: float) -> None:
        """The work is done: a child that has not exited after `linger_s` is ended, KILL after `grace_s` more."""
        if not self.finishing:
            self.finishing = True
            self._timer = asyncio.get_running_loop().call_later(linger_s, self._end, grace_s)

    def close(self) -> None:
        """The child is gone."""
        if self._timer is not None:
            self._timer.cancel()

    def _end(self, grace_s: float) -> None:
        if self.end is not None:
            self.reaped = True
            self.end(grace_s)


@dataclass(frozen=True, slots=True)
class ChildEnd:
    """How a child ended, and what it had reported."""

    #: Exit code; negative: the signal that killed it.
    status: int
    #: True: every descendant was looked for, none is alive.
    death_proven: bool
    #: CapturedOutput as proto3 JSON, by `stdout` and `stderr`.
    captured: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    #: The result that it reported by the line protocol, canonical JSON; None: none.
    result_json: bytes | None = None
    #: Why that result cannot be stored. Empty: it can.
    result_error: str = ""
    #: Why it failed, in its own words by the line protocol; counts only if it did fail.
    failure: Failure | None = None

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None when a signal ended it."""
        return None if self.status < 0 else self.status

    def describe(self) -> str:
        """How it ended, in words."""
        if self.status < 0:
            return f"the child was killed by {_signal_name(-self.status)}"
        return f"the child exited with code {self.status}"

    def outcome(self) -> Outcome:
        """An outcome with what the child left, to be completed by the harness."""
        outcome = Outcome(death_proven=self.death_proven, captured=dict(self.captured))
        outcome.exit_code = self.exit_code
        outcome.signal = -self.status if self.status < 0 else None
        return outcome


class Children:
    """Runs the children of an executor's attempts."""

    def __init__(
        self,
        keepers: Keepers,
        cgroups: Cgroups,
        folder: Path,
        *,
        env_allow: Iterable[str],
        output_bytes: int,
        output_bytes_max: int,
    ) -> None:
        self._keepers = keepers
        self._cgroups = cgroups
        self._folder = folder
        self._allowed = frozenset((*INHERITED, *env_allow))
        self._output_bytes = output_bytes
        self._output_bytes_max = output_bytes_max

    async def run(
        self,
        work: ChildWork,
        attempt: Attempt,
        *,
        on_line: OnLine | None = None,
        control: ChildControl | None = None,
    ) -> ChildEnd:
        """Runs the child to its end, and ends everything it started.

        When the attempt shall end, the child's group gets `first_signal`, the attempt's grace, then KILL. `on_line`
        gets each line of its stdout, without the line break (see `lines.py` for the bound); what it raises ends the
        child and is raised here. `control` ends the child when its work is done. An attempt may run one child after
        the other: their output goes on in one capture. Raises SpawnFailed when the system refuses to start it,
        InvalidWork when `cwd` is no directory, or when its arguments and variables are larger than the system takes.
        """
        child = _Child(attempt, self._capture_size(work.output_bytes_max), on_line, work.first_signal, control)
        with self._working_directory(work.cwd, attempt.assignment) as cwd:
            env = self._environment(work.env)
            attempt.masks.add(sensitive(env))
            env |= identity(attempt.assignment)
            command = Command(work.argv, cwd, env, work.stdin)
            cgroup = self._cgroups.make(f"{attempt.assignment.effect_id}-{attempt.assignment.attempt}")
            try:
                group = await start_group(command, attempt.marker, self._keepers, cgroup, child.sinks)
            except SpawnFailed as error:
                if error.errno == errno.E2BIG:  # no other attempt would fare better
                    raise InvalidWork(_too_large(command)) from error
                raise
            return await child.watch(group)

    def _environment(self, given: Mapping[str, str]) -> dict[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if name in self._allowed or name.startswith("LC_")
        }
        return inherited | dict(given)

    def _capture_size(self, asked: int) -> int:
        return max(0, min(asked or self._output_bytes, self._output_bytes_max))

    @contextlib.contextmanager
    def _working_directory(self, cwd: str, assignment: Assignment) -> Iterator[str]:
        """The directory asked for, or a fresh one that is removed afterwards."""
        if cwd:
            if not os.path.isdir(cwd):  # noqa: PTH112 - the answer for a path with NUL is no as well
                raise InvalidWork(f"working directory {cwd!r} is no directory on this executor")
            yield os.path.abspath(cwd)  # noqa: PTH100 - as above
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


def spawn_failed(error: SpawnFailed, attempt: Attempt) -> Outcome:
    """The outcome of an attempt whose child could not be started.

    Nothing was done, unless one before it had run, or this one may have for the moment in which its keeper died.
    """
    untouched = not attempt.has_started and not error.may_have_begun
    outcome = Outcome(death_proven=error.death_proven if error.may_have_begun else None)
    return outcome.fail_as(Failure("SPAWN_FAILED", str(error), untouched=untouched))


def _too_large(command: Command) -> str:
    """What of a command is more than the system takes, and what to do instead."""
    sizes = {f"argument {number}": len(os.fsencode(text)) for number, text in enumerate(command.argv)}
    sizes |= {f"variable {name}": len(os.fsencode(f"{name}={value}")) for name, value in command.env.items()}
    largest = max(sizes, key=sizes.__getitem__)
    return (
        "the arguments and variables of the child are larger than the system takes: "
        f"{sum(sizes.values())} bytes in all, the largest of them {largest} with {sizes[largest]} "
        "(Linux takes 131071 bytes in one, and in all a quarter of the stack limit). "
        "Give large data by stdin, or in a file"
    )


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

    def __init__(
        self,
        attempt: Attempt,
        output_bytes: int,
        on_line: OnLine | None,
        first_signal: signal.Signals,
        control: ChildControl | None,
    ) -> None:
        self._attempt = attempt
        self._first_signal = first_signal
        self._control = control or ChildControl()
        self._captures = {stream: attempt.capture(stream, output_bytes) for stream in (STDOUT, STDERR)}
        masks = attempt.masks
        self._scanners = {
            stream: LineScanner(self._report, prefixed=stream != _REPORTS, masks=masks)
            for stream in (_REPORTS, STDOUT, STDERR)
        }
        self._lines = None if on_line is None else Lines(on_line)
        self._line_error: Exception | None = None
        self._result: bytes | None = None
        self._result_error = ""
        self._failure: Failure | None = None
        self._group: ProcessGroup | None = None
        self._masked = {stream: masks.stream() for stream in (STDOUT, STDERR)}
        self.sinks = (self._sink(STDOUT), self._sink(STDERR), self._sink(_REPORTS))

    async def watch(self, group: ProcessGroup) -> ChildEnd:
        """Waits for the end of the child and of everything it started."""
        failpoints.hit("child", "spawned")
        self._group = group
        self._attempt.started(group.pid)
        control = self._control
        control.end = group.end
        self._attempt.on_end(self._end, over=lambda: group.exited or control.finishing)
        status = await group.wait()
        control.close()
        proven = await group.finish()
        failpoints.hit("child", "ended")
        for stream, masked in self._masked.items():
            self._said(stream, masked.close())
        for scanner in self._scanners.values():
            scanner.close()
        self._take_lines(None)
        if self._line_error is not None:
            raise self._line_error
        return ChildEnd(status, proven, self._captured(), self._result, self._result_error, self._failure)

    def _end(self) -> None:
        if self._group is not None:
            self._group.end(self._attempt.kill_grace_s, self._first_signal)

    def _sink(self, stream: int) -> Callable[[bytes], None]:
        def take(data: bytes) -> None:
            if stream != _REPORTS:
                self._said(stream, self._masked[stream].feed(data))
            self._scanners[stream].feed(data)

        return take

    def _said(self, stream: int, data: bytes) -> None:
        """Bytes of an output stream, without secrets."""
        if data:
            self._attempt.output(self._captures[stream], data)
        if data and stream == STDOUT:
            self._take_lines(data)

    def _take_lines(self, data: bytes | None) -> None:
        """Hands the lines on. An error of the harness must not reach the pipe's reader, nor leave the child running."""
        if self._lines is None or self._line_error is not None:
            return
        try:
            self._lines.close() if data is None else self._lines.feed(data)
        except Exception as error:  # noqa: BLE001 - raised again when the child has ended
            self._line_error = error
            self._end()

    def _report(self, report: Report) -> None:
        if report.result_json is not None or report.result_error:
            self._result, self._result_error = report.result_json, report.result_error
        if report.failure is not None:
            self._failure = report.failure
        self._attempt.report(report)

    def _captured(self) -> dict[str, dict[str, Any]]:
        return {NAMES[stream]: capture.as_json() for stream, capture in self._captures.items() if capture.total}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
