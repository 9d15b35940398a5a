"""Output from two sources, joined by offset: whatever the order and the overlap, each byte once."""

import random
from collections.abc import AsyncIterator
from typing import Any, cast

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from scheduler_service.api import joined_output
from scheduler_service.api.joined_output import HOLD_BYTES_MAX, JoinedOutput, Piece
from scheduler_service.api.recorded import RecordedOutput

REF = ("effect", 1)
KEY = ("effect", 1, 1)


class FakeReads:
    """Chunks as the journal has them."""

    def __init__(self) -> None:
        self.chunks: list[tuple[int, bytes]] = []

    async def output(self, _e: str, _a: int, stream: int, offset: int, limit: int) -> list[tuple[int, bytes]]:
        found = [(at, data) for at, data in self.chunks if stream == 1 and at + len(data) > offset]
        return found[:limit]


def joined(reads: FakeReads, hold_s: float = 60.0, at: int | None = None) -> JoinedOutput:
    recorded = RecordedOutput(cast("Any", reads))
    return JoinedOutput(recorded, {} if at is None else {KEY: at}, hold_s)


def live(offset: int, data: bytes) -> executor_pb.OutputChunk:
    return executor_pb.OutputChunk(stream=1, offset=offset, data=data)  # type: ignore[arg-type]


async def taken(pieces: AsyncIterator[Any]) -> list[Any]:
    return [piece async for piece in pieces]


async def test_a_live_piece_that_lies_ahead_waits_for_the_record_of_what_is_before(monkeypatch: Any) -> None:
    monkeypatch.setattr(joined_output, "RETRY_SECONDS", 0.0)
    reads = FakeReads()
    output = joined(reads, at=0)
    assert await taken(output.live(REF, live(10, b"klm"))) == []
    assert output.waits
    assert await taken(output.due()) == []
    reads.chunks = [(0, b"abcdefghij")]
    assert await taken(output.due()) == [(REF, Piece(1, 0, b"abcdefghij")), (REF, Piece(1, 10, b"klm"))]
    assert not output.waits


async def test_a_piece_without_bytes_brings_what_is_recorded_before_it(monkeypatch: Any) -> None:
    """What a child wrote before the stream was opened comes with no other piece, perhaps for hours."""
    monkeypatch.setattr(joined_output, "RETRY_SECONDS", 0.0)
    reads = FakeReads()
    output = joined(reads, at=0)
    assert await taken(output.live(REF, live(2, b""))) == []
    reads.chunks = [(0, b"up")]
    assert await taken(output.due()) == [(REF, Piece(1, 0, b"up"))]
    assert not output.waits
    assert await taken(output.live(REF, live(2, b"down"))) == [Piece(1, 2, b"down")]


async def test_without_bytes_to_send_nothing_is_skipped_that_may_be_recorded_late() -> None:
    reads = FakeReads()
    output = joined(reads, hold_s=0.0, at=0)
    assert await taken(output.live(REF, live(2, b""))) == []
    assert not output.waits
    reads.chunks = [(0, b"up")]
    assert await taken(output.recorded(REF)) == [Piece(1, 0, b"up")]


async def test_what_is_never_recorded_is_announced_as_missing_and_skipped() -> None:
    output = joined(FakeReads(), hold_s=0.0, at=0)
    assert await taken(output.live(REF, live(10, b"klm"))) == [Piece(1, 10), Piece(1, 10, b"klm")]


async def test_what_waits_is_bounded() -> None:
    output = joined(FakeReads(), at=0)
    half = HOLD_BYTES_MAX // 2 + 1
    assert await taken(output.live(REF, live(10, b"x" * half))) == []
    pieces = await taken(output.live(REF, live(10 + half, b"y" * half)))
    assert [(piece.offset, len(piece.data)) for piece in pieces] == [(10, 0), (10, half), (10 + half, half)]


async def test_the_rest_is_what_the_record_has_beyond_what_was_sent() -> None:
    reads = FakeReads()
    output = joined(reads)
    output.from_start(REF)
    assert await taken(output.live(REF, live(0, b"abc"))) == [Piece(1, 0, b"abc")]
    reads.chunks = [(0, b"abcdef"), (100, b"tail")]
    assert await taken(output.recorded(REF)) == [Piece(1, 3, b"def"), Piece(1, 100), Piece(1, 100, b"tail")]
    output.forget(REF)
    assert await taken(output.recorded(REF)) == []


async def test_any_interleaving_of_record_and_stream_gives_each_byte_once(monkeypatch: Any) -> None:
    monkeypatch.setattr(joined_output, "RETRY_SECONDS", 0.0)
    for seed in range(200):
        draw = random.Random(seed)
        written = draw.randbytes(400)
        reads, stored, sent = FakeReads(), 0, draw.randint(0, 100)
        output = joined(reads, at=draw.choice([0, sent]))
        pieces: list[Piece] = []
        while sent < len(written):
            if draw.random() < 0.4:
                size = draw.randint(1, 60)
                reads.chunks += [(stored, written[stored : stored + size])] if stored < len(written) else []
                stored += size
            elif draw.random() < 0.6:
                back = draw.randint(0, min(sent, 20))
                size = draw.randint(1, 40)
                pieces += await taken(output.live(REF, live(sent - back, written[sent - back : sent + size])))
                sent += size
            else:
                pieces += [piece for _, piece in await taken(output.due())]
        reads.chunks.append((0, written))
        reads.chunks.sort()
        pieces += await taken(output.recorded(REF))
        start = pieces[0].offset
        assert all(piece.data for piece in pieces), f"seed {seed}"
        assert b"".join(piece.data for piece in pieces) == written[start:], f"seed {seed}"
