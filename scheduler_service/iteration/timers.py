"""Durable timers: when each comes due, by this replica's reading of the database's clock.

Timers live in memory for owned runs only; the journal (TIMER_SET without TIMER_FIRED) is where they come from after a
takeover. They fire in the order (due, ordinal).
"""

import asyncio
import heapq
from collections.abc import Callable
from datetime import datetime

from scheduler_service.clock import DatabaseClock

#: Runs that ended, and timers that were set, since the last look at which timers are still needed.
COMPACT_RUNS = 1000
COMPACT_TIMERS = 10_000


class Timers:
    """Calls `fire(run_id, ordinal)` once the database's clock has passed a timer's due time.

    `waits(run_id, ordinal)` says whether a timer is still needed; False only when it surely is not.
    """

    def __init__(
        self, fire: Callable[[str, int], None], waits: Callable[[str, int], bool], clock: DatabaseClock
    ) -> None:
        self._fire = fire
        self._clock = clock
        self._waits = waits
        self._gone: set[str] = set()
        self._compact_at = COMPACT_TIMERS
        self._heap: list[tuple[float, int, str]] = []
        self._known: set[tuple[str, int]] = set()
        self._handle: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, run_id: str, ordinal: int, due: datetime) -> None:
        """Notes a timer; noting it twice is harmless."""
        self._gone.discard(run_id)
        if (run_id, ordinal) in self._known:
            return
        self._known.add((run_id, ordinal))
        heapq.heappush(self._heap, (due.timestamp(), ordinal, run_id))
        if len(self._heap) > self._compact_at:
            self._compact()
        self._arm()

    def forget(self, run_id: str) -> None:
        """Lets go of the timers of a run."""
        self._gone.add(run_id)
        if len(self._gone) > COMPACT_RUNS:
            self._compact()

    def _compact(self) -> None:
        """Drops the timers of runs that are gone, and those that were cancelled."""
        kept = [(due, ordinal, run_id) for due, ordinal, run_id in self._heap
                if run_id not in self._gone and self._waits(run_id, ordinal)]  # fmt: skip
        heapq.heapify(kept)
        self._heap = kept
        self._known = {(run_id, ordinal) for _, ordinal, run_id in kept}
        self._gone.clear()
        self._compact_at = 2 * len(kept) + COMPACT_TIMERS

    def _arm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        if self._heap:
            # One millisecond late: a timer must never be seen to fire before its time.
            delay = max(0.0, self._heap[0][0] - self._clock.now() + 0.001)
            self._handle = asyncio.get_running_loop().call_later(min(delay, 3600.0), self._due)

    def _due(self) -> None:
        self._handle = None
        due: list[tuple[str, int]] = []
        while self._heap and self._heap[0][0] <= self._clock.now():
            _, ordinal, run_id = heapq.heappop(self._heap)
            self._known.discard((run_id, ordinal))
            due.append((run_id, ordinal))
        self._arm()
        for run_id, ordinal in due:
            self._fire(run_id, ordinal)
