"""Ends running attempts that nobody can ask for any more, before the scheduler has to take them for lost.

From the other side, an executor that is cut off looks like a dead one: after the grace its attempts are lost, are
retried elsewhere, and what they still do is for nothing. With `kill_when_cut_off` it ends them by itself after half of
the grace, so that their death is proven and in the journal before the next attempt begins. The same is done, asked or
not, once another executor has taken over its name.
"""

import asyncio
import logging
import time
from typing import Final

from executor_service.attempts import Attempts
from executor_service.outcome import Ending

log = logging.getLogger(__name__)

#: Share of the grace after which attempts are ended: the rest is for their own grace, and for the commit.
GRACE_SHARE: Final = 0.5
_TICK_SECONDS: Final = 0.1

CUT_OFF: Final = Ending("failed", "EXECUTOR_LOST", "its executor was cut off from the scheduler, and has ended it")
TAKEN_OVER: Final = Ending("failed", "DRAINED", "another executor has taken over the name of its executor")


class CutOff:
    """Knows when the scheduler was last heard, and what follows from its silence."""

    def __init__(self, attempts: Attempts, *, kill: bool) -> None:
        self._attempts = attempts
        self._kill = kill
        self._heard_at = time.monotonic()
        self._grace_s: float | None = None
        #: When the scheduler was last heard, if the tick before found that to be too long ago.
        self._found: float | None = None
        self.taken_over = False

    def heard(self) -> None:
        """A frame has come from the scheduler."""
        self._heard_at = time.monotonic()

    def welcomed(self, grace_s: float) -> None:
        """A session has begun. `grace_s`: how long the scheduler waits for this executor."""
        self._grace_s = grace_s

    async def run(self) -> None:
        """Ends attempts when it is time, until cancelled."""
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._tick()

    def _tick(self) -> None:
        """Two ticks must find the same silence: after a standstill of ours, frames of the scheduler may lie unread."""
        found, self._found = self._found, self._heard_at if self._is_over() else None
        if found is not None and found == self._found:
            self._end()

    def _is_over(self) -> bool:
        if self._grace_s is None or not (self._kill or self.taken_over):
            return False
        return time.monotonic() - self._heard_at > self._grace_s * GRACE_SHARE

    def _end(self) -> None:
        running = [held for held in self._attempts if held.may_end]
        if running:
            log.error("the scheduler has not been heard for too long: %d running attempts are ended", len(running))
        for held in running:
            held.end(TAKEN_OVER if self.taken_over else CUT_OFF)
