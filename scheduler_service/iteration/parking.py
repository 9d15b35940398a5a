"""Runs that do not go on until somebody resumes them: halted from outside or by themselves, or parked by an error.

A parked run has no coroutine. Its owner still hears of it: a cancel ends it without its process, a RUN_RESUMED that any
replica wrote lets it go on from its journal, with the code of today.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from scheduler_service.iteration.runs import Phase, RunState
from scheduler_service.replay.events import TERMINAL_TYPES, Event

if TYPE_CHECKING:
    from scheduler_service.iteration.loop import Loop

PARKING: Final = frozenset({"PROCESS_RUNTIME_ERROR", "RUN_HALTED"})
STOPPING: Final = TERMINAL_TYPES | PARKING
_EVENTS_AT_A_TIME: Final = 256


def parking_seq(events: Sequence[Event]) -> int:
    """Seq of the row that has the run parked at the end of these events; 0 when it is not, or went on again."""
    last = next((event for event in reversed(events) if event.type in PARKING or event.type == "RUN_RESUMED"), None)
    return last.seq if last is not None and last.type in PARKING else 0


class Parking:
    """Parks runs and lets them go on."""

    def __init__(self, loop: "Loop") -> None:
        self._loop = loop

    def park(self, run: RunState, seq: int) -> None:
        """The run is parked by its row `seq`, or was at `seq`: no iteration until a later RUN_RESUMED."""
        if run.phase is Phase.GONE:
            return
        self._loop.drop_coroutine(run)
        run.owner_rows.clear()  # timers and deadlines are found again once the run goes on
        run.parked_at = max(run.parked_at, seq)
        run.phase = Phase.PARKED
        self.read(run)

    def read(self, run: RunState) -> None:
        """Looks at what a parked run was not fed: a cancel that came with the error, a resumption, by any replica."""
        for event in run.next_events(_EVENTS_AT_A_TIME):
            run.fed = event.seq
            if event.type in PARKING:
                run.parked_at = max(run.parked_at, event.seq)
            self._loop.observe_parked(run, event)
            if event.type == "RUN_RESUMED" and event.seq > run.parked_at and run.phase is Phase.PARKED:
                self._resume(run)
                return
        if run.phase is Phase.PARKED:
            self._loop.gaps.fill(run)

    def _resume(self, run: RunState) -> None:
        """Somebody has looked at the run: it is replayed, whatever had gone wrong before."""
        if run.forced:
            return  # cancelled while it was parked: its end is under way
        run.inbox.clear()
        run.fed = run.strikes = run.failures = run.parked_at = 0
        run.struck = run.followed = False
        run.phase = Phase.IDLE
        self._loop.load(run)
