"""Stage 7, PROGRESS: live frames of attempts, from the executors to whoever watches here.

A watcher has one `Feed`; it subscribes the feed to attempts. However many watch an attempt, one StreamProgress goes to
its executor. Nothing here is truth and nothing here waits for a watcher: a feed that is full loses its oldest frames
and says how many; an executor that cannot be dialled is announced, and its watchers live on heartbeat snapshots.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import grpc

from backburner.executor.v1 import executor_service_pb2 as pb
from backburner.executor.v1 import executor_service_pb2_grpc as pb_grpc

_log = logging.getLogger(__name__)

#: Attempts followed at a time on this replica; beyond it watchers get heartbeat snapshots only.
UPSTREAMS_MAX = 2000
FEED_FRAMES_MAX = 1024
FEED_BYTES_MAX = 1 << 20
_PAUSE_SECONDS_MIN = 0.1
_PAUSE_SECONDS_MAX = 10.0
_CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.use_local_subchannel_pool", 1),  # a dead executor's back-off must not delay others behind the same name
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """Names an attempt, and where its executor serves it."""

    effect_id: str
    attempt: int
    address: str


@dataclass(frozen=True, slots=True)
class LiveFrame:
    """A frame of an attempt. None: its executor cannot be reached."""

    source: Attempt
    frame: pb.StreamProgressResponse | None

    @property
    def size_bytes(self) -> int:
        """What it weighs in a feed."""
        return 0 if self.frame is None else len(self.frame.output.data)


class Feed:
    """The bounded mailbox of one watcher. `wake` is set while there is something in it."""

    def __init__(self, frames_max: int = FEED_FRAMES_MAX, bytes_max: int = FEED_BYTES_MAX) -> None:
        self._frames: deque[LiveFrame] = deque()
        self._frames_max = frames_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._lost = 0
        self.wake = asyncio.Event()

    def put(self, frame: LiveFrame) -> None:
        """Adds a frame; the oldest ones make room and are counted as lost."""
        self._frames.append(frame)
        self._bytes += frame.size_bytes
        while len(self._frames) > self._frames_max or self._bytes > self._bytes_max:
            self._bytes -= self._frames.popleft().size_bytes
            self._lost += 1
        self.wake.set()

    def drain(self) -> tuple[list[LiveFrame], int]:
        """Everything in it, and how many frames were lost before."""
        frames, lost = list(self._frames), self._lost
        self._frames.clear()
        self._bytes = self._lost = 0
        self.wake.clear()
        return frames, lost


@dataclass(slots=True, eq=False)
class _Upstream:
    """One StreamProgress to one executor, with its last state for those who join late."""

    source: Attempt
    with_output: bool
    feeds: set[Feed] = field(default_factory=set)
    task: asyncio.Task[None] | None = None
    cursor: int | None = None
    progress: pb.StreamProgressResponse | None = None
    usage: pb.StreamProgressResponse | None = None
    reachable: bool = True
    output_ends: dict[pb.OutputStream.ValueType, int] = field(default_factory=dict)
    """Bytes that the child had written to each stream when it was last heard of."""

    def join(self, feed: Feed) -> None:
        """Adds a watcher and brings it up to date."""
        self.feeds.add(feed)
        written = (_written(stream, end) for stream, end in self.output_ends.items())
        for frame in (self.progress, self.usage, *written):
            if frame is not None:
                feed.put(LiveFrame(self.source, frame))
        if not self.reachable:
            feed.put(LiveFrame(self.source, None))

    def publish(self, frame: pb.StreamProgressResponse) -> None:
        """Hands a frame to every watcher."""
        self.reachable = True
        self.cursor = frame.cursor
        for part in _parts(frame, with_output=self.with_output):
            self._remember(part)
            self._send(part)

    def unreachable(self) -> None:
        """Tells every watcher, once, that the executor cannot be dialled."""
        if self.reachable:
            self.reachable = False
            self._send(None)

    def _remember(self, frame: pb.StreamProgressResponse) -> None:
        if frame.HasField("progress"):
            self.progress = frame
        elif frame.HasField("usage"):
            self.usage = frame
        elif frame.HasField("output"):
            chunk = frame.output
            self.output_ends[chunk.stream] = chunk.offset + len(chunk.data)

    def _send(self, frame: pb.StreamProgressResponse | None) -> None:
        for feed in self.feeds:
            feed.put(LiveFrame(self.source, frame))


def _parts(frame: pb.StreamProgressResponse, *, with_output: bool) -> Iterator[pb.StreamProgressResponse]:
    """The frame as watchers want it: a snapshot becomes the progress and usage in it, and how much output there is."""
    if not frame.HasField("snapshot"):
        yield frame
        return
    attempt = frame.snapshot.attempt
    if attempt.HasField("progress"):
        yield pb.StreamProgressResponse(cursor=frame.cursor, progress=attempt.progress)
    if attempt.HasField("usage"):
        yield pb.StreamProgressResponse(cursor=frame.cursor, usage=attempt.usage)
    if with_output:
        # What was written before the stream was opened is not in it: who wants it has to know that it is there.
        yield _written(pb.OUTPUT_STREAM_STDOUT, attempt.stdout_bytes)
        yield _written(pb.OUTPUT_STREAM_STDERR, attempt.stderr_bytes)


def _written(stream: pb.OutputStream.ValueType, end: int) -> pb.StreamProgressResponse:
    """A piece without bytes: so far the child has written up to there."""
    return pb.StreamProgressResponse(output=pb.OutputChunk(stream=stream, offset=end))


class ProgressHub:
    """The live subscriptions of this replica."""

    def __init__(self, upstreams_max: int = UPSTREAMS_MAX) -> None:
        self._upstreams_max = upstreams_max
        self._upstreams: dict[tuple[Attempt, bool], _Upstream] = {}
        self._channels: dict[str, tuple[grpc.aio.Channel, int]] = {}

    def __len__(self) -> int:
        return len(self._upstreams)

    def subscribe(self, feed: Feed, source: Attempt, *, with_output: bool) -> bool:
        """Sends the attempt's frames to the feed; False when this replica follows too many attempts already."""
        upstream = self._upstreams.get((source, with_output))
        if upstream is None:
            if len(self._upstreams) >= self._upstreams_max:
                return False
            upstream = self._upstreams[source, with_output] = _Upstream(source, with_output)
            name = f"progress of {source.effect_id}/{source.attempt}"
            upstream.task = asyncio.create_task(self._follow(upstream), name=name)
        upstream.join(feed)
        return True

    def unsubscribe(self, feed: Feed, source: Attempt, *, with_output: bool) -> None:
        """Ends a subscription; the last one of an attempt ends its stream."""
        upstream = self._upstreams.get((source, with_output))
        if upstream is None:
            return
        upstream.feeds.discard(feed)
        if not upstream.feeds:
            del self._upstreams[source, with_output]
            if upstream.task is not None:
                upstream.task.cancel()

    async def aclose(self) -> None:
        """Ends all streams."""
        tasks = [upstream.task for upstream in self._upstreams.values() if upstream.task is not None]
        self._upstreams.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, upstream: _Upstream) -> None:
        async with self._channel(upstream.source.address) as channel:
            stub = pb_grpc.ExecutorServiceStub(channel)
            pause = _PAUSE_SECONDS_MIN
            while True:
                before = upstream.cursor
                if await _stream(stub, upstream):
                    return
                pause = _PAUSE_SECONDS_MIN if upstream.cursor != before else min(pause * 2, _PAUSE_SECONDS_MAX)
                await asyncio.sleep(pause * random.uniform(0.75, 1.25))

    @asynccontextmanager
    async def _channel(self, address: str) -> AsyncIterator[grpc.aio.Channel]:
        channel, users = self._channels.get(address) or (_dial(address), 0)
        self._channels[address] = channel, users + 1
        try:
            yield channel
        finally:
            channel, users = self._channels[address]
            self._channels[address] = channel, users - 1
            if users == 1:
                del self._channels[address]
                await channel.close()


def _dial(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)


async def _stream(stub: pb_grpc.ExecutorServiceStub, upstream: _Upstream) -> bool:
    """Follows one stream to its end. True: the attempt has ended."""
    request = pb.StreamProgressRequest(
        effect_id=upstream.source.effect_id,
        attempt=upstream.source.attempt,
        after_cursor=upstream.cursor,
        include_output=upstream.with_output,
    )
    call = stub.StreamProgress(request)
    try:
        async for frame in call:
            if frame.HasField("end"):
                return bool(frame.end.reason == pb.StreamEnd.REASON_ATTEMPT_ENDED)
            upstream.publish(frame)
    except grpc.aio.AioRpcError as error:
        _note(upstream, error)
    finally:
        # An abandoned call is never collected, so never cancelled: grpc/grpc#43462.
        with suppress(grpc.aio.BaseError):
            call.cancel()
    return False


def _note(upstream: _Upstream, error: grpc.aio.AioRpcError) -> None:
    if error.code() is grpc.StatusCode.OUT_OF_RANGE:
        upstream.cursor = None
    elif error.code() is not grpc.StatusCode.NOT_FOUND:
        # NOT_FOUND is an attempt that is not there yet or no more; the journal says which.
        _log.info(
            "no live progress from %s: %s",
            upstream.source.address,
            error.code().name,
            extra={"action": "progress_unreachable", "effect_id": upstream.source.effect_id},
        )
        upstream.unreachable()
