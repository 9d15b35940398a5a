"""The control stream: dials the scheduler, reports everything held, obeys starts and cancels, and dials again.

One session at a time, and only the newest is obeyed: starts carry its number. When a stream breaks, attempts run on and
the next hello reports them. Frames are taken by one reader task that never waits for anything but the next frame; all
frames up go through the outbox and one writer task. The stream is the only truth about liveness: one that has been
silent for three heartbeats is dropped, whatever TCP says.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import grpc
from google.protobuf import timestamp_pb2
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service import failpoints
from executor_service.assignment import assignment_from
from executor_service.attempts import Attempts
from executor_service.cut_off import CutOff
from executor_service.dialling import Dials, NoScheduler
from executor_service.invocation import Invocation
from executor_service.outbox import Outbox

log = logging.getLogger(__name__)

#: Snapshots in one heartbeat.
SNAPSHOTS_MAX: Final = 200
#: Every so many heartbeats carry a whole report, which the scheduler reconciles against.
REPORT_EVERY: Final = 2
#: Missed heartbeats after which a stream is dead.
SILENT_HEARTBEATS: Final = 3

_WELCOME_SECONDS: Final = 10.0
#: How long after a silence was found it is looked at again.
_LOOK_AGAIN_SECONDS: Final = 0.1
_BACKOFF_SECONDS: Final = 0.1
_BACKOFF_SECONDS_MAX: Final = 5.0
#: After a refusal that will not go away by itself.
_REFUSED_SECONDS: Final = 10.0
#: How often it is said again that this executor is idle for good.
_SAY_AGAIN_SECONDS: Final = 60.0
_REFUSALS: Final = (
    grpc.StatusCode.ABORTED, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
)  # fmt: skip

Call = grpc.aio.StreamStreamCall[pb.ConnectRequest, pb.ConnectResponse]
Describe = Callable[[], pb.Hello]


class Intake:
    """Keeps a session with the scheduler."""

    def __init__(
        self,
        dialler: Dials,
        attempts: Attempts,
        outbox: Outbox,
        describe: Describe,
        cut_off: CutOff,
    ) -> None:
        self._dialler = dialler
        self._cut_off = cut_off
        self._attempts = attempts
        self._outbox = outbox
        self._describe = describe
        self._session_no = 0
        self._dials = 0
        self._welcomed = False
        self._heartbeat_s = 3.0
        self._last_frame = 0.0
        self._failures = 0
        self._leaving = False
        #: It drains because an operator has ordered it.
        self._ordered = False
        self._anew = asyncio.Event()
        #: Awaited before each dial, when no session is open.
        self.before_hello: Callable[[], Awaitable[None]] = _nothing
        #: What reports name besides the attempts that are held.
        self.in_doubt: Callable[[], Iterable[pb.ReportedAttempt]] = lambda: ()
        self.on_welcome: Callable[[], None] = lambda: None
        self.on_taken_over: Callable[[], Awaitable[None]] | None = None

    @property
    def connected(self) -> bool:
        """True while a session is open."""
        return self._welcomed

    @property
    def state(self) -> str:
        """In a word: connected, draining, away (it dials) or taken_over (by another executor of the same name)."""
        if self._cut_off.taken_over:
            return "taken_over"
        if not self._welcomed:
            return "away"
        return "draining" if self._attempts.draining else "connected"

    async def run(self) -> None:
        """Keeps a session open until cancelled, or until another executor has taken over this one's name."""
        while not self._cut_off.taken_over:
            pause = await self._session()
            await asyncio.sleep(pause)
        self.drain("another executor has taken over its name", for_good=True)
        if self.on_taken_over is not None:
            await self.on_taken_over()
        while True:
            log.error(
                "another executor has the id of this one, which takes no work any more and will not dial again: "
                "give each its own with --executor-id or BACKBURNER_EXECUTOR_ID, and start this one again"
            )
            await asyncio.sleep(_SAY_AGAIN_SECONDS)

    def drain(self, reason: str, *, for_good: bool = False) -> None:
        """Takes nothing new, and says so; `for_good` when nobody can undo it."""
        self._attempts.draining, self._ordered = reason, False
        self._leaving = self._leaving or for_good
        self._outbox.send(pb.ConnectRequest(draining=pb.Draining(reason=reason)))

    def begin_anew(self) -> None:
        """Ends the session: what it was told may not hold any more. The next hello says how things are."""
        self._anew.set()

    async def _session(self) -> float:
        """One session from hello to its end; returns how long to wait before the next."""
        self._welcomed = False
        await self.before_hello()
        self._anew.clear()
        self._dials += 1
        self._outbox.new_session()
        try:
            async with self._dialler.open() as stub:
                ended = await self._exchange(stub.Connect())
        except NoScheduler as error:
            ended = [error]
        return self._pause(ended)

    async def _exchange(self, call: Call) -> Sequence[BaseException | None]:
        """Reads and writes until one side ends it; returns how its parts ended."""
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._read(call), name="control-reader"),
            asyncio.create_task(self._write(call), name="control-writer"),
            asyncio.create_task(self._beat(), name="control-heartbeat"),
            asyncio.create_task(self._anew.wait(), name="control-anew"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            call.cancel()
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        return [how if isinstance(how, BaseException) else None for how in ended]

    async def _read(self, call: Call) -> None:
        """Takes the frames down. Nothing here waits, so that no frame is held up by another."""
        self._last_frame = time.monotonic()
        async for frame in call:
            self._last_frame = time.monotonic()
            self._cut_off.heard()
            self._take(frame)

    def _take(self, frame: pb.ConnectResponse) -> None:
        kind = frame.WhichOneof("frame")
        if kind == "start":
            failpoints.hit("start", "taken")
            self._start(frame.start)
        elif kind == "cancel":
            failpoints.hit("cancel", "taken")
            for cancel in frame.cancel.attempts:
                self._attempts.cancel(cancel)
        elif kind == "welcome":
            self._welcome(frame.welcome)
        elif kind == "drain":
            self._drain(frame.drain)
        elif kind == "moved":
            log.info("the scheduler ends the stream: %s", frame.moved.reason)

    def _welcome(self, welcome: pb.Welcome) -> None:
        self._session_no = welcome.session_no
        self._welcomed = True
        self._failures = 0
        if welcome.HasField("heartbeat_interval"):
            self._heartbeat_s = max(0.05, welcome.heartbeat_interval.ToNanoseconds() / 1e9)
        if welcome.HasField("grace"):
            self._cut_off.welcomed(welcome.grace.ToNanoseconds() / 1e9)
        self._attempts.stale([(ref.effect_id, ref.attempt) for ref in welcome.stale])
        log.info("session %d with scheduler %s", welcome.session_no, welcome.scheduler_id)
        self._outbox.wake()  # for what was queued while there was no session
        self.on_welcome()

    def _start(self, start: pb.StartAttempts) -> None:
        stale = start.session_no != self._session_no or not self._welcomed
        rejected = []
        for item in start.attempts:
            # What was taken is never refused as stale: a refusal says that the attempt never started.
            unknown = not self._attempts.taken((item.effect_id, item.attempt))
            refusal = (_STALE, "") if stale and unknown else self._launch(item)
            if refusal is not None:
                ref = pb.AttemptRef(effect_id=item.effect_id, attempt=item.attempt)
                rejected.append(pb.RejectedAttempt(ref=ref, reason=refusal[0], message=refusal[1]))
        if rejected:
            self._outbox.reject(rejected)
        self._outbox.accept(self._attempts.take_accepted())
        self._outbox.publish(self._attempts.take_repeated())

    def _launch(self, item: pb.StartAttempt) -> tuple[pb.RejectedAttempt.Reason.ValueType, str] | None:
        refusal = self._attempts.start(assignment_from(item, self._session_no))
        return None if refusal is None else (refusal.reason, refusal.message)

    def _drain(self, command: pb.DrainCommand) -> None:
        if command.drain and not self._attempts.draining:
            self._attempts.draining, self._ordered = command.reason or "drained by an operator", True
        elif not command.drain and not self._leaving:
            self._attempts.draining, self._ordered = "", False

    async def _write(self, call: Call) -> None:
        """Sends the hello, then whatever waits, until the stream breaks."""
        hello = pb.ConnectRequest(hello=self._hello())
        failpoints.hit("hello", "send")
        await call.write(hello)
        while True:
            await self._outbox.wait()
            if self._welcomed:
                for frame in self._outbox.take():
                    await call.write(frame)
                    if frame.HasField("rejected"):  # the scheduler counted otherwise: it shall see what is held
                        await call.write(self._heartbeat(report=True))

    def _hello(self) -> pb.Hello:
        if self._ordered:  # each session is told of it anew: it may have been taken back while there was none
            self._attempts.draining, self._ordered = "", False
        hello = self._describe()
        hello.dial = self._dials
        hello.draining = bool(self._attempts.draining)
        hello.attempts.extend(self._report())
        hello.clock_time.CopyFrom(_now())
        return hello

    async def _beat(self) -> None:
        """Sends heartbeats; returns when the other side has been silent for too long."""
        started, beats = time.monotonic(), 0
        while True:
            await asyncio.sleep(self._heartbeat_s if self._welcomed else 0.05)
            limit = self._heartbeat_s * SILENT_HEARTBEATS if self._welcomed else _WELCOME_SECONDS
            heard = max(self._last_frame, started)
            if time.monotonic() - heard > limit and await self._still_silent(heard):
                log.warning("no frame from the scheduler for %.1f s: dialling again", limit)
                return
            if self._welcomed:
                self._outbox.send(self._heartbeat(report=beats % REPORT_EVERY == 0))
                beats += 1

    async def _still_silent(self, heard: float) -> bool:
        """A second look: after a standstill of ours, frames may lie unread."""
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        return self._last_frame <= heard

    def _heartbeat(self, *, report: bool) -> pb.ConnectRequest:
        beat = pb.ExecutorHeartbeat(report=report, clock_time=_now())
        changed = [held for held in self._attempts if held.changed]
        for held in random.sample(changed, min(len(changed), SNAPSHOTS_MAX)):  # so that each gets its turn
            held.changed = False
            try:
                beat.changed.append(held.snapshot(small=True))
            except Exception:  # one attempt that cannot be shown must not end the session of all
                log.exception("attempt %s cannot be shown in a heartbeat", held.assignment.ref)
        if report:
            beat.attempts.extend(self._report())
        return pb.ConnectRequest(heartbeat=beat)

    def _report(self) -> Iterator[pb.ReportedAttempt]:
        yield from (_reported(held) for held in self._attempts)
        yield from self.in_doubt()

    def _pause(self, ended: Sequence[BaseException | None]) -> float:
        """Logs why the session ended; how long to wait before the next."""
        error = next((e for e in ended if isinstance(e, grpc.aio.AioRpcError)), None)
        bug = next((e for e in ended if isinstance(e, Exception) and not isinstance(e, _BROKEN)), None)
        if bug is not None:
            log.error("the control stream ended by a bug", exc_info=bug)
        self._failures += 1
        was_open, self._welcomed = self._welcomed, False
        other = _superseded_by(error)
        if other == self._attempts.incarnation:
            return _BACKOFF_SECONDS  # by a hello of our own that was on its way for long
        if other:
            self._cut_off.taken_over = True
            return 0.0
        if error is not None and error.code() in _REFUSALS:
            log.error("the scheduler refuses this executor: %s", error.details())
            return _REFUSED_SECONDS * random.uniform(0.5, 1.0)
        if was_open or self._failures in (3, 20) or self._failures % 100 == 0:
            log.warning("no session with the scheduler: %s", _why(error, ended))
        return min(_BACKOFF_SECONDS_MAX, _BACKOFF_SECONDS * 2.0 ** min(self._failures, 10)) * random.uniform(0.1, 1.0)


async def _nothing() -> None:
    pass


def _why(error: grpc.aio.AioRpcError | None, ended: Sequence[BaseException | None]) -> str:
    unreachable = next((str(e) for e in ended if isinstance(e, NoScheduler)), "stream ended")
    return str(error.details()) if error is not None else unreachable


def _superseded_by(error: grpc.aio.AioRpcError | None) -> str:
    """Incarnation whose newer session has ended ours; empty: none has."""
    if error is None or error.code() != grpc.StatusCode.ABORTED:
        return ""
    status, info = rpc_status.from_call(error), error_details_pb2.ErrorInfo()  # type: ignore[arg-type]
    for detail in status.details if status is not None else ():
        if detail.Unpack(info) and info.reason == "SESSION_SUPERSEDED":
            return str(info.metadata.get("incarnation", ""))
    return ""


#: What a stream that breaks raises in its reader and writer.
_BROKEN: Final = (grpc.aio.BaseError, grpc.aio.AioRpcError, asyncio.InvalidStateError, NoScheduler)
_STALE: Final = pb.RejectedAttempt.REASON_STALE_SESSION


def _reported(held: Invocation) -> pb.ReportedAttempt:
    a = held.assignment
    return pb.ReportedAttempt(
        ref=pb.AttemptRef(effect_id=a.effect_id, attempt=a.attempt),
        state=held.state,
        session_no=a.session_no,
        pool=a.pool,
        background=a.background,
        run_id=a.run_id,
    )


def _now() -> timestamp_pb2.Timestamp:
    now = timestamp_pb2.Timestamp()
    now.GetCurrentTime()
    return now
