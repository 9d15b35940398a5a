"""The runs that this replica owns: what is known of each between two iterations."""

import enum
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from scheduler_service.replay.events import Event
from scheduler_service.replay.execution import Execution


class Phase(enum.Enum):
    """What is going on with a run. Only IDLE takes new work."""

    #: Nothing in flight.
    IDLE = "idle"
    #: Its journal is being read or replayed.
    LOADING = "loading"
    #: The iteration thread feeds it events.
    STEPPING = "stepping"
    #: An append is on its way.
    APPENDING = "appending"
    #: Parked or halted: no iteration until RUN_RESUMED.
    PARKED = "parked"
    #: Ended, or owned by another replica: nothing more is done for it here.
    GONE = "gone"


#: Something is on its way that will change the phase by itself.
IN_FLIGHT = (Phase.STEPPING, Phase.APPENDING, Phase.LOADING)


@dataclass(slots=True, eq=False)
class RunState:
    """One owned run. `fed` is the last seq its coroutine has seen, `head` the newest that this replica heard of."""

    run_id: str
    namespace: str
    process: str
    epoch: int
    iteration: int
    head: int
    fed: int = 0
    phase: Phase = Phase.IDLE
    execution: Execution | None = None
    #: Events heard of and not yet fed, by seq.
    inbox: dict[int, Event] = field(default_factory=dict)
    #: Rows of the owner that no process code asked for: fired timers, missed deadlines.
    owner_rows: list[dict[str, Any]] = field(default_factory=list)
    #: Bytes of large values, as JSON, that its coroutine was given: at most what a replay could load at once.
    large_bytes: int = 0
    #: When the coroutine was last used.
    used: float = field(default_factory=time.monotonic)
    #: True for a client-driven run: it has no process, its events are only observed.
    client: bool = False
    #: True once the whole journal of such a run was read; what comes is observed as it is heard.
    followed: bool = False
    #: True when the owner ends the run without its process (cleanup took too long, cancelled while parked).
    forced: bool = False
    #: Strikes that it had when it was adopted: replays of it, or beside it, have ended replicas.
    strikes: int = 0
    #: True once this replica has raised the run's strikes, until an append clears them.
    struck: bool = False
    #: While it is PARKED: seq of the row that parked it; only a later RUN_RESUMED lets it go on.
    parked_at: int = 0
    #: Failures to read or append in a row; they space out the next try.
    failures: int = 0
    #: True while somebody already waits to read what is missing between `fed` and `head`.
    reading: bool = False

    def hear(self, event: Event) -> None:
        """Notes an event; one that was fed already is dropped."""
        if event.seq > self.fed:
            self.inbox[event.seq] = event
        self.head = max(self.head, event.seq)

    def next_events(self, limit: int) -> list[Event]:
        """The events that follow what was fed, without a hole, at most `limit`."""
        events: list[Event] = []
        seq = self.fed + 1
        while len(events) < limit and (event := self.inbox.pop(seq, None)) is not None:
            events.append(event)
            seq += 1
        return events

    def may_wait_for(self, ordinal: int) -> bool:
        """False when the run surely does not wait for this timer; a run that is being fed cannot be asked."""
        return self.phase is not Phase.IDLE or self.execution is None or ordinal in self.execution.timers


class Runs:
    """The owned runs, by id."""

    def __init__(self) -> None:
        self._runs: dict[str, RunState] = {}

    def __iter__(self) -> Iterator[RunState]:
        return iter(self._runs.values())

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, run_id: str) -> RunState | None:
        """The run, if it is owned here."""
        return self._runs.get(run_id)

    def add(self, run: RunState) -> RunState:
        """Adds a run; one that is known with the same epoch stays as it is."""
        known = self._runs.get(run.run_id)
        if known is not None and known.epoch == run.epoch and known.phase is not Phase.GONE:
            return known
        self._runs[run.run_id] = run
        return run

    def drop(self, run: RunState) -> None:
        """Forgets a run."""
        run.phase = Phase.GONE
        if self._runs.get(run.run_id) is run:
            del self._runs[run.run_id]
