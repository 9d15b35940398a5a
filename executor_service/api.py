"""What the executor serves: live progress of its attempts, a list of them, and drain."""

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NoReturn

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from backburner.executor.v1 import executor_service_pb2 as pb
from backburner.executor.v1 import executor_service_pb2_grpc as pb_grpc
from executor_service.attempts import Attempts
from executor_service.errors import (
    DOMAIN,
    STATUS,
    AttemptNotFound,
    CursorAhead,
    InternalError,
    InvalidRequest,
    ServiceError,
    TooManyWatchers,
)
from executor_service.invocation import Invocation
from executor_service.settings import Settings

log = logging.getLogger(__name__)

#: Frames taken from a log at a time.
_FRAMES_AT_ONCE = 64

StreamContext = grpc.aio.ServicerContext[pb.StreamProgressRequest, pb.StreamProgressResponse]


class ExecutorServicer(pb_grpc.ExecutorServiceServicer):
    """Implements backburner.executor.v1.ExecutorService."""

    def __init__(self, executor_id: str, attempts: Attempts, settings: Settings, drain: Callable[[str], None]) -> None:
        self._executor_id = executor_id
        self._attempts = attempts
        self._settings = settings
        self._drain = drain
        self._watchers = 0

    async def StreamProgress(
        self, request: pb.StreamProgressRequest, context: StreamContext
    ) -> AsyncIterator[pb.StreamProgressResponse]:
        """Streams one attempt: a snapshot, what follows, one end frame."""
        try:
            invocation = self._find(request)
            with self._watching():
                async for frame in self._frames(invocation, request):
                    yield frame
        except ServiceError as error:
            await abort(context, error)
        except grpc.aio.BaseError:
            raise
        except Exception as error:  # noqa: BLE001 - logged and answered as INTERNAL
            await abort(context, _internal(error))

    async def ListAttempts(
        self,
        request: pb.ListAttemptsRequest,
        context: grpc.aio.ServicerContext[pb.ListAttemptsRequest, pb.ListAttemptsResponse],
    ) -> pb.ListAttemptsResponse:
        """The attempts that are held, oldest first."""
        return pb.ListAttemptsResponse(
            attempts=[held.snapshot() for held in self._attempts],
            executor_id=self._executor_id,
            incarnation=self._attempts.incarnation,
            draining=bool(self._attempts.draining),
        )

    async def Drain(
        self, request: pb.DrainRequest, context: grpc.aio.ServicerContext[pb.DrainRequest, pb.DrainResponse]
    ) -> pb.DrainResponse:
        """Takes no new attempts; running ones finish."""
        self._drain(request.reason or "drained by an operator")
        return pb.DrainResponse(running=len(self._attempts))

    def _find(self, request: pb.StreamProgressRequest) -> Invocation:
        if request.after_cursor < 0:
            raise InvalidRequest("after_cursor", "must not be negative")
        invocation = self._attempts.get(request.effect_id, request.attempt)
        if invocation is None:
            raise AttemptNotFound(request.effect_id, request.attempt)
        if request.HasField("after_cursor") and request.after_cursor > invocation.log.newest:
            raise CursorAhead(request.effect_id, request.after_cursor, invocation.log.newest)
        return invocation

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        if self._watchers >= self._settings.watchers_max:
            raise TooManyWatchers(self._settings.watchers_max)
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1

    async def _frames(
        self, invocation: Invocation, request: pb.StreamProgressRequest
    ) -> AsyncIterator[pb.StreamProgressResponse]:
        frames = invocation.log
        until = time.monotonic() + self._settings.watch_lifetime_seconds * random.uniform(1.0, 1.5)
        if request.HasField("after_cursor"):
            cursor = request.after_cursor
        else:
            cursor = frames.newest
            yield _snapshot(invocation)
        while True:
            complete = frames.complete_after(include_output=request.include_output)
            if cursor < complete:
                yield _gap(cursor, complete)
                cursor = complete
                yield _snapshot(invocation)
            batch = frames.after(cursor, include_output=request.include_output, limit=_FRAMES_AT_ONCE)
            for frame in batch:
                cursor = frame.cursor
                yield frame.message()
            if batch:
                continue
            cursor = frames.newest if not request.include_output else cursor
            if frames.closed is not None:
                yield _end(frames.newest, frames.closed)
                return
            if time.monotonic() > until:
                yield _end(cursor, pb.StreamEnd.REASON_LIFETIME)
                return
            if not await self._news(invocation):
                yield _heartbeat(invocation)

    async def _news(self, invocation: Invocation) -> bool:
        try:
            async with asyncio.timeout(self._settings.watch_heartbeat_seconds):
                await invocation.log.wait()
        except TimeoutError:
            return False
        return True


def _snapshot(invocation: Invocation) -> pb.StreamProgressResponse:
    snapshot = pb.AttemptSnapshot(attempt=invocation.snapshot())
    return pb.StreamProgressResponse(cursor=invocation.log.newest, snapshot=snapshot)


def _gap(after: int, complete: int) -> pb.StreamProgressResponse:
    return pb.StreamProgressResponse(cursor=complete, gap=pb.Gap(frames=complete - after, next_cursor=complete + 1))


def _heartbeat(invocation: Invocation) -> pb.StreamProgressResponse:
    beat = pb.StreamHeartbeat(last_activity_time=invocation.last_activity_time())
    return pb.StreamProgressResponse(cursor=invocation.log.newest, heartbeat=beat)


def _end(cursor: int, reason: pb.StreamEnd.Reason.ValueType) -> pb.StreamProgressResponse:
    return pb.StreamProgressResponse(cursor=cursor, end=pb.StreamEnd(reason=reason))


def _internal(error: Exception) -> InternalError:
    incident = secrets.token_hex(8)
    log.error("internal error, incident %s", incident, exc_info=error)
    return InternalError(incident)


async def abort(context: StreamContext, error: ServiceError) -> NoReturn:
    """Ends a call with an error."""
    await context.abort_with_status(rpc_status.to_status(status_of(error)))
    raise AssertionError("abort_with_status returned")


def status_of(error: ServiceError) -> status_pb2.Status:
    """The google.rpc.Status of an error."""
    code, reason = STATUS[type(error)]
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message=error.message[:1500])
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=error.metadata))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status
