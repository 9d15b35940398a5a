"""Watchers as a client behind a bad network has them: they come back with their position until the end frame."""

import asyncio
import contextlib
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from backburner.scheduler.v1 import scheduler_service_pb2_grpc as pb_grpc
from tests.support.eventually import eventually
from tests.support.tcp_proxy import TcpProxy, tcp_proxy

Stream = tuple[str, int, int]
End = pb.WatchEnd
_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 50),
    ("grpc.use_local_subchannel_pool", 1),
]


class Watcher:
    """What a watcher has seen, and how it came by it. Each frame is checked against what was seen before."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.seqs: list[int] = []
        self.outputs: dict[Stream, bytearray] = defaultdict(bytearray)
        self.ends: Counter[str] = Counter()
        self.broken = 0
        self.done = False

    async def follow(self) -> None:
        """Watches to the end, however often the stream breaks."""
        async with grpc.aio.insecure_channel(self._address, options=_OPTIONS) as channel:
            client = pb_grpc.SchedulerServiceStub(channel)
            while not self.done:
                call = self.watch(client)
                try:
                    async for frame in call:
                        self.take(frame)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    self.broken += 1
                    await asyncio.sleep(0.01)
                finally:
                    call.cancel()

    def watch(self, client: pb_grpc.SchedulerServiceStub) -> Any:
        """A stream that goes on where this watcher is."""
        raise NotImplementedError

    def take(self, frame: Any) -> None:
        """Notes a frame."""
        kind = frame.WhichOneof("frame")
        if kind == "event":
            self.event(frame.event)
        elif kind == "output":
            chunk = frame.output.chunk
            self.append((frame.output.effect_id, frame.output.attempt, chunk.stream), chunk.offset, chunk.data)
        elif kind == "gap":
            assert frame.gap.reason != pb.LiveGap.REASON_SLOW, frame
        elif kind == "end":
            reason = End.Reason.Name(frame.end.reason).removeprefix("REASON_")
            self.ends[reason] += 1
            self.done = reason in ("RUN_CLOSED", "EFFECT_SETTLED", "PARKED")

    def event(self, event: Any) -> None:
        """Notes a journal event: later than every one before."""
        assert event.seq > (self.seqs[-1] if self.seqs else 0), f"seq {event.seq} after {self.seqs[-1]}"
        self.seqs.append(event.seq)
        if event.HasField("effect_dispatched"):
            for stream in (1, 2):
                _ = self.outputs[event.effect_id, event.attempt, stream]

    def append(self, stream: Stream, offset: int, data: bytes) -> None:
        """Notes output: it begins where the last one ended."""
        seen = self.outputs[stream]
        assert offset == len(seen), f"{stream}: offset {offset} after {len(seen)} bytes"
        seen += data

    @property
    def positions(self) -> list[pb.OutputPosition]:
        """Where the watcher is in every output."""
        return [
            pb.OutputPosition(effect_id=e, attempt=a, stream=s, offset=len(data))  # type: ignore[arg-type]
            for (e, a, s), data in self.outputs.items()
        ]

    @property
    def bytes_seen(self) -> int:
        """Bytes of output seen."""
        return sum(map(len, self.outputs.values()))

    @property
    def after_seq(self) -> int:
        """The last seq seen."""
        return self.seqs[-1] if self.seqs else 0


class RunWatcher(Watcher):
    """Watches a run with everything that it shows."""

    def __init__(self, address: str, run_id: str) -> None:
        super().__init__(address)
        self._run_id = run_id

    def watch(self, client: pb_grpc.SchedulerServiceStub) -> Any:
        include = [pb.WatchRunRequest.INCLUDE_PROGRESS, pb.WatchRunRequest.INCLUDE_OUTPUT]
        request = pb.WatchRunRequest(
            run_id=self._run_id, after_seq=self.after_seq, include=include, output_positions=self.positions
        )
        return client.WatchRun(request, wait_for_ready=True)

    def event(self, event: Any) -> None:
        assert event.seq == self.after_seq + 1, f"seq {event.seq} after {self.after_seq}"
        super().event(event)


class EffectWatcher(Watcher):
    """Watches one effect with its output."""

    def __init__(self, address: str, run_id: str, key: str) -> None:
        super().__init__(address)
        self.key = key
        self._run_id = run_id

    def watch(self, client: pb_grpc.SchedulerServiceStub) -> Any:
        request = pb.WatchEffectRequest(
            effect=pb.EffectName(run_id=self._run_id, key=self.key),
            after_seq=self.after_seq,
            include_output=True,
            output_positions=self.positions,
        )
        return client.WatchEffect(request, wait_for_ready=True)


class OutputReader(Watcher):
    """Reads one stream of one attempt by StreamOutput."""

    def __init__(self, address: str, run_id: str, key: str, attempt: int, stream: int) -> None:
        super().__init__(address)
        self._effect = pb.EffectName(run_id=run_id, key=key)
        self.stream: Stream = (key, attempt, stream)

    def watch(self, client: pb_grpc.SchedulerServiceStub) -> Any:
        _, attempt, stream = self.stream
        request = pb.StreamOutputRequest(
            effect=self._effect,
            attempt=attempt,
            stream=stream,  # type: ignore[arg-type]
            offset=len(self.outputs[self.stream]),
            follow=True,
        )
        return client.StreamOutput(request, wait_for_ready=True)

    def take(self, frame: Any) -> None:
        assert not frame.HasField("omitted"), frame
        if frame.HasField("chunk"):
            self.append(self.stream, frame.chunk.offset, frame.chunk.data)
        else:
            super().take(frame)


async def cut(proxy: TcpProxy, watcher: Watcher, times: int, draw: random.Random) -> None:
    """Breaks a watcher's stream so many times: after some bytes of it, or after a moment in which nothing came."""
    while watcher.broken < times:
        await _cut_once(proxy, watcher, draw)


async def _cut_once(proxy: TcpProxy, watcher: Watcher, draw: random.Random) -> None:
    broken, wanted = watcher.broken, proxy.forwarded + draw.randint(1, 30_000)
    await _within(draw.uniform(0.0, 0.2), lambda: proxy.forwarded >= wanted)
    proxy.cut()
    await _within(0.2, lambda: watcher.broken > broken)  # a cut that met no stream is none


async def _within(seconds: float, condition: Callable[[], bool]) -> None:
    """Waits for a condition, or for so long."""
    with contextlib.suppress(AssertionError):
        await eventually(condition, timeout=seconds, interval=0.002)


@asynccontextmanager
async def proxies(target: str, count: int) -> AsyncIterator[list[TcpProxy]]:
    """So many bad networks."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(tcp_proxy(target)) for _ in range(count)]
