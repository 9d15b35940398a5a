"""How far each journal has come, as this replica hears of it, and who waits to hear more."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

#: Runs whose head is remembered; the oldest is forgotten, and then reads as 0 (ask the journal).
HEADS_MAX = 50_000


class Heads:
    """Newest seq by run; a hint that is never ahead of what is committed."""

    def __init__(self) -> None:
        self._heads: OrderedDict[str, int] = OrderedDict()
        self._stops: OrderedDict[str, int] = OrderedDict()
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._stop_waiters: dict[str, set[asyncio.Future[None]]] = {}
        #: Set by the engine: tells the other replicas of a run that has moved on, or stopped.
        self.on_news: Callable[[str, bool], None] = lambda run_id, stopped: None

    def get(self, run_id: str) -> int:
        """Newest seq heard of, 0 when none."""
        return self._heads.get(run_id, 0)

    def advance(self, run_id: str, seq: int) -> None:
        """Notes that the journal has come to `seq`."""
        if seq <= self._heads.get(run_id, 0):
            return
        self._heads[run_id] = seq
        self._heads.move_to_end(run_id)
        if len(self._heads) > HEADS_MAX:
            self._heads.popitem(last=False)
        _wake(self._waiters, run_id)
        self.on_news(run_id, False)

    def forget(self) -> None:
        """What was heard of may be gone: whoever waits looks again."""
        self._heads.clear()
        self._stops.clear()
        for waiters in (self._waiters, self._stop_waiters):
            for run_id in list(waiters):
                _wake(waiters, run_id)

    def stopped(self, run_id: str, seq: int) -> None:
        """Notes that the run has ended or is parked, at `seq`."""
        self._stops[run_id] = seq
        self._stops.move_to_end(run_id)
        if len(self._stops) > HEADS_MAX:
            self._stops.popitem(last=False)
        _wake(self._stop_waiters, run_id)
        self.on_news(run_id, True)

    async def wait_stopped(self, run_id: str, after_seq: int, timeout_s: float) -> None:
        """Returns as soon as a stop beyond `after_seq` is heard of, or after the timeout."""
        if self._stops.get(run_id, 0) <= after_seq:
            await _wait(self._stop_waiters, run_id, timeout_s)

    async def wait(self, run_id: str, after_seq: int, timeout_s: float) -> int:
        """Returns as soon as a seq beyond `after_seq` is heard of, or after the timeout."""
        if self.get(run_id) > after_seq:
            return self.get(run_id)
        await _wait(self._waiters, run_id, timeout_s)
        return self.get(run_id)


def _wake(waiters: dict[str, set[asyncio.Future[None]]], run_id: str) -> None:
    for waiter in waiters.pop(run_id, ()):
        if not waiter.done():
            waiter.set_result(None)


async def _wait(waiters: dict[str, set[asyncio.Future[None]]], run_id: str, timeout_s: float) -> None:
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    mine = waiters.setdefault(run_id, set())
    mine.add(waiter)
    try:
        async with asyncio.timeout(timeout_s):
            await waiter
    except TimeoutError:
        return
    finally:
        mine.discard(waiter)
        if not mine and waiters.get(run_id) is mine:
            del waiters[run_id]
