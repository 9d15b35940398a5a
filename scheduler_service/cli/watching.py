"""Watches that survive cuts: every journal event once and in order, whatever happens to the connection."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol, TypeVar

import grpc
import grpc.aio

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli.client import AWAY, Client

BACKOFF_FIRST_SECONDS: Final = 0.2
BACKOFF_SECONDS_MAX: Final = 5.0
GIVE_UP_SECONDS: Final = 300.0

# A stream that breaks shows as one of these; everything else is an answer.
_CUTS: Final = AWAY | {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_FINAL: Final = {pb.WatchEnd.REASON_RUN_CLOSED, pb.WatchEnd.REASON_PARKED, pb.WatchEnd.REASON_EFFECT_SETTLED}

Frame = TypeVar("Frame", pb.WatchRunResponse, pb.WatchEffectResponse)
Frame_co = TypeVar("Frame_co", pb.WatchRunResponse, pb.WatchEffectResponse, covariant=True)
Note = Callable[[str], None]


class _Stream(Protocol[Frame_co]):
    """An open server stream."""

    def __aiter__(self) -> AsyncIterator[Frame_co]: ...
    def cancel(self) -> bool: ...


def watch_run(
    client: Client,
    run_id: str,
    after_seq: int | None,
    note: Note,
    include: tuple[pb.WatchRunRequest.Include.ValueType, ...] = (),
) -> AsyncIterator[pb.WatchRunResponse]:
    """Frames of a run: from a snapshot, or the events after `after_seq`, to its end frame."""

    def open_stream(after: int | None) -> _Stream[pb.WatchRunResponse]:
        request = pb.WatchRunRequest(run_id=run_id, namespace=client.namespace, after_seq=after, include=include)
        return client.runs.WatchRun(request)

    return resumed(open_stream, after_seq, note)


def watch_effect(
    client: Client, effect_id: str, after_seq: int | None, note: Note
) -> AsyncIterator[pb.WatchEffectResponse]:
    """Frames of an effect, to its end frame."""

    def open_stream(after: int | None) -> _Stream[pb.WatchEffectResponse]:
        name = pb.EffectName(effect_id=effect_id)
        return client.runs.WatchEffect(pb.WatchEffectRequest(effect=name, namespace=client.namespace, after_seq=after))

    return resumed(open_stream, after_seq, note)


async def resumed(
    open_stream: Callable[[int | None], _Stream[Frame]], after_seq: int | None, note: Note
) -> AsyncIterator[Frame]:
    """Frames until a final end frame; a stream that breaks is opened again after the last seq seen."""
    cursor, pause = after_seq, _Pause()
    while True:
        stream = open_stream(cursor)
        try:
            async for frame in stream:
                pause.contact()
                if not _is_new(frame, cursor):
                    continue
                cursor = _cursor(frame, cursor)
                yield frame
                if frame.WhichOneof("frame") == "end" and frame.end.reason in _FINAL:
                    return
        except grpc.aio.AioRpcError as error:
            if error.code() not in _CUTS or not pause.may_retry():
                raise
            note(f"connection lost ({error.code().name}), trying again")
        finally:
            stream.cancel()
        await pause.wait()


class _Pause:
    """Jittered exponential back-off; gives up when nobody answered for long, or ever."""

    def __init__(self) -> None:
        self._failures = 0
        self._last_contact: float | None = None

    def contact(self) -> None:
        self._failures = 0
        self._last_contact = time.monotonic()

    def may_retry(self) -> bool:
        # Nobody there at the first try is a wrong address more often than a restart: say so at once.
        return self._last_contact is not None and time.monotonic() - self._last_contact < GIVE_UP_SECONDS

    async def wait(self) -> None:
        longest = min(BACKOFF_FIRST_SECONDS * 2**self._failures, BACKOFF_SECONDS_MAX)
        self._failures = min(self._failures + 1, 10)
        await asyncio.sleep(longest * random.uniform(0.5, 1.0))


def _is_new(frame: pb.WatchRunResponse | pb.WatchEffectResponse, cursor: int | None) -> bool:
    return frame.WhichOneof("frame") != "event" or cursor is None or frame.event.seq > cursor


def _cursor(frame: pb.WatchRunResponse | pb.WatchEffectResponse, cursor: int | None) -> int | None:
    kind = frame.WhichOneof("frame")
    if kind == "event":
        return frame.event.seq
    if kind == "snapshot" and isinstance(frame, pb.WatchRunResponse):
        return frame.snapshot.seq
    if kind == "end" and frame.end.resume_after_seq:
        return max(cursor or 0, frame.end.resume_after_seq)
    return cursor
