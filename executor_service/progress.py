"""Stage 7, PROGRESS: what an attempt says of itself while it runs.

`ProgressState` is how far it is now; `ProgressLog` is the bounded log that watchers read: one writer, any number of
readers, each at its own pace and resumable from a cursor. Nobody is waited for: a reader that falls behind what the
log still holds is told how much it missed.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson
from google.protobuf import json_format

from backburner.executor.v1 import executor_service_pb2 as pb
from backburner.journal.v1 import journal_pb2
from executor_service.line_protocol import PROGRESS_FIELDS, Report

#: Progress and usage frames kept of an attempt.
FRAMES_MAX: Final = 256
#: Bytes of output kept of an attempt for watchers.
OUTPUT_BYTES_MAX: Final = 1024 * 1024
#: Pieces of output kept of an attempt: a child that writes single bytes must not cost a hundred times its output.
OUTPUT_FRAMES_MAX: Final = 1024
#: A new step of an attempt gets a row when so much of its age has passed since the last one: 100 rows last for hours.
_THINNING: Final = 0.1


@dataclass(frozen=True, slots=True)
class Recorded:
    """What of an attempt's progress the journal has: the last ordinal, and what its last row said, and when."""

    ordinal: int = 0
    percent: float | None = None
    step: tuple[str, int] = ("", 0)
    at: float = 0.0
    session: tuple[str, str] = ("", "")


class ProgressState:
    """How far an attempt is: the merge of all its reports, and what of it the journal does not have yet."""

    __slots__ = (
        *PROGRESS_FIELDS, "_eta_at", "eta_s", "expected_s", "ordinal", "recorded", "session", "started_at", "usage",
    )  # fmt: skip

    def __init__(self, expected_s: float | None) -> None:
        self.expected_s = expected_s
        self.started_at = time.monotonic()
        self.ordinal = 0
        self.percent: float | None = None
        self.step = ""
        self.step_index = 0
        self.step_count = 0
        self.tool = ""
        self.turns = self.turns_max = 0
        self.todos = self.todos_done = 0
        self.eta_s: float | None = None
        self.data: dict[str, Any] | None = None
        self.usage: dict[str, Any] | None = None
        self._eta_at = 0.0
        #: The harness's id of its session, and the session's working directory.
        self.session = ("", "")
        #: Put back by the writer when what was on its way to the journal has not got there.
        self.recorded = Recorded()

    def apply(self, report: Report) -> None:
        """Merges a report."""
        for name in PROGRESS_FIELDS:
            value = getattr(report, name)
            if value is not None:
                setattr(self, name, value)
        if report.eta_s is not None:
            self.eta_s, self._eta_at = report.eta_s, time.monotonic()
        if report.usage is not None:
            self.usage = report.usage
        if report.session_id is not None:
            self.session = (report.session_id, report.workspace)
        self.ordinal += 1

    @property
    def share(self) -> float | None:
        """How much of the work is done in percent: its own word, else the part of its to-do list. None: no basis."""
        if self.percent is not None or not self.todos:
            return self.percent
        return round(100.0 * min(self.todos_done, self.todos) / self.todos, 1)

    @property
    def unrecorded(self) -> bool:
        """True when the journal's projection is behind."""
        return self.ordinal > self.recorded.ordinal

    @property
    def durable(self) -> bool:
        """True when what is new deserves a journal row: a whole percent more, a new step, or the session.

        Steps are thinned with age, so that the budget of an attempt lasts for all of it, however many steps it has.
        """
        if self.session != self.recorded.session:
            return True
        if (share := self.share) is not None and abs(share - (self.recorded.percent or 0.0)) >= 1:
            return True
        if (self.step, self.step_index) == self.recorded.step:
            return False
        now = time.monotonic()
        return now - self.recorded.at >= _THINNING * (now - self.started_at)

    def note_recorded(self, *, durable: bool) -> None:
        """What it says now goes to the journal."""
        if durable:
            step = (self.step, self.step_index)
            self.recorded = Recorded(self.ordinal, self.share, step, time.monotonic(), self.session)
        else:
            self.recorded = replace(self.recorded, ordinal=self.ordinal)

    def eta(self) -> tuple[float | None, bool]:
        """Expected seconds to the end, and whether that is an estimate of ours."""
        now = time.monotonic()
        if self.eta_s is not None:
            return max(0.0, self.eta_s - (now - self._eta_at)), False
        if self.expected_s is not None and self.expected_s > (elapsed := now - self.started_at):
            return self.expected_s - elapsed, True
        return None, False

    def as_json(self) -> dict[str, Any]:
        """The proto3 JSON of journal.v1.Progress."""
        eta, estimated = self.eta()
        fields: dict[str, Any] = {"ordinal": self.ordinal}
        for name in PROGRESS_FIELDS:
            value = self.share if name == "percent" else getattr(self, name)
            if value or (name == "percent" and value is not None):
                fields[name] = value
        if eta is not None:
            fields["eta"] = f"{eta:.3f}s"
        if estimated:
            fields["eta_estimated"] = True
        return fields

    def last_words(self) -> dict[str, Any] | None:
        """What the attempt said last, once it has ended; None when the journal has it, or it never said anything."""
        if not self.unrecorded:
            return None
        return {name: value for name, value in self.as_json().items() if name not in ("eta", "eta_estimated")}

    def as_proto(self) -> journal_pb2.Progress:
        """The message journal.v1.Progress."""
        return json_format.ParseDict(self.as_json(), journal_pb2.Progress())

    def usage_proto(self) -> journal_pb2.Usage:
        """The message journal.v1.Usage."""
        return json_format.ParseDict(self.usage or {}, journal_pb2.Usage(), ignore_unknown_fields=True)


@dataclass(frozen=True, slots=True)
class OutputFrame:
    """A piece of output in the log."""

    cursor: int
    stream: int
    offset: int
    data: bytes

    def message(self) -> pb.StreamProgressResponse:
        """The frame on the wire."""
        chunk = pb.OutputChunk(stream=pb.OutputStream.ValueType(self.stream), offset=self.offset, data=self.data)
        return pb.StreamProgressResponse(cursor=self.cursor, output=chunk)


@dataclass(frozen=True, slots=True)
class ReportFrame:
    """Progress or usage in the log, as JSON: most frames are never read."""

    cursor: int
    progress: bytes
    usage: bytes

    def message(self) -> pb.StreamProgressResponse:
        """The frame on the wire."""
        frame = pb.StreamProgressResponse(cursor=self.cursor)
        if self.progress:
            json_format.Parse(self.progress, frame.progress)
        else:
            json_format.Parse(self.usage, frame.usage)
        return frame


Frame = OutputFrame | ReportFrame


class ProgressLog:
    """The log of one attempt. Positions are dense from 1; output and reports are bounded apart from each other."""

    __slots__ = (
        "_output",
        "_output_bytes",
        "_output_evicted",
        "_reports",
        "_reports_evicted",
        "_wake",
        "closed",
        "newest",
    )

    def __init__(self) -> None:
        self.newest = 0
        self.closed: pb.StreamEnd.Reason.ValueType | None = None
        self._reports: deque[ReportFrame] = deque()
        self._output: deque[OutputFrame] = deque()
        self._output_bytes = 0
        self._reports_evicted = 0
        self._output_evicted = 0
        self._wake: asyncio.Event | None = None

    def add_progress(self, state: ProgressState) -> None:
        """Appends the progress as it is now."""
        self._add_report(orjson.dumps(state.as_json()), b"")

    def add_usage(self, state: ProgressState) -> None:
        """Appends the usage as it is now."""
        self._add_report(b"", orjson.dumps(state.usage or {}))

    def add_output(self, stream: int, offset: int, data: bytes) -> None:
        """Appends a piece of output."""
        self.newest += 1
        self._output.append(OutputFrame(self.newest, stream, offset, data))
        self._output_bytes += len(data)
        while self._output_bytes > OUTPUT_BYTES_MAX or len(self._output) > OUTPUT_FRAMES_MAX:
            evicted = self._output.popleft()
            self._output_bytes -= len(evicted.data)
            self._output_evicted = evicted.cursor
        self._notify()

    def close(self, reason: pb.StreamEnd.Reason.ValueType) -> None:
        """Nothing follows."""
        self.closed = self.closed or reason
        self._notify()

    def complete_after(self, *, include_output: bool) -> int:
        """The position after which nothing is missing for such a reader."""
        return max(self._reports_evicted, self._output_evicted) if include_output else self._reports_evicted

    def after(self, cursor: int, *, include_output: bool, limit: int) -> list[Frame]:
        """The frames after a position, at most so many, in order."""
        frames: list[Frame] = list(_newer(self._reports, cursor))
        if include_output:
            frames += _newer(self._output, cursor)
            frames.sort(key=lambda frame: frame.cursor)
        return frames[:limit]

    async def wait(self) -> None:
        """Waits until something is appended."""
        if self._wake is None:
            self._wake = asyncio.Event()
        await self._wake.wait()

    def _add_report(self, progress: bytes, usage: bytes) -> None:
        self.newest += 1
        self._reports.append(ReportFrame(self.newest, progress, usage))
        if len(self._reports) > FRAMES_MAX:
            self._reports_evicted = self._reports.popleft().cursor
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None:  # an event of its own for each turn: whoever waits is woken exactly once
            self._wake.set()
            self._wake = None


def _newer(frames: deque[Any], cursor: int) -> list[Any]:
    newer: list[Any] = []
    for frame in reversed(frames):
        if frame.cursor <= cursor:
            break
        newer.append(frame)
    newer.reverse()
    return newer
