"""Bounds of watches: how many at a time, how long each, and what happens to one that reads too slowly."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from scheduler_service.errors import TooManyWatchers

F = TypeVar("F")

#: Frames that are ready before a watcher takes them.
BUFFER_FRAMES_MAX: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Times of a watch."""

    #: Idle time after which a heartbeat is sent.
    heartbeat_s: float = 15.0
    #: Shortest lifetime; the longest is half as long again, so that watches do not all come back at once.
    lifetime_s: float = 1200.0
    #: Longest that a reader may take to make room.
    patience_s: float = 30.0
    #: Period of the poll behind the wakes.
    poll_s: float = 1.0
    #: How long live output waits for the record of what lies before it.
    hold_s: float = 5.0

    def end(self) -> float:
        """When a watch that begins now has lived, by the monotonic clock."""
        return time.monotonic() + self.lifetime_s * random.uniform(1.0, 1.5)

    def next_poll(self) -> float:
        """Seconds to the next poll."""
        return self.poll_s * random.uniform(0.75, 1.0)


class Watchers:
    """Counts the watches of this replica."""

    def __init__(self, watchers_max: int) -> None:
        self._watchers_max = watchers_max
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @contextmanager
    def one(self) -> Iterator[None]:
        """Room for one watch. Raises TooManyWatchers."""
        if self._count >= self._watchers_max:
            raise TooManyWatchers(self._watchers_max)
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


async def at_readers_pace(
    frames: AsyncGenerator[F, None], patience_s: float, slow: Callable[[], F]
) -> AsyncIterator[F]:
    """The frames, a few ahead of their reader. One that makes no room for too long gets `slow()` as its last frame.

    Whatever a frame's maker holds (its subscriptions, its place among the watchers) is given up at that moment, not
    when a reader that is stuck wakes up.
    """
    ready: asyncio.Queue[F | None] = asyncio.Queue()  # bounded by `room`; the end mark always finds a place
    room = asyncio.Semaphore(BUFFER_FRAMES_MAX)
    pump = asyncio.create_task(_pump(frames, ready, room, patience_s), name="watch")
    try:
        while (frame := await ready.get()) is not None:
            room.release()
            yield frame
        if await pump:
            yield slow()
    finally:
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)


async def _pump(
    frames: AsyncGenerator[F, None], ready: asyncio.Queue[F | None], room: asyncio.Semaphore, patience_s: float
) -> bool:
    """Makes frames while there is room for them. True: the reader was too slow."""
    try:
        async with aclosing(frames):
            async for frame in frames:
                try:
                    async with asyncio.timeout(patience_s):
                        await room.acquire()
                except TimeoutError:
                    return True
                ready.put_nowait(frame)
        return False
    finally:
        ready.put_nowait(None)
