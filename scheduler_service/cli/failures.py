"""What a person needs of a failure: why, how the child ended, the end of its output, and where the rest is."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text

LINES_MAX: Final = 20
"""Lines of each stream that are shown once nothing more will happen."""
LINES_MAX_LIVE: Final = 5
"""Lines of each stream that are shown while other things go on."""
_LINE_CHARACTERS_MAX: Final = 400
_FRAME: Final = re.compile(r'^[ |]*File "(?P<file>.+)", line (?P<line>\d+), in (?P<function>.+)$', re.MULTILINE)
_LIBRARY: Final = re.compile(r"/(site|dist)-packages/|/lib/python3\.\d+/|<frozen ")


@dataclass(frozen=True)
class Failure:
    """An effect that did not succeed. `attempts_max`: how many its policy allows; 0: not known."""

    run_id: str
    key: str
    state: journal.EffectState.ValueType
    error: journal.EffectError
    result: journal.EffectResult
    attempt: int
    attempts_max: int
    child_run_id: str = ""

    @classmethod
    def of(cls, effect: pb.Effect) -> Failure:
        """That of a settled effect with spec and result."""
        error = journal.EffectError()
        error.CopyFrom(effect.error)
        error.reason = error.reason or effect.cancel_reason
        allowed = effect.spec.retry.max_attempts
        return cls(
            effect.run_id, effect.key, effect.state, error, effect.result, effect.attempt, allowed, effect.child_run_id
        )  # fmt: skip

    @classmethod
    def of_event(cls, run_id: str, event: journal.JournalEvent, attempts_max: int = 0) -> Failure:
        """That of the end of an attempt or an effect; of one that succeeded, a failure without error."""
        state, error, result = _end(event)
        return cls(run_id, event.effect_key, state, error, result, event.attempt, attempts_max)

    def why(self) -> str:
        """Reason, message, how the child ended, and how many attempts there were; empty when all is well."""
        reason = text.effect_reason(self.error.reason) if self.error.reason else ""
        said = f"{reason}: {self.error.message}" if self.error.message else reason
        why = ", ".join(part for part in (said, *self._end_of_child(said)) if part)
        many = f"attempt {self.attempt}{f' of {self.attempts_max}' if self.attempts_max else ''}"
        return f"{why} ({many})" if why and self.attempt > 1 else why

    def headline(self) -> str:
        """One line: which effect, how it ended, why."""
        why = self.why()
        return f"effect {self.key} {text.effect_state(self.state).lower()}{f': {why}' if why else ''}"

    def output(self, lines_max: int) -> list[str]:
        """The end of what the child wrote and of a function's traceback, each line with where it is from."""
        return [
            *_tail("stdout", self.result.stdout.tail, lines_max),
            *_tail("stderr", self.result.stderr.tail, lines_max),
            *_tail("traceback", self.error.traceback, lines_max),
        ]

    def more(self, lines_max: int) -> str:
        """The command that shows what `output` with so many lines does not; empty when it shows all."""
        if self.child_run_id:
            return f"how its run went: backburner show {self.child_run_id}"
        streams = (self.result.stdout, self.result.stderr)
        cut = any(stream.total_bytes > len(stream.tail.encode()) for stream in streams)
        long = any(len(stream.tail.splitlines()) > lines_max for stream in streams)
        return f"all of its output: backburner logs {self.run_id}/{self.key}" if cut or long else ""

    def _end_of_child(self, said: str) -> Iterator[str]:
        # Most messages name it already.
        if self.result.exit_code and str(self.result.exit_code) not in said:
            yield f"exit code {self.result.exit_code}"
        if self.result.HasField("signal") and signal_name(self.result.signal) not in said:
            yield signal_name(self.result.signal)


def describe_setback(event: journal.JournalEvent) -> str:
    """Why an attempt ended without settling its effect, in words."""
    if event.WhichOneof("data") == "effect_attempt_lost":
        lost = event.effect_attempt_lost
        return f"attempt {event.attempt} lost ({text.effect_reason(lost.reason)}): {lost.message}"
    if event.WhichOneof("data") == "effect_parked":
        return f"parked until {text.local_time(event.effect_parked.until)}"
    error = event.effect_attempt_failed.error
    return f"attempt {event.attempt} failed ({text.effect_reason(error.reason)}): {error.message}"


def signal_name(number: int) -> str:
    """SIGTERM for 15; a number that this machine has no name for stays one."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def location(traceback: str) -> str:
    """`file:line in function` of the innermost line of process code, with what it says; empty when there is none."""
    frames = [frame for frame in _FRAME.finditer(traceback) if not _LIBRARY.search(frame["file"])]
    if not frames:
        return ""
    frame = frames[-1]
    source = traceback[frame.end() :].lstrip("\n").partition("\n")[0].strip(" |")
    return f"{_relative(frame['file'])}:{frame['line']} in {frame['function']}{f': {source}' if source else ''}"


def _end(
    event: journal.JournalEvent,
) -> tuple[journal.EffectState.ValueType, journal.EffectError, journal.EffectResult]:
    kind = event.WhichOneof("data")
    if kind == "effect_attempt_failed":
        failed = event.effect_attempt_failed
        return journal.EFFECT_STATE_FAILED, failed.error, failed.partial
    if kind == "effect_cancelled":
        cancelled = event.effect_cancelled
        error = journal.EffectError(reason=cancelled.reason, message=cancelled.message)
        return journal.EFFECT_STATE_CANCELLED, error, cancelled.partial
    if kind == "effect_reused":
        return journal.EFFECT_STATE_SUCCEEDED, journal.EffectError(), journal.EffectResult()
    return event.effect_resolved.state, event.effect_resolved.error, event.effect_resolved.result


def _relative(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def _tail(name: str, written: str, lines_max: int) -> list[str]:
    lines = text.plain(written).rstrip().splitlines()[-lines_max:]
    return [f"{name} │ {text.one_line(line, _LINE_CHARACTERS_MAX, keep_spaces=True)}" for line in lines]
