"""The iteration loop: hear, feed, append, send. One turn of it is one iteration of one run.

Runs on the service's event loop; process code runs on the iteration thread. What a run asks for is appended in one
commit, and only then sent. After any doubt about a commit the coroutine is dropped and replayed: memory never runs
ahead of the journal.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from scheduler_service import failpoints
from scheduler_service.dispatch.queue import Dispatcher
from scheduler_service.dispatch.sessions import Reservation, Sessions
from scheduler_service.iteration.call_checks import CallChecks
from scheduler_service.iteration.events import error_of, event_of_row
from scheduler_service.iteration.fast_path import FastPath
from scheduler_service.iteration.gaps import GAP_PAGE, Gaps
from scheduler_service.iteration.heads import Heads
from scheduler_service.iteration.parking import PARKING, STOPPING, Parking, parking_seq
from scheduler_service.iteration.rows import row_of, timestamp
from scheduler_service.iteration.runs import Phase, Runs, RunState
from scheduler_service.iteration.timers import Timers
from scheduler_service.iteration.worker import Blocked, IterationThreads, log_failure
from scheduler_service.journal import Append, AppendOutcome, Journal, JournalRefused, JournalUnavailable, shard_of
from scheduler_service.journal.payloads import is_loaded
from scheduler_service.replay.events import TERMINAL_TYPES, Command, Event
from scheduler_service.replay.execution import Execution

log = logging.getLogger(__name__)

#: Events fed to a run before its commands are appended: bounds a commit, and keeps runs taking turns.
EVENTS_PER_ITERATION = 256


class Loop:
    """Drives every owned run; the other stages tell it what they hear."""

    def __init__(
        self,
        journal: Journal,
        sessions: Sessions,
        dispatcher: Dispatcher,
        threads: IterationThreads,
        checks: CallChecks,
        *,
        actor: str,
        spawn: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        self.journal = journal
        self.fast_path = FastPath(sessions, dispatcher)
        self.threads = threads
        self._checks = checks
        self.actor = actor
        self.spawn = spawn
        self.runs = Runs()
        self.heads = Heads()
        self.parking = Parking(self)
        self.gaps = Gaps(self)
        self.timers = Timers(self._fire, self._waits_for, journal.clock)
        #: Set by the engine: how a run gets its coroutine, and what happens to events that need no process.
        self.load: Callable[[RunState], None] = lambda run: None
        self.fill: Callable[[RunState, Sequence[Event]], None] = lambda run, events: None
        self.observers: Sequence[Callable[[RunState, Event], None]] = ()
        self.observe_parked: Callable[[RunState, Event], None] = lambda run, event: None
        self.on_forget: Callable[[str], None] = lambda run_id: None
        #: Set by the engine: what an append needs besides its rows, and what it did besides appending them.
        self.prepare: Callable[[str, Sequence[dict[str, Any]]], None] = lambda run_id, rows: None
        self.committed: Callable[[Mapping[str, Any], datetime, str], None] = lambda detail, at, actor: None
        #: Shards that are being given back: nothing new is begun for their runs.
        self.leaving: set[int] = set()
        #: Set by the engine: looks for a run of ours that may be there.
        self.read_again: Callable[[str], None] = lambda run_id: None

    # -- hearing -----------------------------------------------------------------------------------------------

    def hear(self, run_id: str, events: Sequence[Event]) -> None:
        """Takes committed events, in any order; the run goes on when the next one is among them."""
        if not events:
            return
        run = self.runs.get(run_id)
        self.heads.advance(run_id, max(event.seq for event in events))
        self._note_stops(run_id, events)
        if run is None:
            return
        for event in events:
            run.hear(event)
        self._go_on(run)

    def _note_stops(self, run_id: str, events: Sequence[Event]) -> None:
        """Wakes those who wait for the end or the pause of a run."""
        stop = max((event.seq for event in events if event.type in STOPPING), default=0)
        if stop:
            self.heads.stopped(run_id, stop)

    def _go_on(self, run: RunState) -> None:
        if run.phase is Phase.PARKED:
            self.parking.read(run)
        else:
            self.kick(run)

    def hear_head(self, run_id: str, seq: int) -> None:
        """Takes the news that a journal has come to `seq`, without the events."""
        self.heads.advance(run_id, seq)
        run = self.runs.get(run_id)
        if run is None:
            return
        run.head = max(run.head, seq)
        self._go_on(run)

    def hear_rows(self, run_id: str, rows: Sequence[Mapping[str, Any]], recorded_at: datetime, actor: str) -> None:
        """Takes rows that a journal function appended for this replica."""
        self.hear(run_id, [event_of_row(row, int(row["seq"]), recorded_at, actor) for row in rows])

    def observe(self, run: RunState, event: Event) -> None:
        """Shows an event of an owned run to those who act on events without process code."""
        for observer in self.observers:
            observer(run, event)

    # -- one iteration -----------------------------------------------------------------------------------------

    def kick(self, run: RunState) -> None:
        """Begins an iteration if the run is idle and there is something to do."""
        if run.phase is not Phase.IDLE or (self.leaving and shard_of(run.run_id) in self.leaving):
            return
        if run.owner_rows:
            rows, run.owner_rows = run.owner_rows, []
            self.begin_append(run, rows, {})
        elif run.execution is None and not run.forced and not run.followed:
            if run.head > run.fed:
                self.load(run)
        else:
            self._feed_next(run)

    def _feed_next(self, run: RunState) -> None:
        events = run.next_events(EVENTS_PER_ITERATION)
        if not events:
            self.gaps.fill(run)
            return
        if run.forced:
            self._observe(run, events)
            return
        if run.execution is not None and not is_loaded(events):
            self.fill(run, events)
            return
        parked_at = parking_seq(events)
        if parked_at:
            for event in events:
                run.hear(event)
            self.parking.park(run, parked_at)
            return
        if run.execution is None:
            self._observe(run, events)
            return
        run.phase = Phase.STEPPING
        run.used = time.monotonic()
        execution = run.execution
        self.threads.submit(
            partial(self._feed, execution, events), self.guarded(run, partial(self._fed, run, events)), execution.block
        )

    def _feed(self, execution: Execution, events: Sequence[Event]) -> tuple[int, list[Command]]:
        """On the iteration thread: feeds events one by one; stops behind one that parks the run."""
        commands: list[Command] = []
        for event in events:
            self.threads.pulse()
            execution.watch_calls = self._checks.due(execution.process.name)
            step = execution.feed(event)
            commands += step
            if any(command.type in PARKING for command in step):
                return event.seq, commands
        return events[-1].seq, commands

    def _fed(self, run: RunState, events: Sequence[Event], result: Any) -> None:
        if run.phase is not Phase.STEPPING:
            return
        if isinstance(result, Blocked | BaseException):
            self.park(run, error_of(result), cause=events[0].seq)
            return
        run.fed, commands = result
        for event in events:
            if event.seq <= run.fed:
                self.observe(run, event)
            else:
                run.hear(event)  # behind one that parks the run
        self.append_commands(run, commands)

    def _observe(self, run: RunState, events: Sequence[Event]) -> None:
        """Events of a run that no process takes: it is client-driven, or ends without its process."""
        for event in events:
            run.fed = event.seq
            self.observe(run, event)
        if any(event.type in TERMINAL_TYPES for event in events):  # by its client, on whichever replica
            self.forget(run)
        self.kick(run)

    # -- appending ---------------------------------------------------------------------------------------------

    def append_commands(self, run: RunState, commands: Sequence[Command]) -> None:
        """Appends what the process asked for, or goes on when it asked for nothing."""
        if not commands:
            run.phase = Phase.IDLE
            self.kick(run)
            return
        rows = [row_of(command) for command in commands]
        self.prepare(run.run_id, rows)
        parks = any(row["type"] in PARKING for row in rows)  # then nothing is dispatched, not even what came before
        self.begin_append(run, rows, {} if parks else self.fast_path.reserve(run, rows))

    def begin_append(self, run: RunState, rows: list[dict[str, Any]], reservations: dict[str, Reservation]) -> None:
        """Appends rows as the run's next iteration; nothing when it was let go of meanwhile."""
        if run.phase is Phase.GONE:
            return
        run.phase = Phase.APPENDING
        self.spawn_for(run, partial(self._append, run, rows, reservations), "append")

    def spawn_for(self, run: RunState, work: Callable[[], Awaitable[None]], name: str) -> None:
        """Awaits work about one run; whatever goes wrong in it, the run is replayed and not left lying."""
        self.spawn(self._guarded(run, work, name), name)

    async def _guarded(self, run: RunState, work: Callable[[], Awaitable[None]], name: str) -> None:
        try:
            await work()
        except Exception:
            log.exception("%s of run %s went wrong, it will be replayed", name, run.run_id)
            self.reload(run)

    def guarded(self, run: RunState, done: Callable[[Any], None]) -> Callable[[Any], None]:
        """The same for what the iteration thread answers."""

        def answer(result: Any) -> None:
            try:
                done(result)
            except Exception:
                log.exception("an iteration of run %s went wrong, it will be replayed", run.run_id)
                self.reload(run)

        return answer

    def park(self, run: RunState, error: dict[str, Any], cause: int) -> None:
        """Parks a run with an error of its process; its coroutine is dropped."""
        row = {"type": "PROCESS_RUNTIME_ERROR", "cause": cause, "data": {"error": error}}
        self.begin_append(run, [row], {})

    async def _append(self, run: RunState, rows: list[dict[str, Any]], reservations: dict[str, Reservation]) -> None:
        item = Append(run_id=run.run_id, epoch=run.epoch, iteration=run.iteration + 1, actor=self.actor, rows=rows)
        try:
            outcome = await self.journal.append(item)
        except JournalUnavailable as error:
            log.warning("append to run %s is in doubt, it will be replayed: %s", run.run_id, error)
            self.fast_path.give_back(reservations)
            self.look_for_created(rows)
            self.reload(run)
            return
        except JournalRefused as error:
            log.exception("an append to run %s is refused by the database", run.run_id)
            self.fast_path.give_back(reservations)
            self._park_refused(run, rows, error)
            return
        if outcome.outcome in ("ok", "already"):
            await self._appended(run, rows, reservations, outcome)
        else:
            self._refused(run, reservations, outcome)

    def _park_refused(self, run: RunState, rows: Sequence[Mapping[str, Any]], error: JournalRefused) -> None:
        """A run whose rows the database refuses is parked; when even that is refused, it is tried again later."""
        if any(row["type"] == "PROCESS_RUNTIME_ERROR" for row in rows):
            self.reload(run)
        else:
            self.park(run, {"kind": "EXCEPTION", "message": f"the journal refused an append: {error}"}, cause=run.fed)

    async def _appended(
        self,
        run: RunState,
        rows: Sequence[dict[str, Any]],
        reservations: dict[str, Reservation],
        outcome: AppendOutcome,
    ) -> None:
        run.iteration += 1
        run.failures = 0
        run.struck = False
        run.strikes = 0
        # the answer to our own commit was lost, or not all was written as it was asked for: read what it wrote
        if outcome.outcome == "already" or outcome.detail.get("refused"):
            try:
                events = await self.journal.read_events(run.run_id, run.fed, GAP_PAGE)
            except JournalUnavailable as error:
                log.warning("what was appended to run %s cannot be read, it will be replayed: %s", run.run_id, error)
                self.fast_path.give_back(reservations)  # starts that are not sent are found by reconciliation
                self.look_for_created(rows)
                self.reload(run)
                return
            self.look_for_created([{"data": event.data} for event in events])
        else:
            events = [
                event_of_row(row, outcome.first_seq + i, outcome.recorded_at, self.actor) for i, row in enumerate(rows)
            ]
            events += [event_of_row(row, int(row["seq"]), outcome.recorded_at, self.actor) for row in outcome.extra]
        failpoints.hit("dispatch", "send")
        self.fast_path.send(run, rows, reservations, events)
        self.fast_path.send_cancels(run.run_id, outcome.detail.get("cancels", ()))
        self.committed(outcome.detail, outcome.recorded_at, self.actor)
        for event in events:
            run.hear(event)
        self._note_rows(run, events)
        self.heads.advance(run.run_id, run.head)
        if run.phase is Phase.APPENDING:
            run.phase = Phase.IDLE
        self.kick(run)

    def look_for_created(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Runs that a commit whose answer was lost may have created carry our epoch: nobody else adopts them."""
        for row in rows:
            asked = row.get("x", {}).get("child", {}).get("run_id")  # of a row that is not known to be committed
            created = asked or row["data"].get("child_run_id") or row["data"].get("new_run_id")
            if created:
                self.read_again(created)

    def _note_rows(self, run: RunState, events: Sequence[Event]) -> None:
        """Timers that were set; ends and pauses of the run."""
        if run.phase is Phase.GONE:
            return
        self._note_stops(run.run_id, events)
        for event in events:
            if event.type == "TIMER_SET":
                self.timers.set(run.run_id, event.data["ordinal"], timestamp(event.data["fire_at"]))
            elif event.type in TERMINAL_TYPES:
                self.forget(run)
            elif event.type in PARKING:
                self.parking.park(run, event.seq)

    def _refused(self, run: RunState, reservations: dict[str, Reservation], outcome: AppendOutcome) -> None:
        self.fast_path.give_back(reservations)
        if outcome.outcome in ("stale_epoch", "run_closed", "not_found"):
            log.info("run %s is no longer ours (%s)", run.run_id, outcome.outcome)
            self.forget(run)
        elif outcome.outcome == "parked":  # halted meanwhile: what was asked for is asked again once it is resumed
            self.parking.park(run, outcome.head_seq)
        elif outcome.outcome == "history_limit":
            self.park(run, {"kind": "HISTORY_LIMIT", "message": _HISTORY_LIMIT}, cause=run.fed)
        else:
            log.warning("append to run %s was refused (%s): replaying", run.run_id, outcome.outcome)
            self.reload(run)

    # -- losing and finding coroutines -------------------------------------------------------------------------

    def drop_coroutine(self, run: RunState) -> None:
        """Evicts the run's coroutine, on the iteration thread: closing it runs `finally` blocks of the author."""
        execution, run.execution = run.execution, None
        if execution is not None:
            self.threads.submit(execution.evict, log_failure)

    def forget(self, run: RunState) -> None:
        """Lets go of a run that ended or has another owner.

        Of one that was let go of before nothing is left here: what is known by its id may be of the run as it was
        adopted since.
        """
        if run.phase is Phase.GONE:
            return
        self.drop_coroutine(run)
        self.runs.drop(run)
        self.on_forget(run.run_id)

    def reload(self, run: RunState) -> None:
        """Drops the coroutine and reads the journal again, later after repeated failures."""
        if run.phase is Phase.GONE:
            return
        self.drop_coroutine(run)
        run.inbox.clear()
        run.fed = 0
        run.followed = False
        run.failures += 1
        run.phase = Phase.LOADING
        delay = min(5.0, 0.05 * 2 ** min(run.failures, 7))
        asyncio.get_running_loop().call_later(delay, self._load_again, run)

    def _load_again(self, run: RunState) -> None:
        if run.phase is Phase.LOADING and self.runs.get(run.run_id) is run:
            run.phase = Phase.IDLE
            self.load(run)

    def _waits_for(self, run_id: str, ordinal: int) -> bool:
        run = self.runs.get(run_id)
        return run is not None and run.may_wait_for(ordinal)

    def _fire(self, run_id: str, ordinal: int) -> None:
        """A timer came due."""
        run = self.runs.get(run_id)
        if run is None or run.phase is Phase.PARKED or not run.may_wait_for(ordinal):
            return  # of a timer that was cancelled no row is needed
        run.owner_rows.append({"type": "TIMER_FIRED", "cause": 0, "data": {"ordinal": ordinal}})
        self.kick(run)


_HISTORY_LIMIT = "the run's history has reached its limit: use ctx.continue_as_new in long-lived processes"
