"""Output of a watch's attempts without gap or overlap: what was recorded first, then what comes live, joined by offset.

A live piece that lies beyond what was sent is held until the journal has what is between, because executors record in
batches: for a bounded time and size, after which the hole is announced and skipped.
"""

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from scheduler_service.api.effect_requests import STREAMS
from scheduler_service.api.recorded import RecordedOutput
from scheduler_service.api.run_requests import OutputKey

#: Bytes of one stream that wait at most.
HOLD_BYTES_MAX: Final = 256 << 10
#: How often the journal is asked for what lies before.
RETRY_SECONDS: Final = 0.1

AttemptRef = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a stream; without data: what lies before `offset` is missing."""

    stream: int
    offset: int
    data: bytes = b""


@dataclass(slots=True)
class _Held:
    """Live pieces of one stream that wait."""

    until: float
    pieces: list[Piece] = field(default_factory=list)
    size: int = 0
    tried_at: float = 0.0

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.size += len(piece.data)

    def overdue(self, now: float) -> bool:
        return now >= self.until or self.size > HOLD_BYTES_MAX


class JoinedOutput:
    """The positions of one watch in the outputs of its attempts. `hold_s`: how long live output waits."""

    def __init__(self, recorded: RecordedOutput, positions: Mapping[OutputKey, int], hold_s: float) -> None:
        self._recorded = recorded
        self._hold_s = hold_s
        self._positions = dict(positions)
        self._held: dict[OutputKey, _Held] = {}

    @property
    def waits(self) -> bool:
        """True while live output waits for what lies before it."""
        return bool(self._held)

    def from_start(self, ref: AttemptRef) -> None:
        """The watch has seen the attempt begin: all of its output is wanted, unless the watcher says otherwise."""
        for stream in STREAMS:
            self._positions.setdefault((*ref, stream), 0)

    def attempts_of(self, effect_id: str) -> list[AttemptRef]:
        """Attempts of an effect that have a position."""
        return sorted({(key[0], key[1]) for key in self._positions if key[0] == effect_id})

    async def recorded(self, ref: AttemptRef) -> AsyncIterator[Piece]:
        """What the journal has after the positions of an attempt."""
        for stream in STREAMS:
            if (*ref, stream) in self._positions:
                async for piece in self._until((*ref, stream), None):
                    yield piece

    async def live(self, ref: AttemptRef, chunk: executor_pb.OutputChunk) -> AsyncIterator[Piece]:
        """Takes a live piece; answers what can be sent. One without bytes says that there is output before it."""
        key, piece = (*ref, int(chunk.stream)), Piece(chunk.stream, chunk.offset, chunk.data)
        position = self._positions.setdefault(key, piece.offset)
        held = self._held.get(key)
        if held is None and piece.offset <= position:
            for fresh in self._fresh(key, piece):
                yield fresh
            return
        if held is None:
            held = self._held[key] = _Held(time.monotonic() + self._hold_s)
        held.add(piece)
        async for joined in self._join(key, held):
            yield joined

    async def due(self) -> AsyncIterator[tuple[AttemptRef, Piece]]:
        """What was held and can be sent now."""
        for key, held in list(self._held.items()):
            async for piece in self._join(key, held):
                yield (key[0], key[1]), piece

    def forget(self, ref: AttemptRef) -> None:
        """The attempt has ended, and all of it was sent."""
        for stream in STREAMS:
            self._positions.pop((*ref, stream), None)
            self._held.pop((*ref, stream), None)

    async def _join(self, key: OutputKey, held: _Held) -> AsyncIterator[Piece]:
        now, first = time.monotonic(), held.pieces[0].offset
        overdue = held.overdue(now)
        if not overdue and now - held.tried_at < RETRY_SECONDS:
            return
        held.tried_at = now
        async for piece in self._until(key, first):
            yield piece
        if first > self._positions[key]:
            if not overdue:
                return
            if not any(piece.data for piece in held.pieces):
                del self._held[key]  # nothing has to go past the hole: the attempt's end brings what is recorded late
                return
            yield Piece(key[2], first)
        del self._held[key]
        for piece in held.pieces:
            for fresh in self._fresh(key, piece):
                yield fresh

    async def _until(self, key: OutputKey, end: int | None) -> AsyncIterator[Piece]:
        effect_id, attempt, stream = key
        start = self._positions[key]
        async for offset, data in self._recorded.chunks(effect_id, attempt, stream, start, end):
            if offset > self._positions[key]:
                yield Piece(stream, offset)  # left out between the head and the tail of what is kept
            self._positions[key] = offset + len(data)
            yield Piece(stream, offset, data)

    def _fresh(self, key: OutputKey, piece: Piece) -> Iterator[Piece]:
        """The part of a live piece that was not sent."""
        position = self._positions[key]
        data = piece.data[max(0, position - piece.offset) :]
        if data:
            offset = max(position, piece.offset)
            self._positions[key] = offset + len(data)
            yield Piece(piece.stream, offset, data)
