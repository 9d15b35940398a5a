"""The polls that are the truth behind every wake: heads of owned runs, flagged cancels, missed deadlines, the clock."""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from typing import Any

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from scheduler_service.dispatch.budgets import spent
from scheduler_service.dispatch.sessions import Session, Sessions
from scheduler_service.iteration.clients import ClientRuns
from scheduler_service.iteration.loop import Loop
from scheduler_service.iteration.losses import Losses
from scheduler_service.iteration.orders import Orders
from scheduler_service.iteration.recovery import Shards
from scheduler_service.iteration.runs import Phase
from scheduler_service.journal import Append, DeadlineDue, FlaggedAttempt, Journal, JournalUnavailable, shard_of
from scheduler_service.settings import Settings

log = logging.getLogger(__name__)

_CLOCK_SECONDS = 30.0
_HEADS_PER_POLL = 5000
_MESSAGES = {
    "TIMEOUT_SCHEDULE_TO_START": "no attempt started within its queue_timeout",
    "TIMEOUT_TOTAL": "it did not settle within its total_timeout",
}


class Polls:
    """One task that looks at everything twice a second or so."""

    def __init__(
        self,
        journal: Journal,
        loop: Loop,
        sessions: Sessions,
        shards: Shards,
        *,
        clients: ClientRuns,
        orders: Orders,
        losses: Losses,
        settings: Settings,
    ) -> None:
        self._clients = clients
        self._orders = orders
        self._losses = losses
        self._journal = journal
        self._loop = loop
        self._sessions = sessions
        self._shards = shards
        self._settings = settings
        self._clock_read = 0.0
        #: Sessions that the turn before found silent, each with the time of its last frame.
        self._silent: dict[Session, float] = {}

    async def run(self) -> None:
        """Polls until cancelled."""
        while True:
            await asyncio.sleep(self._settings.poll_seconds * random.uniform(0.75, 1.25))
            try:
                await self._turn()
            except JournalUnavailable as error:
                log.warning("the journal cannot be polled: %s", error)
                self._clients.be_patient()

    async def _turn(self) -> None:
        if time.monotonic() - self._clock_read > _CLOCK_SECONDS:
            await self._journal.read_clock()
            self._clock_read = time.monotonic()
        await self._heads()
        await self._shards.adoption.sweep()
        await self.deliver_cancels([session.executor_id for session in self._sessions])
        for due in await self._journal.deadlines_due(sorted(self._shards.epochs)):
            await self._time_out(due)
        await self._orders.turn()
        await self._losses.turn()
        await self._clients.halt_idle(dict(self._shards.epochs), shard_of)
        self._evict()
        self._drop_silent()

    async def _heads(self) -> None:
        waiting = [run.run_id for run in self._loop.runs if run.phase in (Phase.IDLE, Phase.PARKED)]
        for start in range(0, len(waiting), _HEADS_PER_POLL):
            heads = await self._journal.heads(waiting[start : start + _HEADS_PER_POLL])
            for run_id, seq in heads.items():
                self._loop.hear_head(run_id, seq)

    async def deliver_cancels(self, executor_ids: Sequence[str]) -> None:
        """Sends what is flagged to those of these executors that are connected here."""
        mine = [name for name in executor_ids if self._sessions.get(name) is not None]
        for flagged in await self._journal.flagged_attempts(mine):
            self._cancel(flagged)

    def _cancel(self, flagged: FlaggedAttempt) -> None:
        session = self._sessions.get(flagged.executor_id)
        if session is None:
            return
        session.send_cancel(
            pb.CancelAttempt(
                ref=pb.AttemptRef(effect_id=flagged.effect_id, attempt=flagged.attempt),
                reason=flagged.reason.removeprefix("EFFECT_REASON_"),
                message=flagged.message,
                run_id=flagged.run_id,
            )
        )

    async def _time_out(self, due: DeadlineDue) -> None:
        """Settles an effect that nobody runs and whose time is over."""
        row = _time_over(due)
        run = self._loop.runs.get(due.run_id)
        if run is None and not due.open and due.epoch == self._shards.epoch_of(due.run_id):
            await self._time_out_detached(due, row)
            return
        asked = run is None or any(other.get("effect_id") == due.effect_id for other in run.owner_rows)
        if run is not None and not asked and run.phase is not Phase.PARKED:
            run.owner_rows.append(row)
            self._loop.kick(run)

    async def _time_out_detached(self, due: DeadlineDue, row: dict[str, Any]) -> None:
        """A detached effect outlives its run: nobody else appends to that any more."""
        append = Append(
            run_id=due.run_id, epoch=due.epoch, iteration=due.iteration + 1, actor=self._loop.actor, rows=[row]
        )
        outcome = await self._journal.append(append)
        if outcome.outcome == "ok":
            self._loop.heads.advance(due.run_id, outcome.head_seq)

    def _evict(self) -> None:
        """Keeps the number of live coroutines within its bound."""
        cached = [run for run in self._loop.runs if run.execution is not None]
        excess = len(cached) - self._settings.cache_runs_max
        if excess <= 0:
            return
        idle = sorted(
            (run for run in cached if run.phase is Phase.IDLE and run.head == run.fed), key=lambda run: run.used
        )
        for run in idle[:excess]:
            self._loop.drop_coroutine(run)

    def _drop_silent(self) -> None:
        """A stream without frames is dead, whatever TCP says.

        Two turns must find it silent, with no frame between: after a standstill of ours its frames may lie unread.
        """
        silent = {s: s.last_frame for s in self._sessions.lagging(self._settings.heartbeat_seconds * 4)}
        for session, last_frame in silent.items():
            if self._silent.get(session) == last_frame:
                log.warning("executor %s sent no frame for too long: its session ends", session.executor_id)
                session.close("no frames")
        self._silent = silent


def _outcome(due: DeadlineDue) -> tuple[str, dict[str, Any]]:
    if not due.reason:
        return "EFFECT_RESOLVED", {"state": "EFFECT_STATE_SUCCEEDED"}
    if due.spent is not None:
        error = {"reason": "EFFECT_REASON_BUDGET", "message": spent(due.spent)}
        return "EFFECT_RESOLVED", {"state": "EFFECT_STATE_FAILED", "error": error}
    error = {"reason": f"EFFECT_REASON_{due.reason}", "message": _MESSAGES[due.reason]}
    if due.kind == "RUN":  # it is asked to end, and its end settles the effect
        return "EFFECT_CANCEL_REQUESTED", error
    return "EFFECT_RESOLVED", {"state": "EFFECT_STATE_TIMED_OUT", "error": error}


def _time_over(due: DeadlineDue) -> dict[str, Any]:
    type_, data = _outcome(due)
    return {
        "type": type_,
        "cause": 0,
        "effect_id": due.effect_id,
        "effect_key": due.effect_key,
        "attempt": due.attempt,
        "data": data,
    }
