"""StreamOutput: the captured output of one attempt by byte offset, followed until the attempt has ended."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from typing import Final

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api.convert import timestamp
from scheduler_service.api.effect_requests import OutputQuery
from scheduler_service.api.effects import Effects
from scheduler_service.api.engine import EngineApi
from scheduler_service.api.recorded import RecordedOutput
from scheduler_service.api.watchers import Pace, Watchers, at_readers_pace
from scheduler_service.errors import InvalidRequest, OffsetAhead, Violation
from scheduler_service.journal.client_reads import ClientReads
from scheduler_service.journal.client_views import EffectView

_RUNS: Final = frozenset({"DISPATCHED", "RUNNING", "CANCELLING"})
_SETTLED: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"})
#: How long output may come after its attempt's end: it is recorded on the side of the settlement, not with it.
_LATE_SECONDS: Final = 1.0


class Outputs:
    """Streams captured output."""

    def __init__(self, engine: EngineApi, reads: ClientReads, effects: Effects, watchers: Watchers, pace: Pace) -> None:
        self.engine = engine
        self.reads = reads
        self.effects = effects
        self.watchers = watchers
        self.pace = pace

    async def stream(self, query: OutputQuery) -> AsyncIterator[pb.StreamOutputResponse]:
        """Frames of StreamOutput."""
        effect = await self.effects.read(query.effect, full=False)
        if query.attempt > effect.attempt:
            problem = f"attempt {query.attempt} does not exist: the newest is {effect.attempt}"
            raise InvalidRequest([Violation("attempt", problem)])
        frames = _Stream(self, query).frames()
        async for frame in at_readers_pace(frames, self.pace.patience_s, _too_slow):
            yield frame


class _Stream:
    """One StreamOutput."""

    def __init__(self, service: Outputs, query: OutputQuery) -> None:
        self._service = service
        self._query = query
        self._recorded = RecordedOutput(service.reads)
        self._positions = dict.fromkeys(query.streams, query.offset)
        self._attempt = query.attempt
        self._sent_at = time.monotonic()
        self._ends_at = service.pace.end()

    async def frames(self) -> AsyncGenerator[pb.StreamOutputResponse, None]:
        """Output and heartbeats, then one end frame."""
        with self._service.watchers.one():
            await self._check_offset()
            over_since: float | None = None
            while True:
                effect = await self._service.effects.read(self._query.effect, full=False)
                self._attempt = self._attempt or effect.attempt
                async for frame in self._new(effect.effect_id):
                    self._sent_at, over_since = time.monotonic(), None
                    yield frame
                over_since = (over_since or time.monotonic()) if self._is_over(effect) else None
                if (end := self._end(over_since)) is not None:
                    yield pb.StreamOutputResponse(end=end)
                    return
                if time.monotonic() - self._sent_at >= self._service.pace.heartbeat_s:
                    self._sent_at = time.monotonic()
                    yield pb.StreamOutputResponse(heartbeat=_heartbeat())
                await asyncio.sleep(self._service.pace.next_poll() / 4)

    async def _check_offset(self) -> None:
        effect = await self._service.effects.read(self._query.effect, full=False)
        attempt = self._attempt or effect.attempt
        if not self._query.offset or not self._is_over(effect):
            return  # what a running attempt has written is not known here
        size = await self._service.reads.output_size(effect.effect_id, attempt, self._query.streams[0])
        if self._query.offset > size:
            raise OffsetAhead(effect.effect_id, attempt, self._query.offset, size)

    async def _new(self, effect_id: str) -> AsyncIterator[pb.StreamOutputResponse]:
        """What was recorded since the last look."""
        for stream in self._query.streams if self._attempt else ():
            start = self._positions[stream]
            async for offset, data in self._recorded.chunks(effect_id, self._attempt, stream, start):
                position = self._positions[stream]
                if offset > position:
                    omitted = pb.OutputOmitted(stream=_stream(stream), offset=position, bytes=offset - position)
                    yield pb.StreamOutputResponse(omitted=omitted)
                self._positions[stream] = offset + len(data)
                chunk = executor_pb.OutputChunk(stream=_stream(stream), offset=offset, data=data)
                yield pb.StreamOutputResponse(chunk=chunk)

    def _is_over(self, effect: EffectView) -> bool:
        if self._attempt and effect.attempt > self._attempt:
            return True
        return effect.state in _SETTLED or (effect.attempt > 0 and effect.state not in _RUNS)

    def _end(self, over_since: float | None) -> pb.WatchEnd | None:
        over = over_since is not None and (not self._query.follow or time.monotonic() - over_since >= _LATE_SECONDS)
        if over:
            return pb.WatchEnd(reason=pb.WatchEnd.REASON_EFFECT_SETTLED)
        if self._service.engine.draining:
            return pb.WatchEnd(reason=pb.WatchEnd.REASON_MOVED)
        if not self._query.follow or time.monotonic() >= self._ends_at:
            return pb.WatchEnd(reason=pb.WatchEnd.REASON_LIFETIME)
        return None


def _stream(number: int) -> executor_pb.OutputStream.ValueType:
    return executor_pb.OutputStream.Value(executor_pb.OutputStream.Name(number))  # type: ignore[arg-type]


def _heartbeat() -> pb.WatchHeartbeat:
    return pb.WatchHeartbeat(server_time=timestamp(datetime.now(UTC)))


def _too_slow() -> pb.StreamOutputResponse:
    return pb.StreamOutputResponse(end=pb.WatchEnd(reason=pb.WatchEnd.REASON_SLOW))
