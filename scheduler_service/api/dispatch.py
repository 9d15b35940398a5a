"""Stage 5, DISPATCH: the servicer of the executors' control stream.

One call of Connect is one session. A reader task takes the frames up; the call itself sends the frames down.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf import json_format, timestamp_pb2

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from backburner.scheduler.v1 import dispatch_service_pb2_grpc as pb_grpc
from scheduler_service import failpoints
from scheduler_service.api.hello import check_found, check_hello
from scheduler_service.dispatch.sessions import Pool, Session, duration_of
from scheduler_service.errors import (
    ContractUnsupported,
    Draining,
    InvalidRequest,
    ServiceError,
    SessionSuperseded,
    Violation,
)
from scheduler_service.iteration.engine import Engine
from scheduler_service.journal import ExecutorHello, JournalUnavailable
from scheduler_service.settings import Settings

log = logging.getLogger(__name__)

#: Contracts of the executors' journal functions that this release serves.
CONTRACTS = range(1, 2)
_HELLO_SECONDS = 10.0

Context = grpc.aio.ServicerContext[pb.ConnectRequest, pb.ConnectResponse]


class DispatchServicer(pb_grpc.DispatchServiceServicer):
    """Implements backburner.scheduler.v1.DispatchService."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings

    async def Connect(
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: Context
    ) -> AsyncIterator[pb.ConnectResponse]:
        """One session of an executor."""
        if self._engine.draining:
            raise Draining(self._engine.scheduler_id)
        hello = await self._hello(request_iterator)
        session = await self._open(hello)
        reader = asyncio.create_task(self._read(session, request_iterator), name=f"read {session.executor_id}")
        try:
            if not self._engine.sessions.add(session):
                raise SessionSuperseded(session.executor_id, session.session_no, session.superseded_by)
            stale = await self._engine.reconciler.hello(session, hello)
            yield self._welcome(session, stale)
            self._engine.dispatcher.connected(session)
            async for frame in self._frames(session):
                yield frame
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            await self._gone(session)
        if session.superseded_by:
            raise SessionSuperseded(session.executor_id, session.session_no, session.superseded_by)

    async def _hello(self, frames: AsyncIterator[pb.ConnectRequest]) -> pb.Hello:
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                frame = await anext(aiter(frames), None)
        except TimeoutError:
            frame = None
        if frame is None or frame.WhichOneof("frame") != "hello":
            raise InvalidRequest([Violation("hello", "must be the first frame of a session")])
        hello = frame.hello
        check_hello(hello)
        if hello.contract not in CONTRACTS:
            raise ContractUnsupported(hello.contract, f"{CONTRACTS[0]} to {CONTRACTS[-1]}")
        return hello

    async def _open(self, hello: pb.Hello) -> Session:
        capabilities = _capabilities(hello.harnesses, hello.functions)
        now = self._engine.journal.clock.now()
        skew = hello.clock_time.ToMilliseconds() / 1000 - now if hello.HasField("clock_time") else 0.0
        namespace = hello.namespace or "default"
        answer = await self._engine.journal.executor_hello(
            ExecutorHello(
                executor_id=hello.executor_id,
                incarnation=hello.incarnation,
                holder=self._engine.scheduler_id,
                address=hello.address,
                namespace=namespace,
                pools={p.name: {"slots": p.slots, "background_slots": p.background_slots} for p in hello.pools},
                capabilities=sorted(capabilities),
                labels=dict(hello.labels),
                version=hello.version,
                draining=hello.draining,
                clock_skew_s=skew,
                succeeds=list(hello.succeeds),
                dial=hello.dial,
                harness_checks=[_stored(check) for check in hello.harness_checks],
            )
        )
        if not answer.session_no:
            raise SessionSuperseded(hello.executor_id, hello.dial, answer.previous_incarnation)
        return Session(
            executor_id=hello.executor_id,
            incarnation=hello.incarnation,
            session_no=answer.session_no,
            namespace=namespace,
            address=hello.address,
            version=hello.version,
            capabilities=capabilities,
            labels=dict(hello.labels),
            pools={p.name: Pool(p.slots, p.background_slots) for p in hello.pools},
            harnesses=tuple(hello.harnesses),
            functions=tuple(hello.functions),
            draining=hello.draining,
            clock_skew_s=skew,
        )

    def _welcome(self, session: Session, stale: Sequence[pb.AttemptRef]) -> pb.ConnectResponse:
        welcome = pb.Welcome(session_no=session.session_no, scheduler_id=self._engine.scheduler_id, stale=stale)
        welcome.heartbeat_interval.CopyFrom(duration_of(self._settings.heartbeat_seconds))
        welcome.grace.CopyFrom(duration_of(self._settings.grace_seconds))
        return pb.ConnectResponse(welcome=welcome)

    async def _frames(self, session: Session) -> AsyncIterator[pb.ConnectResponse]:
        """What goes down until the session ends: what waits, and a heartbeat when nothing does."""
        while not session.closed:
            for frame in session.take_frames():
                yield frame
                if frame.HasField("start"):
                    failpoints.hit("frames", "sent")
            try:
                async with asyncio.timeout(self._settings.heartbeat_seconds):
                    await session.wait()
            except TimeoutError:
                yield _heartbeat()
        yield pb.ConnectResponse(moved=pb.Moved(reason=session.closed))

    async def _read(self, session: Session, frames: AsyncIterator[pb.ConnectRequest]) -> None:
        """Takes what comes up; ends the session when the stream ends or a frame cannot be taken."""
        reason = "the executor closed the stream"
        try:
            async for frame in frames:
                session.last_frame = time.monotonic()
                await self._take(session, frame)
        except grpc.aio.UsageError:  # the call is over
            reason = "the stream broke"
        except ServiceError as error:
            reason = f"a frame is refused: {error.message}"
            log.warning("session %d of executor %s ends: %s", session.session_no, session.executor_id, reason)
        except Exception:
            reason = "a frame could not be taken"
            log.exception("session %d of executor %s ends", session.session_no, session.executor_id)
        finally:
            session.close(reason)

    async def _take(self, session: Session, frame: pb.ConnectRequest) -> None:
        kind = frame.WhichOneof("frame")
        if kind == "journaled":
            self._engine.news.journaled(session, frame.journaled.events)
        elif kind == "heartbeat":
            self._heartbeat(session, frame.heartbeat)
        elif kind == "rejected":
            self._engine.news.rejected(session, frame.rejected.attempts)
        elif kind == "harnesses":
            check_found(frame.harnesses)
            session.harnesses = tuple(frame.harnesses.harnesses)
            session.capabilities = _capabilities(session.harnesses, session.functions)
            session.checks = [_stored(found) for found in frame.harnesses.harness_checks]
            self._engine.news.found(session)
        elif kind == "draining":
            session.draining = True
            self._engine.news.seen(session)

    def _heartbeat(self, session: Session, heartbeat: pb.ExecutorHeartbeat) -> None:
        for attempt in heartbeat.changed:
            ref = (attempt.effect_id, attempt.attempt)
            if ref in session.held:
                session.live[ref] = attempt
        if heartbeat.report:
            session.note_report(heartbeat.attempts)
            self._engine.dispatcher.freed(session)
        self._engine.news.seen(session)

    async def _gone(self, session: Session) -> None:
        if self._engine.sessions.remove(session):
            log.info("executor %s is gone: %s", session.executor_id, session.closed)
            try:
                await self._engine.journal.executor_gone(session.executor_id, session.session_no)
            except JournalUnavailable as error:  # it counts as connected until its grace or its next hello
                log.warning("that executor %s is gone is not noted: %s", session.executor_id, error)


def _capabilities(harnesses: Iterable[pb.Harness], functions: Iterable[str]) -> frozenset[str]:
    found = {f"function/{name}" for name in functions}
    for harness in harnesses:
        if harness.name == "shell":
            found.add("shell")
        elif harness.name != "function":
            found.add(f"agent/{harness.name}")
    return frozenset(found)


def _heartbeat() -> pb.ConnectResponse:
    now = timestamp_pb2.Timestamp()
    now.GetCurrentTime()
    return pb.ConnectResponse(heartbeat=pb.SchedulerHeartbeat(clock_time=now))


def _stored(check: pb.HarnessCheck) -> Mapping[str, Any]:
    """What an executor found of a harness, as proto3 JSON."""
    stored: Mapping[str, Any] = json_format.MessageToDict(check, preserving_proto_field_name=True)
    return stored
