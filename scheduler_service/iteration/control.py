"""Run control from outside: a row in one commit, then the run hears of it like of any other event.

The loop does the rest wherever the run's owner is: a run that hears RUN_HALTED is parked, one that hears RUN_RESUMED
is replayed with the code of today, a signal is fed in its turn.
"""

from scheduler_service.iteration.loop import Loop
from scheduler_service.journal import ControlOutcome, ControlRequest, Journal, SignalOutcome, SignalRequest


class RunControl:
    """Implements `api.engine.ControlApi`."""

    def __init__(self, journal: Journal, loop: Loop) -> None:
        self._controls = journal.controls
        self._loop = loop

    async def halt(self, request: ControlRequest) -> ControlOutcome:
        """Pauses a run; durable when this returns."""
        return self._told(request, await self._controls.halt(request))

    async def resume(self, request: ControlRequest) -> ControlOutcome:
        """Lets a halted or parked run go on."""
        return self._told(request, await self._controls.resume(request))

    async def signal(self, request: SignalRequest) -> SignalOutcome:
        """Sends a message to a run."""
        outcome = await self._controls.signal(request)
        if outcome.extra:
            self._loop.hear_rows(request.run_id, outcome.extra, outcome.recorded_at, request.actor)
        return outcome

    def _told(self, request: ControlRequest, outcome: ControlOutcome) -> ControlOutcome:
        if outcome.extra:
            self._loop.hear_rows(request.run_id, outcome.extra, outcome.recorded_at, request.actor)
        return outcome
