"""The polls that are the truth behind every wake: heads of owned runs, flagged cancels, missed deadlines, the clock."""

import asyncio
import logging
import random
import time
from typing import Any

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from scheduler_service.dispatch.sessions import Sessions
from scheduler_service.iteration.loop import Loop
from scheduler_service.iteration.recovery import Shards
from scheduler_service.iteration.runs import Phase
from scheduler_service.journal import Append, DeadlineDue, FlaggedAttempt, Journal, JournalUnavailable
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

    def __init__(self, journal: Journal, loop: Loop, sessions: Sessions, shards: Shards, settings: Settings) -> None:
        self._journal = journal
        self._loop = loop
        self._sessions = sessions
        self._shards = shards
        self._settings = settings
        self._clock_read = 0.0

    async def run(self) -> None:
        """Polls until cancelled."""
        while True:
            await asyncio.sleep(self._settings.poll_seconds * random.uniform(0.75, 1.25))
            try:
                await self._turn()
            except JournalUnavailable as error:
                log.warning("the journal cannot be polled: %s", error)

    async def read_clock(self) -> None:
        """Measures how far the database's clock is from ours."""
        before = time.time()
        now = await self._journal.now()
        after = time.time()
        self._loop.timers.offset_s = now.timestamp() - (before + after) / 2
        self._clock_read = time.monotonic()

    async def _turn(self) -> None:
        if time.monotonic() - self._clock_read > _CLOCK_SECONDS:
            await self.read_clock()
        await self._heads()
        for flagged in await self._journal.flagged_attempts([session.executor_id for session in self._sessions]):
            self._cancel(flagged)
        for due in await self._journal.deadlines_due(sorted(self._shards.epochs)):
            await self._time_out(due)
        self._evict()
        self._drop_silent()

    async def _heads(self) -> None:
        waiting = [run.run_id for run in self._loop.runs if run.phase in (Phase.IDLE, Phase.PARKED)]
        for start in range(0, len(waiting), _HEADS_PER_POLL):
            heads = await self._journal.heads(waiting[start : start + _HEADS_PER_POLL])
            for run_id, seq in heads.items():
                self._loop.hear_head(run_id, seq)

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
        row = _timed_out(due)
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
        """A stream without frames is dead, whatever TCP says."""
        for session in self._sessions.lagging(self._settings.heartbeat_seconds * 4):
            log.warning("executor %s sent no frame for too long: its session ends", session.executor_id)
            session.close("no frames")


def _timed_out(due: DeadlineDue) -> dict[str, Any]:
    error = {"reason": f"EFFECT_REASON_{due.reason}", "message": _MESSAGES[due.reason]}
    return {
        "type": "EFFECT_RESOLVED",
        "cause": 0,
        "effect_id": due.effect_id,
        "effect_key": due.effect_key,
        "attempt": due.attempt,
        "data": {"state": "EFFECT_STATE_TIMED_OUT", "error": error},
    }
