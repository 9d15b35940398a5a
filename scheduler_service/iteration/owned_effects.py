"""Effects that no executor runs and nobody outside answers: the run's owner settles them.

Timers as effects settle when they come due.
"""

import asyncio
from typing import Final

from scheduler_service.iteration.loop import Loop
from scheduler_service.iteration.rows import timestamp
from scheduler_service.iteration.runs import Phase, RunState
from scheduler_service.replay.events import SETTLING_TYPES, Event

_SUCCEEDED: Final = {"state": "EFFECT_STATE_SUCCEEDED"}


class OwnedEffects:
    """Watches requests and settlements of owned runs, while they are replayed too."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: dict[str, asyncio.TimerHandle] = {}
        self._of_run: dict[str, set[str]] = {}

    def observe(self, run: RunState, event: Event) -> None:
        """Called for every event of an owned run, in order."""
        if event.type in SETTLING_TYPES:
            self._done(run.run_id, event.effect_id)
        elif event.type == "EFFECT_REQUESTED":
            spec = event.data["spec"]
            if "timer" in spec:
                due = timestamp(spec["timer"]["fire_at"]).timestamp()
                self._settle_later(run, event, due - self._loop.journal.clock.now())

    def _settle_later(self, run: RunState, event: Event, delay: float) -> None:
        if event.effect_id not in self._waiting:
            loop = asyncio.get_running_loop()
            # One millisecond late: a timer must never be seen to settle before its time.
            self._waiting[event.effect_id] = loop.call_later(max(0.0, delay + 0.001), self._settle, run, event)
            self._of_run.setdefault(run.run_id, set()).add(event.effect_id)

    def forget(self, run_id: str) -> None:
        """The run is gone."""
        for effect_id in list(self._of_run.get(run_id, ())):
            self._done(run_id, effect_id)

    def _done(self, run_id: str, effect_id: str) -> None:
        waiting = self._waiting.pop(effect_id, None)
        if waiting is None:
            return
        waiting.cancel()
        self._of_run[run_id].discard(effect_id)
        if not self._of_run[run_id]:
            del self._of_run[run_id]

    def _settle(self, run: RunState, event: Event) -> None:
        """Settles it, unless it has settled meanwhile; a parked run's are looked at again when it is loaded."""
        self._done(run.run_id, event.effect_id)
        if run.phase in (Phase.GONE, Phase.PARKED):
            return
        run.owner_rows.append(
            {
                "type": "EFFECT_RESOLVED",
                "cause": 0,
                "effect_id": event.effect_id,
                "effect_key": event.effect_key,
                "data": _SUCCEEDED,
            }
        )
        self._loop.kick(run)
