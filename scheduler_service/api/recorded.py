"""Captured output as it was recorded, in pieces that fit a message."""

from collections.abc import AsyncIterator
from typing import Final

from scheduler_service.api.limits import OUTPUT_CHUNK_BYTES_MAX
from scheduler_service.journal.client_reads import ClientReads

_ROWS_PER_READ: Final = 32


class RecordedOutput:
    """Reads captured output."""

    def __init__(self, reads: ClientReads) -> None:
        self._reads = reads

    async def chunks(
        self, effect_id: str, attempt: int, stream: int, offset: int, until: int | None = None
    ) -> AsyncIterator[tuple[int, bytes]]:
        """What is recorded of a stream from `offset` on, up to `until`: (offset, bytes). Offsets jump over holes."""
        position = offset
        while until is None or position < until:
            rows = await self._reads.output(effect_id, attempt, stream, position, _ROWS_PER_READ)
            if not rows:
                return
            for start, data in rows:
                for at, piece in _pieces(start, data, position, until):
                    position = at + len(piece)
                    yield at, piece
                position = max(position, start + len(data))


def _pieces(start: int, data: bytes, position: int, until: int | None) -> list[tuple[int, bytes]]:
    begin = max(0, position - start)
    end = len(data) if until is None else min(len(data), until - start)
    return [
        (start + at, data[at : min(at + OUTPUT_CHUNK_BYTES_MAX, end)])
        for at in range(begin, end, OUTPUT_CHUNK_BYTES_MAX)
    ]
