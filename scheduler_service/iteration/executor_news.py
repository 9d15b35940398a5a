"""What executors tell of their attempts and of themselves: taken to the runs, the slots and the journal."""

import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from scheduler_service import failpoints
from scheduler_service.dispatch.durations import Durations
from scheduler_service.dispatch.queue import ANY, Dispatcher
from scheduler_service.dispatch.sessions import Session
from scheduler_service.iteration.events import event_of_notice
from scheduler_service.iteration.loop import Loop
from scheduler_service.iteration.losses import Losses, never_started
from scheduler_service.iteration.rows import seconds, timestamp
from scheduler_service.iteration.runs import RunState
from scheduler_service.journal import ExecutorFound, ExecutorSeen, Journal, JournalUnavailable
from scheduler_service.replay.events import SETTLING_TYPES, Event

log = logging.getLogger(__name__)

#: How long an executor without room for results is given nothing.
_FULL_SECONDS: Final = 5.0


class ExecutorNews:
    """Takes the frames that come up the control streams of this replica's executors."""

    def __init__(
        self,
        journal: Journal,
        loop: Loop,
        dispatcher: Dispatcher,
        *,
        durations: Durations,
        losses: Losses,
        spawn: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        self._journal = journal
        self._loop = loop
        self._dispatcher = dispatcher
        self._durations = durations
        self._losses = losses
        self._spawn = spawn
        #: Hears how each attempt ended: for metrics.
        self.on_ended: Callable[[str], None] = lambda outcome: None

    def journaled(self, session: Session, events: Sequence[pb.JournaledEvent]) -> None:
        """Takes the rows that an executor has committed for attempts that it was given; others are left to the poll."""
        failpoints.hit("notice", "taken")
        by_run: dict[str, list[Event]] = {}
        actor = f"executor/{session.executor_id}"
        for row in events:
            if not session.was_given((row.effect_id, row.attempt), row.run_id):
                continue
            event = event_of_notice(row, actor)
            by_run.setdefault(row.run_id, []).append(event)
            self._note_settled(session, row, event)
        for run_id, heard in by_run.items():
            self._loop.hear(run_id, heard)

    def rejected(self, session: Session, rejected: Sequence[pb.RejectedAttempt]) -> None:
        """Queues again what an executor refused before starting it; the stream does not wait for that."""
        for item in rejected:
            ref = (item.ref.effect_id, item.ref.attempt)
            held = session.held.get(ref)
            if held is None:
                continue
            if item.reason == pb.RejectedAttempt.REASON_DUPLICATE:
                held.duplicate = True  # it has started; if its report lacks it too, reconciliation takes it as lost
                continue
            if item.reason == pb.RejectedAttempt.REASON_NO_SPOOL:
                session.full_until = time.monotonic() + _FULL_SECONDS
            session.release(ref)
            lost = never_started(held.run_id, item, session.session_no, self._loop.actor)
            self._spawn(self._losses.rejected(lost), "rejected")

    def seen(self, session: Session) -> None:
        """Has it noted in the journal that an executor is there; its stream does not wait for that."""
        if not session.noting:
            session.noting = True
            self._spawn(self._note_seen(session), "seen")

    def found(self, session: Session) -> None:
        """Its harnesses have changed: has that noted, and gives it what it can do now."""
        self._dispatcher.changed(session)
        self.seen(session)

    async def _note_seen(self, session: Session) -> None:
        state = "DRAINING" if session.draining else "CONNECTED"  # an operator's order has a column of its own
        try:
            await self._note_found(session)
            await self._journal.executors_seen([ExecutorSeen(session.executor_id, session.session_no, state)])
        except JournalUnavailable as error:
            log.warning("a heartbeat of executor %s is not noted: %s", session.executor_id, error)
        finally:
            session.noting = False

    async def _note_found(self, session: Session) -> None:
        """What it has of harnesses; what is not noted now is with its next sign of life."""
        while (checks := session.checks) is not None:
            capabilities = sorted(session.capabilities)
            item = ExecutorFound(
                executor_id=session.executor_id,
                session_no=session.session_no,
                capabilities=capabilities,
                harness_checks=checks,
            )
            await self._journal.executor_found(item)
            if session.checks is checks:
                session.checks = None
            self._dispatcher.changed(session)  # breakers that stopped it may be gone

    def _note_settled(self, session: Session, row: pb.JournaledEvent, event: Event) -> None:
        ref = (row.effect_id, row.attempt)
        held = session.held.get(ref)
        if held is not None and event.data.get("state") == "EFFECT_STATE_SUCCEEDED":
            self._durations.note(session.namespace, held.name, seconds(event.data.get("elapsed")) or 0.0)
        if row.frees_slot and session.release(ref):
            self._dispatcher.freed(session)
        if event.type in SETTLING_TYPES:
            self._dispatcher.settled(row.effect_id)
            self.on_ended(event.data.get("state", "EFFECT_STATE_CANCELLED").removeprefix("EFFECT_STATE_"))
        elif event.type in ("EFFECT_ATTEMPT_FAILED", "EFFECT_PARKED"):
            self.on_ended("PARKED" if event.type == "EFFECT_PARKED" else "FAILED_ATTEMPT")
            self._dispatcher.paused(row.effect_id)
            when = event.data.get("next_attempt_at") or event.data.get("until")
            if when:
                kind = ANY if held is None else (session.namespace, held.pool, held.background)
                self._dispatcher.wake_at(timestamp(when).timestamp(), kind)

    def observe(self, run: RunState, event: Event) -> None:
        """Settlements that no executor tells of leave room in their groups too."""
        if event.type in SETTLING_TYPES:
            self._dispatcher.settled(event.effect_id)
