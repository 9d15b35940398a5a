"""Live progress over real streams: one upstream an attempt, bounded feeds, reconnects from the cursor."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from backburner.executor.v1 import executor_service_pb2 as pb
from backburner.executor.v1 import executor_service_pb2_grpc as pb_grpc
from backburner.journal.v1 import journal_pb2
from scheduler_service.dispatch.progress import Attempt, Feed, LiveFrame, ProgressHub
from tests.support.eventually import eventually


class FakeExecutor(pb_grpc.ExecutorServiceServicer):
    """Sends what it is told, and says who asked for what."""

    def __init__(self) -> None:
        self.requests: list[pb.StreamProgressRequest] = []
        self.open = 0
        self.log: list[pb.StreamProgressResponse] = []
        self.cut = asyncio.Event()
        self.grown = asyncio.Event()

    def say(self, **frame: Any) -> None:
        self.log.append(pb.StreamProgressResponse(cursor=len(self.log) + 1, **frame))
        self.grown.set()

    async def StreamProgress(self, request: Any, context: Any) -> AsyncIterator[pb.StreamProgressResponse]:
        self.requests.append(request)
        self.open += 1
        try:
            at = request.after_cursor if request.HasField("after_cursor") else 0
            while not self.cut.is_set():
                while at < len(self.log):
                    yield self.log[at]
                    at += 1
                self.grown.clear()
                await self.grown.wait()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        finally:
            self.open -= 1

    async def ListAttempts(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def Drain(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


@asynccontextmanager
async def executor() -> AsyncIterator[tuple[FakeExecutor, Attempt]]:
    servicer, server = FakeExecutor(), grpc.aio.server()
    pb_grpc.add_ExecutorServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield servicer, Attempt("effect", 1, f"127.0.0.1:{port}")
    finally:
        await server.stop(None)


@asynccontextmanager
async def hub(**options: Any) -> AsyncIterator[ProgressHub]:
    made = ProgressHub(**options)
    try:
        yield made
    finally:
        await made.aclose()


def ordinals(feed: Feed, into: list[int]) -> list[int]:
    into += [f.frame.progress.ordinal for f in feed.drain()[0] if f.frame and f.frame.HasField("progress")]
    return into


async def came(feed: Feed, so_far: list[int], expected: list[int]) -> None:
    def all_there() -> bool:
        return ordinals(feed, so_far) == expected

    await eventually(all_there)


async def test_many_watchers_share_one_stream_and_late_ones_are_brought_up_to_date() -> None:
    async with executor() as (servicer, source), hub() as shared:
        first, second, late = Feed(), Feed(), Feed()
        assert shared.subscribe(first, source, with_output=False)
        assert shared.subscribe(second, source, with_output=False)
        servicer.say(progress=journal_pb2.Progress(ordinal=1))
        got: tuple[list[int], list[int]] = ([], [])
        await came(first, got[0], [1])
        await came(second, got[1], [1])
        shared.subscribe(late, source, with_output=False)
        assert ordinals(late, []) == [1]
        assert len(servicer.requests) == 1
        for feed in (first, second, late):
            shared.unsubscribe(feed, source, with_output=False)
        await eventually(lambda: servicer.open == 0)
        assert len(shared) == 0


async def test_watchers_of_output_are_told_how_much_there_was_before_they_came() -> None:
    async with executor() as (servicer, source), hub() as shared:
        first, late, blind = Feed(), Feed(), Feed()
        shared.subscribe(first, source, with_output=True)
        servicer.say(snapshot=pb.AttemptSnapshot(attempt=pb.Attempt(stdout_bytes=3)))
        servicer.say(output=pb.OutputChunk(stream=pb.OUTPUT_STREAM_STDOUT, offset=3, data=b"de"))
        assert await outputs(first, 3) == [(1, 3, b""), (2, 0, b""), (1, 3, b"de")]
        shared.subscribe(late, source, with_output=True)
        assert await outputs(late, 2) == [(1, 5, b""), (2, 0, b"")]
        shared.subscribe(blind, source, with_output=False)
        assert await outputs(blind, 1) == [(1, 3, b"de")]  # this executor sends it unasked; nothing is added


async def outputs(feed: Feed, count: int) -> list[tuple[int, int, bytes]]:
    """So many pieces of output, as (stream, offset, data)."""
    found: list[tuple[int, int, bytes]] = []

    def enough() -> bool:
        frames = [item.frame for item in feed.drain()[0] if item.frame and item.frame.HasField("output")]
        found.extend((frame.output.stream, frame.output.offset, frame.output.data) for frame in frames)
        return len(found) >= count

    await eventually(enough)
    return found


async def test_a_broken_stream_is_resumed_from_its_cursor() -> None:
    async with executor() as (servicer, source), hub() as shared:
        feed = Feed()
        got: list[int] = []
        shared.subscribe(feed, source, with_output=False)
        servicer.say(progress=journal_pb2.Progress(ordinal=1))
        await came(feed, got, [1])
        servicer.cut.set()
        servicer.grown.set()
        await eventually(lambda: servicer.open == 0)
        servicer.cut.clear()
        servicer.say(progress=journal_pb2.Progress(ordinal=2))
        await came(feed, got, [1, 2])
        assert servicer.requests[-1].after_cursor == 1


async def test_an_executor_that_cannot_be_dialled_is_announced_once() -> None:
    async with hub() as shared:
        feed = Feed()
        shared.subscribe(feed, Attempt("effect", 1, "127.0.0.1:1"), with_output=False)
        await eventually(feed.wake.is_set)
        await asyncio.sleep(0.4)
        frames, _ = feed.drain()
        assert [item.frame for item in frames] == [None]


async def test_the_number_of_streams_is_bounded() -> None:
    async with executor() as (_, source), hub(upstreams_max=1) as shared:
        assert shared.subscribe(Feed(), source, with_output=False)
        assert not shared.subscribe(Feed(), Attempt("other", 1, source.address), with_output=False)


@pytest.mark.invariant("I11")
def test_a_feed_is_bounded_by_frames_and_bytes_and_counts_what_it_lost() -> None:
    source = Attempt("effect", 1, "nowhere:1")
    feed = Feed(frames_max=10, bytes_max=1000)
    for cursor in range(25):
        feed.put(LiveFrame(source, pb.StreamProgressResponse(cursor=cursor)))
    frames, lost = feed.drain()
    assert ([item.frame.cursor for item in frames if item.frame], lost) == (list(range(15, 25)), 15)
    for _ in range(5):
        feed.put(LiveFrame(source, pb.StreamProgressResponse(output=pb.OutputChunk(data=b"x" * 400))))
    frames, lost = feed.drain()
    assert (len(frames), lost) == (2, 3)
    assert not feed.wake.is_set()
