"""Watchers under chaos: they come back with the last seq that they saw, to any scheduler."""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any, Final

import grpc

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from backburner.scheduler.v1 import scheduler_service_pb2_grpc as pb_grpc
from tests.crash.chaos.clients import CHANNEL_OPTIONS
from tests.crash.watchers import Watcher

#: How a stream ends that broke, that is not let in, or that a server which stops has no time left for.
_BROKEN: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)


class SeqWatcher(Watcher):
    """Watches the events of a run to its end."""

    def __init__(self, addresses: Sequence[str], run_id: str) -> None:
        super().__init__(addresses[0])
        self._addresses = addresses
        self.run_id = run_id
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to watch."""
        self._task = asyncio.create_task(self.follow(), name=f"watch {self.run_id}")

    async def until_done(self) -> None:
        """Waits for the end frame. Raises AssertionError for a gap, a repetition, or a wrong order."""
        assert self._task is not None
        await self._task

    async def follow(self) -> None:
        for address in itertools.cycle(self._addresses):
            async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
                await self._watch_once(pb_grpc.SchedulerServiceStub(channel))
            if self.done:
                return
            self.broken += 1
            await asyncio.sleep(0.05)

    async def _watch_once(self, client: pb_grpc.SchedulerServiceStub) -> None:
        call = self.watch(client)
        try:
            async with asyncio.timeout(10):  # a half-open stream is left after a while, as a client with deadlines does
                async for frame in call:
                    self.take(frame)
        except TimeoutError:
            return
        except grpc.aio.AioRpcError as error:
            if error.code() not in _BROKEN:
                raise
        finally:
            call.cancel()

    def watch(self, client: pb_grpc.SchedulerServiceStub) -> Any:
        return client.WatchRun(pb.WatchRunRequest(run_id=self.run_id, after_seq=self.after_seq))

    def take(self, frame: Any) -> None:
        super().take(frame)
        if frame.HasField("end") and frame.end.reason == pb.WatchEnd.REASON_PARKED:
            self.done = False  # whoever paused the run resumes it

    def event(self, event: Any) -> None:
        assert event.seq == self.after_seq + 1, f"run {self.run_id}: seq {event.seq} after {self.after_seq}"
        self.seqs.append(event.seq)
