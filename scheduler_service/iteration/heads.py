"""How far each journal has come, as this replica hears of it, and who waits to hear more."""

import asyncio
from collections import OrderedDict

#: Runs whose head is remembered; the oldest is forgotten, and then reads as 0 (ask the journal).
HEADS_MAX = 50_000


class Heads:
    """Newest seq by run; a hint that is never ahead of what is committed."""

    def __init__(self) -> None:
        self._heads: OrderedDict[str, int] = OrderedDict()
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}

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
        for waiter in self._waiters.pop(run_id, ()):
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, run_id: str, after_seq: int, timeout_s: float) -> int:
        """Returns as soon as a seq beyond `after_seq` is heard of, or after the timeout."""
        if self.get(run_id) > after_seq:
            return self.get(run_id)
        waiter = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(run_id, set())
        waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            return self.get(run_id)
        finally:
            waiters.discard(waiter)
            if not waiters and self._waiters.get(run_id) is waiters:
                del self._waiters[run_id]
        return self.get(run_id)
