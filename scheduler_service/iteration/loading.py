"""How a run gets its coroutine: a new run is fed its first event, any other one is replayed from its journal.

Before a replay the owner raises the run's strikes; the first completed iteration clears them. A run that takes its
replica down again and again is parked unread instead of killing replica after replica.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from scheduler_service.authoring.definitions import AnyProcess
from scheduler_service.iteration.call_checks import CallChecks
from scheduler_service.iteration.closing import ends_by_owner
from scheduler_service.iteration.events import error_of
from scheduler_service.iteration.hush import hush
from scheduler_service.iteration.loop import Loop
from scheduler_service.iteration.parking import parking_seq
from scheduler_service.iteration.runs import IN_FLIGHT, Phase, RunState
from scheduler_service.iteration.worker import Blocked
from scheduler_service.journal import JournalError
from scheduler_service.journal.payloads import BlobsUnreadable, large_bytes, loaded
from scheduler_service.replay import Command, Event, Execution, Recorded
from scheduler_service.replay.events import TERMINAL_TYPES

log = logging.getLogger(__name__)

#: Replays that may take the replica down before the run is parked unread.
STRIKES_MAX = 3
_PAGE = 2000
_LOADS_AT_A_TIME = 8


class Loader:
    """Loads runs, a few at a time."""

    def __init__(
        self,
        loop: Loop,
        processes: Mapping[str, AnyProcess],
        checks: CallChecks,
        *,
        close: Callable[[RunState], None],
    ) -> None:
        self._loop = loop
        self._close = close
        self._checks = checks
        self._processes = processes
        self._turn = asyncio.Semaphore(_LOADS_AT_A_TIME)
        self._suspect = asyncio.Lock()

    def load(self, run: RunState) -> None:
        """Begins to load an idle run."""
        run.phase = Phase.LOADING
        first = run.inbox.get(1)
        if run.fed == 0 and run.head == 1 and first is not None:
            run.inbox.clear()
            if run.client:
                self._follow(run, [first])
            else:
                self._replay(run, [first], fresh=True)
        else:
            self._loop.spawn_for(run, partial(self._load, run), "load")

    async def _load(self, run: RunState) -> None:
        """Suspects are replayed one at a time: a replica's death must not count against those that were beside it."""
        if run.strikes == 0:
            await self._load_now(run)
            return
        async with self._suspect:
            failures = run.failures
            await self._load_now(run)
            while run.struck and run.failures == failures and run.phase in IN_FLIGHT:  # noqa: ASYNC110 - rare and short
                await asyncio.sleep(0.01)

    async def _load_now(self, run: RunState) -> None:
        async with self._turn:
            try:
                events = await self._read(run)
                run.iteration = await self._loop.journal.iteration(run.run_id)  # an append in doubt may have counted
                strikes = await self._strike(run, events)
            except JournalError as error:
                log.warning("run %s cannot be read, trying again: %s", run.run_id, error)
                self._loop.reload(run)
                return
        if run.phase is not Phase.LOADING:
            return  # lost meanwhile
        if not events or strikes is None or events[-1].type in TERMINAL_TYPES:
            self._loop.forget(run)
        elif run.forced or _is_forced(events):
            self._end(run, events)
        elif parked_at := parking_seq(events):
            run.fed = events[-1].seq
            self._loop.parking.park(run, parked_at)
        elif run.client:
            self._follow(run, events)
        elif strikes > STRIKES_MAX:
            self._loop.park(run, _STRIKES, cause=0)
        else:
            await self._replay_whole(run, events)

    async def _replay_whole(self, run: RunState, events: Sequence[Event]) -> None:
        """Replays with the large values in their places."""
        try:
            async with self._turn:
                whole = await loaded(run.run_id, events, self._loop.journal.blobs)
        except BlobsUnreadable as error:
            self._loop.park(run, _unreadable(error), cause=0)
        except JournalError as error:
            log.warning("large values of run %s cannot be read, trying again: %s", run.run_id, error)
            self._loop.reload(run)
        else:
            if run.phase is Phase.LOADING:
                run.large_bytes = large_bytes(events)
                self._replay(run, whole, fresh=False)

    async def _strike(self, run: RunState, events: Sequence[Event]) -> int | None:
        """Strikes, raised once for all tries of this replica; None when the run is not ours. 0: no code will run."""
        if run.struck or run.forced or run.process not in self._processes:
            return 0
        if _is_forced(events) or parking_seq(events):
            return 0
        strikes = await self._loop.journal.strike(run.run_id, run.epoch)
        run.struck = strikes is not None
        return strikes

    def _end(self, run: RunState, events: Sequence[Event]) -> None:
        """Goes on with the end of a run that its owner ends without its process."""
        run.forced = True
        run.fed = events[-1].seq
        run.head = max(run.head, run.fed)
        run.phase = Phase.IDLE
        for event in events:
            self._loop.observe(run, event)
        if not _is_forced(events):
            self._close(run)

    def _follow(self, run: RunState, events: Sequence[Event]) -> None:
        """A client-driven run has no code to replay: its owner looks at its events, and goes on looking."""
        run.followed = True
        run.fed = events[-1].seq
        run.head = max(run.head, run.fed)
        run.failures = 0
        run.phase = Phase.IDLE
        for event in events:
            self._loop.observe(run, event)
        self._loop.kick(run)

    def fill(self, run: RunState, events: Sequence[Event]) -> None:
        """Has the large values of events read, and the events fed after that."""
        run.phase = Phase.LOADING
        self._loop.spawn_for(run, partial(self._fill, run, events), "fill")

    async def _fill(self, run: RunState, events: Sequence[Event]) -> None:
        try:
            whole = await loaded(run.run_id, events, self._loop.journal.blobs, before=run.large_bytes)
        except BlobsUnreadable as error:
            self._loop.drop_coroutine(run)
            self._loop.park(run, _unreadable(error), cause=run.fed)
            return
        except JournalError as error:
            log.warning("large values of run %s cannot be read, it will be replayed: %s", run.run_id, error)
            self._loop.reload(run)
            return
        if run.phase is not Phase.LOADING:
            return  # lost meanwhile
        run.large_bytes += large_bytes(events)
        for event in whole:
            run.hear(event)
        run.phase = Phase.IDLE
        self._loop.kick(run)

    async def _read(self, run: RunState) -> list[Event]:
        events: list[Event] = []
        while True:
            page = await self._loop.journal.read_events(run.run_id, len(events), _PAGE)
            events += page
            if len(page) < _PAGE:
                return events

    def _replay(self, run: RunState, events: Sequence[Event], *, fresh: bool) -> None:
        definition = self._processes.get(run.process)
        if definition is None:
            log.error("run %s waits: no process %r is loaded here (--process-module)", run.run_id, run.process)
            run.phase = Phase.PARKED
            run.parked_at = events[-1].seq
            run.inbox |= {event.seq: event for event in events}
            self._loop.hear_head(run.run_id, events[-1].seq)  # a cancel among them ends the run all the same
            return
        execution = Execution(
            definition, run.run_id, recorded=Recorded(events), watch_calls=self._checks.due(run.process)
        )
        work = partial(_replay, execution, events, self._loop.threads.pulse)
        self._loop.threads.submit(
            work, self._loop.guarded(run, partial(self._replayed, run, events, fresh)), execution.block
        )

    def _replayed(self, run: RunState, events: Sequence[Event], fresh: bool, result: Any) -> None:
        if run.phase is not Phase.LOADING:
            return
        last = events[-1].seq
        if isinstance(result, Blocked | BaseException):
            self._loop.park(run, error_of(result), cause=last)
            return
        execution, commands = result
        self._replayed_to(run, execution, last)
        unwritten = {command.data["ordinal"] for command in commands if command.type == "TIMER_SET"}
        for ordinal, due in execution.timers.items():
            if ordinal not in unwritten:  # those are set once they are committed: none fires before it is
                self._loop.timers.set(run.run_id, ordinal, due)
        for event in events:
            self._loop.observe(run, event)
        if commands or fresh:
            self._loop.append_commands(run, commands)
        else:
            self._loop.begin_append(run, [], {})  # clears the strikes

    def _replayed_to(self, run: RunState, execution: Execution, last: int) -> None:
        run.execution = execution
        run.fed = last
        run.head = max(run.head, last)
        run.inbox = {seq: event for seq, event in run.inbox.items() if seq > last}


def _replay(
    execution: Execution, history: Sequence[Event], pulse: Callable[[], None]
) -> tuple[Execution, list[Command]]:
    """On the iteration thread: feeds a whole history; what it does not have yet is to be appended."""
    pending: list[Command] = []
    try:
        for event in history:
            pulse()
            hush(execution.replaying)
            pending += execution.feed(event)
            if execution.parked:
                break
    finally:
        hush(False)
    return execution, pending


def _is_forced(events: Sequence[Event]) -> bool:
    return any(ends_by_owner(event) for event in events)


def _unreadable(error: BlobsUnreadable) -> dict[str, Any]:
    return {"kind": error.kind, "message": str(error)}


_STRIKES: dict[str, Any] = {
    "kind": "STRIKES",
    "message": f"replaying this run ended {STRIKES_MAX} replicas in a row: look at its process code, then resume it "
    "or cancel it",
}
