"""Stage 6, EXECUTE: one attempt from top to bottom: accept, prepare, start, watch, end, record."""

import asyncio
import logging
import re
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from google.protobuf import timestamp_pb2

from backburner.executor.v1 import executor_service_pb2 as pb
from executor_service import budgets
from executor_service.assignment import Assignment, InvalidWork, Limits, NotStarted
from executor_service.harness.base import Harness
from executor_service.harness.registry import Harnesses
from executor_service.line_protocol import Report
from executor_service.markers import marker
from executor_service.masking import Masks
from executor_service.outcome import Ending, Outcome
from executor_service.output import NAMES, STDERR, STDOUT, Capture
from executor_service.progress import ProgressLog, ProgressState

log = logging.getLogger(__name__)

State = pb.Attempt.State

#: How long after a silence was found it is looked at again.
_LOOK_AGAIN_SECONDS: Final = 0.1

_HAS_WORKSPACE: Final = re.compile(rb'"workspace": ?\{')

TOTAL: Final = Ending("timed_out", "TIMEOUT_TOTAL", "not settled within its total timeout, all attempts included", True)


def _never() -> bool:
    """Of work of which nobody knows that it has ended before it says so."""
    return False


class Listener(Protocol):
    """Where an invocation's news go."""

    def dirty_output(self, invocation: "Invocation") -> None:
        """Output waits for the journal."""

    def dirty_progress(self, invocation: "Invocation") -> None:
        """Progress waits for the journal."""

    def finished(self, invocation: "Invocation") -> None:
        """The outcome is there and waits for the journal."""

    def not_started(self, invocation: "Invocation", message: str) -> None:
        """Its work cannot begin now: it is handed back as if it had been refused."""


class Invocation:
    """One attempt."""

    def __init__(self, assignment: Assignment, incarnation: str, listener: Listener) -> None:
        self.assignment = assignment
        self.marker = marker(incarnation, assignment.effect_id, assignment.attempt)
        self.state = pb.Attempt.STATE_ACCEPTED
        self.log = ProgressLog()
        self.progress = ProgressState(assignment.expected_s)
        self.captures: dict[int, Capture] = {}
        self.masks = Masks()
        self.pid = 0
        self._has_started = False
        self.outcome: Outcome | None = None
        self.elapsed_s = 0.0
        self.kill_grace_s = 0.0
        self.start_recorded = False
        self.continues: Mapping[str, str] | None = None
        self.fresh_because = ""
        #: Changed since the scheduler was last told.
        self.changed = True
        self.started_wall = time.time()
        self.started_at = self.last_activity = self.progress.started_at
        self._listener = listener
        self._ending: Ending | None = None
        #: What came too late for the work that was over by then: it holds for what may follow, another child.
        self._late: Ending | None = None
        self._prepared = False
        self._end_work: Callable[[], None] | None = None
        self._work_is_over: Callable[[], bool] = _never
        self._end_seconds_max = 0.0
        self._timers: dict[str, asyncio.TimerHandle] = {}

    async def run(self, harnesses: Harnesses) -> None:
        """Does the work; when it returns the outcome waits for the journal."""
        try:
            outcome = await self._work(harnesses)
        except NotStarted as error:
            if self._ending is None and self.outcome is None:
                self._stop_timers()
                self._listener.not_started(self, str(error))
                return
            outcome = Outcome()
        self._finish(outcome)

    @property
    def undecided(self) -> bool:
        """True while it may still be handed back: somebody else may have the lease of its workspace."""
        return self.state == pb.Attempt.STATE_ACCEPTED and bool(_HAS_WORKSPACE.search(self.assignment.spec_json))

    @property
    def may_end(self) -> bool:
        """True while it runs, and nobody has asked it to end."""
        return self._ending is None and self.outcome is None

    @property
    def may_go_on(self) -> bool:
        """True while nothing is known that ends what would follow."""
        return self.may_end and self._late is None

    def stands(self, outcome: Outcome) -> bool:
        """Whether this outcome of the work is the attempt's own, although it may have been asked to end."""
        return self._ending is None or self._is_done_all_the_same(self._ending, outcome)

    def end(self, ending: Ending) -> None:
        """Asks the work to end; the first reason counts.

        What has ended by itself no timeout and no budget ends any more: its own end stands, though it waits for the
        proof of death, or for this process, which was stopped for a while and finds both at once. Work that follows
        ends with the first of them.
        """
        if not self.may_end:
            return
        if (ending.kind == "timed_out" or ending.reason == "BUDGET") and self._work_is_over():
            if ending.reason != "TIMEOUT_SILENCE":  # what follows is no more silent than it is itself
                self._late = self._late or ending
            return
        self._ending = ending
        self.state = pb.Attempt.STATE_ENDING
        self.changed = True
        if self._prepared:  # whatever it waits for, and be it for ever
            self._after(self.end_seconds, self._give_up, name="give up")
        if self._end_work is not None:
            self._end_work()

    @property
    def end_seconds(self) -> float:
        """Longest that it may take to end once it was asked to."""
        return self.kill_grace_s + self._end_seconds_max

    def finish_unstarted(self) -> None:
        """Ends an attempt whose work will never begin."""
        self._finish(Outcome())

    async def _work(self, harnesses: Harnesses) -> Outcome:
        try:
            spec, limits = self.assignment.read_spec()
            harness = harnesses.find(self.assignment.harness)
            self._prepare(harness, limits)
            if self._ending is not None:
                return Outcome()
            return await harness.run(spec, self)
        except NotStarted:
            raise
        except InvalidWork as error:
            return Outcome().fail("INVALID_WORK", str(error), final=True)
        except Exception as error:  # noqa: BLE001 - logged, without secrets
            trace = self.masks.text("".join(traceback.format_exception(error)))
            log.error("attempt %s failed by a bug of the executor\n%s", self.assignment.ref, trace)  # noqa: TRY400 - masked
            return Outcome().fail("HARNESS_ERROR", f"the executor failed: {type(error).__name__}: {error}")

    def _prepare(self, harness: Harness, limits: Limits) -> None:
        self.kill_grace_s = limits.kill_grace_s
        self._end_seconds_max = harness.end_seconds_max
        if limits.start_to_close_s is not None:
            message = f"ran longer than its timeout of {limits.start_to_close_s:g} s"
            ending = Ending("timed_out", "TIMEOUT_START_TO_CLOSE", message)
            self._after(limits.start_to_close_s, self.end, ending, name="start to close")
        if limits.total_s is not None:
            self._after(limits.total_s, self.end, TOTAL, name="total")
        wall = budgets.wall_bound(self.assignment.bounds)
        if wall is not None:
            self._after(wall.left, self.end, budgets.ending(wall, wall.left), name="budget")
        if limits.silence_s is not None:
            self._after(limits.silence_s, self._check_silence, limits.silence_s, name="silence")
        self._prepared = True

    def _finish(self, outcome: Outcome) -> None:
        if self.outcome is not None:
            return  # it was given up before
        self._stop_timers()
        if self._ending is not None and not self._is_done_all_the_same(self._ending, outcome):
            outcome.ended_by(self._ending)
        outcome.usage = self.progress.usage
        outcome.progress = self.progress.last_words()
        if self.masks:
            outcome.mask(self.masks)
        self.elapsed_s = time.monotonic() - self.started_at
        self.outcome = outcome
        self.state = pb.Attempt.STATE_FINISHED
        self.changed = True
        self._listener.finished(self)

    def _stop_timers(self) -> None:
        for timer in self._timers.values():
            timer.cancel()

    def _is_done_all_the_same(self, ending: Ending, outcome: Outcome) -> bool:
        """An agent that had answered when its budget ended: the answer is paid for."""
        answered = outcome.answered and outcome.kind == "succeeded" and outcome.death_proven is not False
        return answered and (ending.reason, self.assignment.pool) == ("BUDGET", "agents")

    def _give_up(self) -> None:
        log.error("attempt %s did not end when asked to: given up, not proven dead", self.assignment.ref)
        self._finish(Outcome(death_proven=False))

    def _after(self, seconds: float, callback: Callable[..., None], *args: object, name: str) -> None:
        self._timers[name] = asyncio.get_running_loop().call_later(max(0.0, seconds), callback, *args)

    def _check_silence(self, silence_s: float, found_at: float | None = None) -> None:
        """Two looks must find the same silence: after a standstill of ours, what it has said may lie unread."""
        quiet = time.monotonic() - self.last_activity
        if quiet < silence_s:
            self._after(silence_s - quiet, self._check_silence, silence_s, name="silence")
        elif found_at != self.last_activity:
            self._after(_LOOK_AGAIN_SECONDS, self._check_silence, silence_s, self.last_activity, name="silence")
        else:
            message = f"no output and no progress for {silence_s:g} s"
            self.end(Ending("timed_out", "TIMEOUT_SILENCE", message))
            if self.may_end:  # it is over: another child may follow
                self._after(silence_s, self._check_silence, silence_s, name="silence")

    # What the harness says: see harness/base.py.

    @property
    def has_started(self) -> bool:
        """True once a child of it runs, or has run."""
        return self._has_started

    def started(self, pid: int) -> None:
        """The work runs."""
        self._has_started = self._has_started or pid != 0  # 0 is also said while a workspace is made
        self.pid = pid
        self.last_activity = time.monotonic()
        if self.state == pb.Attempt.STATE_ACCEPTED:
            self.state = pb.Attempt.STATE_RUNNING
        self.changed = True

    def on_end(self, callback: Callable[[], None], over: Callable[[], bool] = _never) -> None:
        """Registers what makes the work end, and what knows whether it has ended by itself."""
        self._end_work = callback
        self._work_is_over = over
        if self._ending is None and self._late is not None:
            self.end(self._late)
        elif self._ending is not None:
            callback()
            if "give up" not in self._timers:
                self._after(self.end_seconds, self._give_up, name="give up")

    def report(self, report: Report) -> None:
        """Progress, usage or a result."""
        if self.outcome is not None:
            return
        self.last_activity = time.monotonic()
        self.changed = True
        if not report.has_progress and report.usage is None and report.session_id is None:
            return
        if self.masks:
            report.mask(self.masks)
        self.progress.apply(report)
        if report.has_progress:
            self.log.add_progress(self.progress)
        if report.usage is not None:
            self.log.add_usage(self.progress)
            spent = budgets.reached(self.assignment.bounds, budgets.consumed(report.usage))
            if spent is not None:
                self.end(spent)
        self._listener.dirty_progress(self)

    def capture(self, stream: int, bytes_max: int) -> Capture:
        """The capture of an output stream."""
        return self.captures.get(stream) or Capture(stream, bytes_max)

    def hung(self, message: str) -> None:
        """The work has hung, by what its harness knows."""
        self.end(Ending("timed_out", "TIMEOUT_SILENCE", message))

    def goes_on(self, session: Mapping[str, str] | None, fresh_because: str = "") -> None:
        """Which session it goes on with, or why it began a fresh one."""
        self.continues, self.fresh_because = session, fresh_because

    def output(self, capture: Capture, data: bytes) -> None:
        """A piece of output."""
        self.last_activity = time.monotonic()
        self.changed = True
        self.captures.setdefault(capture.stream, capture)
        data = self.masks.data(data)
        offset = capture.write(data)
        if capture.stream in NAMES:  # a transcript is no output of the child: it is read from the journal
            self.log.add_output(capture.stream, offset, data)
        if capture.unsent:
            self._listener.dirty_output(self)

    # What others see.

    def snapshot(self, *, small: bool = False) -> pb.Attempt:
        """The attempt as it is now; `small` for heartbeats."""
        a = self.assignment
        attempt = pb.Attempt(
            run_id=a.run_id,
            effect_id=a.effect_id,
            attempt=a.attempt,
            state=self.state,
            pid=self.pid,
            background=a.background,
            stdout_bytes=self._written(STDOUT),
            stderr_bytes=self._written(STDERR),
        )
        if not small:
            attempt.effect_key, attempt.name, attempt.harness = a.effect_key, a.name, a.harness
        if self.progress.ordinal or self.progress.expected_s is not None:
            attempt.progress.CopyFrom(self.progress.as_proto())
        if self.progress.usage is not None:
            attempt.usage.CopyFrom(self.progress.usage_proto())
        attempt.start_time.CopyFrom(_timestamp(self.started_wall))
        attempt.last_activity_time.CopyFrom(self.last_activity_time())
        attempt.elapsed.FromNanoseconds(int(self._elapsed() * 1e9))
        return attempt

    def last_activity_time(self) -> timestamp_pb2.Timestamp:
        """When the work was last heard of."""
        return _timestamp(self.started_wall + self.last_activity - self.started_at)

    def _written(self, stream: int) -> int:
        capture = self.captures.get(stream)
        return 0 if capture is None else capture.total

    def _elapsed(self) -> float:
        return self.elapsed_s if self.outcome is not None else time.monotonic() - self.started_at


def _timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    return timestamp_pb2.Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
