"""Retention by the clock: whole runs that ended long ago are removed, a step at a time, by one replica at a time."""

import asyncio
import logging
import random
from typing import Final

from scheduler_service.journal import Journal, JournalUnavailable, Prune

log = logging.getLogger(__name__)

_DAY_SECONDS: Final = 86_400.0
_PASS_SECONDS_MAX: Final = 600.0
_PASS_SECONDS_MIN: Final = 0.2
#: Between two steps, so that others get at the disk.
_STEP_SECONDS: Final = 0.1


class Retention:
    """Removes runs that ended more than `days` ago; 0: none."""

    def __init__(self, journal: Journal, days: float, actor: str) -> None:
        self._journal = journal
        self._days = days
        self._actor = actor

    async def run(self) -> None:
        """Passes until cancelled."""
        if not self._days:
            await asyncio.Event().wait()  # a service that ends has died
        pause = min(_PASS_SECONDS_MAX, max(_PASS_SECONDS_MIN, self._days * _DAY_SECONDS / 10))
        while True:
            try:
                await self._pass()
            except JournalUnavailable as error:
                log.warning("ended runs are not removed now: %s", error)
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))

    async def _pass(self) -> None:
        step = Prune(older_than_s=self._days * _DAY_SECONDS, reason="retention", actor=self._actor)
        while (done := await self._journal.prune(step)).more and done.outcome == "ok":
            log.info("%d ended runs with %d rows are removed", done.runs, done.journal_rows)
            await asyncio.sleep(_STEP_SECONDS)
