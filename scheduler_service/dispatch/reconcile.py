"""Puts the journal, the sessions and the executors' own reports into agreement, again and again.

A dispatch whose start was never sent, a session that moved, an executor that came back as a new incarnation, an
executor that is gone: each leaves an open attempt that nobody runs. Every few seconds, and at each hello, the open
attempts of an executor are compared with what its session holds and with what it last reported.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from backburner.scheduler.v1 import dispatch_service_pb2 as pb
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
#: How old a dispatch must be before its absence from a report means anything.
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
        self._quiet_since = time.monotonic()

    def stalled(self) -> None:
        """The database or this replica was away: every grace counts from now."""
        self._quiet_since = time.monotonic()

    async def hello(self, session: Session, hello: pb.Hello) -> list[pb.AttemptRef]:
        """Compares a new session with the journal; answers with the reported attempts that no longer count."""
        rows = {(row.effect_id, row.attempt): row for row in await self._journal.open_attempts(session.executor_id)}
        reported = {(a.ref.effect_id, a.ref.attempt): a for a in hello.attempts}
        stale = []
        for ref, attempt in reported.items():
            row = rows.get(ref)
            if row is not None and row.incarnation == session.incarnation:
                await self._readopt(session, row, attempt)
            elif attempt.state != executor_pb.Attempt.STATE_FINISHED:
                stale.append(attempt.ref)
        for ref, row in rows.items():
            if ref not in reported:
                await self._missing_at_hello(session, row, list(hello.succeeds))
        session.note_report(hello.attempts)
        return stale

    async def run(self) -> None:
        """Reconciles and sweeps until cancelled."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(RECONCILE_SECONDS * random.uniform(0.75, 1.25))
            if time.monotonic() - before > RECONCILE_SECONDS * 2:
                self.stalled()
            try:
                for session in list(self._sessions):
                    await self._reconcile(session)
                await self._sweep()
            except JournalUnavailable as error:
                log.warning("attempts cannot be reconciled: %s", error)
                self.stalled()

    async def _readopt(self, session: Session, row: OpenAttempt, attempt: pb.ReportedAttempt) -> None:
        session.adopt((row.effect_id, row.attempt), Held(row.run_id, row.pool, row.background, b"", time.monotonic()))
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
            await self._declare(row, _NEVER_STARTED_MESSAGE, never_started=True)
        elif row.incarnation in succeeds:
            await self._declare(row, _SUCCEEDED_MESSAGE, never_started=False)

    async def _reconcile(self, session: Session) -> None:
        asked = time.monotonic()
        rows = await self._journal.open_attempts(session.executor_id)
        self._release_ended(session, {(row.effect_id, row.attempt) for row in rows}, asked)
        for row in rows:
            ref = (row.effect_id, row.attempt)
            if session.closed or row.incarnation != session.incarnation:
                continue
            if row.cancel_reason:
                self.send_cancel(session, row)
            if ref not in session.report and self._is_old(session, ref, row, asked):
                await self._absent(session, ref, row)

    def _release_ended(self, session: Session, still_open: set[Ref], asked: float) -> None:
        """Frees the slots of attempts that the journal has as ended, and whose notice never came."""
        for ref, held in list(session.held.items()):
            if ref not in still_open and ref not in session.report and asked - held.since > _SETTLING_SECONDS:
                session.release(ref)
                self._freed(session)

    def _is_old(self, session: Session, ref: Ref, row: OpenAttempt, asked: float) -> bool:
        """True when the report is younger than the dispatch by enough to mean something."""
        held = session.held.get(ref)
        since = held.since if held is not None else session.report_at - row.age_s
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
        await self._declare(row, message, never_started=not started)
        session.release(ref)
        self._freed(session)

    async def _sweep(self) -> None:
        """Declares lost what runs on executors that stayed away longer than the grace."""
        if time.monotonic() - self._quiet_since < self._grace_s:
            return
        for row in await self._journal.stranded_attempts(self._grace_s):
            session = self._sessions.get(row.executor_id)
            if session is None or session.incarnation != row.incarnation:
                await self._declare(row, _LOST_MESSAGE, never_started=False)

    async def _declare(self, row: OpenAttempt, message: str, *, never_started: bool) -> None:
        epoch = self._epoch_of(row.run_id)
        if epoch is None:
            return  # the owner does it
        await self._lose(
            LostAttempt(
                run_id=row.run_id,
                epoch=epoch,
                effect_id=row.effect_id,
                attempt=row.attempt,
                never_started=never_started,
                reason="EFFECT_REASON_EXECUTOR_LOST",
                message=message.format(executor=row.executor_id, grace=self._grace_s),
                actor=self._actor,
                executor_session=row.executor_session,
            )
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
