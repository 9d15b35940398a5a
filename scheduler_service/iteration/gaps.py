"""Reads from the journal what a run was told of and did not hear: a notice was lost, or another replica wrote."""

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from scheduler_service.iteration.runs import Phase, RunState
from scheduler_service.journal import JournalUnavailable

if TYPE_CHECKING:
    from scheduler_service.iteration.loop import Loop

#: How long a notice that was overtaken may take before the gap is read from the journal.
_GAP_SECONDS: Final = 0.01
GAP_PAGE: Final = 1000


class Gaps:
    """Fills the gaps of owned runs, one read at a time for each."""

    def __init__(self, loop: "Loop") -> None:
        self._loop = loop

    def fill(self, run: RunState) -> None:
        """Has read what lies between what was fed and the head, when something does."""
        if run.head > run.fed and not run.reading:
            run.reading = True
            self._loop.spawn_for(run, partial(self._read_gap, run), "gap")

    async def _read_gap(self, run: RunState) -> None:
        """Reads what was not heard; the notice that was overtaken gets a moment first."""
        await asyncio.sleep(_GAP_SECONDS)
        run.reading = False
        if run.phase is Phase.PARKED and run.head > run.fed:
            await self._read_rest(run)
            return
        if run.phase is not Phase.IDLE or run.head <= run.fed or run.fed + 1 in run.inbox:
            self._loop.kick(run)
            return
        await self._read_rest(run)

    async def _read_rest(self, run: RunState) -> None:
        try:
            events = await self._loop.journal.read_events(run.run_id, run.fed, GAP_PAGE)
        except JournalUnavailable:
            return  # the poll comes back to it
        self._loop.hear(run.run_id, events)
