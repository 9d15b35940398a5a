"""Puts the journal, the sessions and the executors' own reports into agreement, again and again.

A dispatch whose start was never sent, a session that moved, an executor that came back as a new incarnation, an
executor that is gone: each leaves an open attempt that nobody runs. Every few seconds, and at each hello, the open
attempts of an executor are compared with what its session holds and with what it last reported.
"""

import asyncio
import dataclasses
import logging
import random
import time
from collections.abc import Awaitable, Callable

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from scheduler_service.dispatch.patience import Patience
from scheduler_service.dispatch.sessions import Held, Ref, Session, Sessions
from scheduler_service.journal import (
    Journal,
    JournalUnavailable,
    LostAttempt,
    OpenAttempt,
    Readoption,
)

log = logging.getLogger(__name__)

RECONCILE_SECONDS = 3.0
#: How old a dispatch must be before its absence from a report means anything. More than sessions.LATE_SECONDS.
_SETTLING_SECONDS = 2.0
_LOST_MESSAGE = "its executor {executor} went away and was not back within {grace:.0f} s"
_SUCCEEDED_MESSAGE = "its executor {executor} was restarted"
_VANISHED_MESSAGE = "executor {executor} has started it and no longer knows of it"
_NEVER_STARTED_MESSAGE = "the start never reached executor {executor}"


class Reconciler:
    """Reconciles the executors whose sessions this replica holds, and declares attempts lost."""

    def __init__(
        self,
        journal: Journal,
        sessions: Sessions,
        *,
        epoch_of: Callable[[str], int | None],
        lose: Callable[[LostAttempt], Awaitable[None]],
        freed: Callable[[Session], None],
        grace_s: float,
        actor: str,
    ) -> None:
        self._journal = journal
        self._sessions = sessions
        self._epoch_of = epoch_of
        self._lose = lose
        self._freed = freed
        self._grace_s = grace_s
        self._actor = actor
        self._patience = Patience(grace_s, time.monotonic())

    def stalled(self) -> None:
        """The database was away, or is in another life: every grace counts from now."""
        self._patience.begin(time.monotonic())

    async def hello(self, session: Session, hello: pb.Hello) -> list[pb.AttemptRef]:
        """Compares a new session with the journal; answers with the reported attempts that no longer count.

        All that is to be written goes out at once, in few commits: one after the other, an executor with many attempts
        would be silent for longer than anybody waits for it, and begin anew each time.
        """
        rows = {(row.effect_id, row.attempt): row for row in await self._open(session)}
        reported = {(a.ref.effect_id, a.ref.attempt): a for a in hello.attempts}
        stale: list[pb.AttemptRef] = []
        writes: list[Awaitable[None]] = []
        for ref, attempt in reported.items():
            row = rows.get(ref)
            if row is not None and row.incarnation == session.incarnation and not row.expired:
                writes.append(self._readopt(session, row))
            elif attempt.state != executor_pb.Attempt.STATE_FINISHED:
                stale.append(attempt.ref)
        for ref, row in rows.items():
            if ref not in reported and not row.expired:  # of those the owner knows already
                writes.append(self._missing_at_hello(session, row, list(hello.succeeds)))
        await asyncio.gather(*writes)
        session.note_report(hello.attempts)
        return stale

    async def run(self) -> None:
        """Reconciles and sweeps until cancelled."""
        while True:
            before = time.monotonic()
            pause = RECONCILE_SECONDS * random.uniform(0.75, 1.25)
            await asyncio.sleep(pause)
            try:
                for session in list(self._sessions):
                    await self._reconcile(session)
                self._patience.late(time.monotonic(), time.monotonic() - before - pause)
                await self._sweep()
            except JournalUnavailable as error:
                log.warning("attempts cannot be reconciled: %s", error)
                self.stalled()

    async def _open(self, session: Session) -> list[OpenAttempt]:
        """The open attempts of its executor. What is said of them counts only while this is its newest session: on a
        newer one, which may be another replica's, they may have been started.
        """
        rows = await self._journal.open_attempts(session.executor_id)
        return [dataclasses.replace(row, executor_session=session.session_no) for row in rows]

    async def _readopt(self, session: Session, row: OpenAttempt) -> None:
        held = Held(row.run_id, row.pool, row.background, b"", time.monotonic(), row.name)
        session.adopt((row.effect_id, row.attempt), held)
        if row.session_no != session.session_no:
            await self._journal.readopt(
                Readoption(
                    run_id=row.run_id,
                    effect_id=row.effect_id,
                    attempt=row.attempt,
                    executor_id=session.executor_id,
                    incarnation=session.incarnation,
                    session_no=session.session_no,
                )
            )
        if row.cancel_reason:
            self.send_cancel(session, row)

    async def _missing_at_hello(self, session: Session, row: OpenAttempt, succeeds: list[str]) -> None:
        """An open attempt that the executor does not hold.

        Of the same incarnation, it was never started: the executor remembers what it takes. Of one that the executor
        succeeds (it held that one's lock), it is lost now. Of any other one, its grace decides.
        """
        if row.incarnation == session.incarnation:
            await self._lose(self._lost(row, _NEVER_STARTED_MESSAGE, never_started=True))
        elif row.incarnation in succeeds:
            await self._lose(self._lost(row, _SUCCEEDED_MESSAGE, never_started=False))

    async def _reconcile(self, session: Session) -> None:
        asked = time.monotonic()
        rows = await self._open(session)
        answered = time.monotonic()
        self._release_ended(session, {(row.effect_id, row.attempt) for row in rows}, asked)
        for row in rows:
            ref = (row.effect_id, row.attempt)
            if session.closed or row.expired or row.incarnation != session.incarnation:
                continue
            if row.session_no > session.session_no:
                continue  # the executor has moved on, and this session has not noticed: its reports say nothing of it
            if row.cancel_reason:
                self.send_cancel(session, row)
            if ref not in session.report and self._is_old(session, ref, answered - row.age_s, asked):
                await self._absent(session, ref, row)

    def _release_ended(self, session: Session, still_open: set[Ref], asked: float) -> None:
        """Frees the slots of attempts that the journal has as ended, and whose notice never came."""
        for ref, held in list(session.held.items()):
            if ref not in still_open and ref not in session.report and asked - held.since > _SETTLING_SECONDS:
                session.release(ref)
                self._freed(session)

    def _is_old(self, session: Session, ref: Ref, dispatched: float, asked: float) -> bool:
        """True when the report is younger than the dispatch by enough to mean something."""
        held = session.held.get(ref)
        since = held.since if held is not None else dispatched
        return session.report_at - since > _SETTLING_SECONDS and asked - since > _SETTLING_SECONDS

    async def _absent(self, session: Session, ref: Ref, row: OpenAttempt) -> None:
        held = session.held.get(ref)
        started = held is not None and (held.duplicate or held.start is None)
        if held is not None and held.start is not None and not started and row.session_no == session.session_no:
            log.warning("attempt %s is sent again: executor %s does not report it", ref, session.executor_id)
            held.since = time.monotonic()
            session.send_start(ref, held.start)
            return
        # One that was adopted had been reported, so it has started; one that is not held was never sent.
        message = _VANISHED_MESSAGE if started else _NEVER_STARTED_MESSAGE
        await self._lose(self._lost(row, message, never_started=not started))
        session.release(ref)
        self._freed(session)

    async def _sweep(self) -> None:
        """Declares lost what runs on executors that stayed away longer than the grace."""
        grace_s = self._patience.grace(time.monotonic())
        if grace_s is None:
            return
        for row in await self._journal.stranded_attempts(grace_s):
            session = self._sessions.get(row.executor_id)
            away = session is None or session.incarnation != row.incarnation
            if away and self._epoch_of(row.run_id) is not None:  # else its owner does it
                await self._lose(self._lost(row, _LOST_MESSAGE, never_started=False))

    def _lost(self, row: OpenAttempt, message: str, *, never_started: bool) -> LostAttempt:
        """The loss of an attempt; whoever declares it fills in the epoch."""
        return LostAttempt(
            run_id=row.run_id,
            epoch=0,
            effect_id=row.effect_id,
            attempt=row.attempt,
            never_started=never_started,
            reason="EFFECT_REASON_EXECUTOR_LOST",
            message=message.format(executor=row.executor_id, grace=self._grace_s),
            actor=self._actor,
            executor_session=row.executor_session,
        )

    def send_cancel(self, session: Session, row: OpenAttempt) -> None:
        """Sends the cancel that the row is flagged with."""
        session.send_cancel(
            pb.CancelAttempt(
                ref=pb.AttemptRef(effect_id=row.effect_id, attempt=row.attempt),
                reason=(row.cancel_reason or "").removeprefix("EFFECT_REASON_"),
                message=row.cancel_message or "",
                run_id=row.run_id,
            )
        )
