"""Client-driven runs: what their clients ask for, on whichever replica they call.

A request is one commit, with the dispatch of what this replica's executors have room for. Its owner, here or elsewhere,
hears of the rows like of any others; it runs no code for such a run.
"""

import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from scheduler_service.iteration.events import event_of_row
from scheduler_service.iteration.fast_path import Reservations
from scheduler_service.iteration.loop import Loop
from scheduler_service.journal import (
    ClientRequest,
    ClientRequestOutcome,
    FinishRun,
    FinishRunOutcome,
    HaltIdle,
    Journal,
    OpenClient,
    OpenClientOutcome,
)
from scheduler_service.replay.events import Event

log = logging.getLogger(__name__)

T = TypeVar("T")


class ClientRuns:
    """Implements `api.engine.ClientApi`.

    `to_its_end` runs a coroutine to its end also when its caller goes away: slots that were taken must be given back.
    `grace_s`: clients could not call while this replica or the database was away, so nobody is held to be silent for so
    long after that.
    """

    def __init__(
        self,
        journal: Journal,
        loop: Loop,
        to_its_end: Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]],
        *,
        grace_s: float,
    ) -> None:
        self._journal = journal
        self._loop = loop
        self._to_its_end = to_its_end
        self._grace_s = grace_s
        self._patient_until = 0.0
        self.be_patient()

    def be_patient(self) -> None:
        """Clients could not call until now."""
        self._patient_until = time.monotonic() + self._grace_s

    async def open(self, request: OpenClient) -> OpenClientOutcome:
        """Another start of a run's client: fences the one before."""
        outcome = await self._journal.clients.open(request)
        self._loop.hear_rows(request.run_id, outcome.extra, outcome.recorded_at, request.actor)
        return outcome

    async def request(self, asked: ClientRequest) -> ClientRequestOutcome:
        """Requests effects; what an executor of this replica has room for starts at once."""
        outcome: ClientRequestOutcome = await self._to_its_end(self._request(asked))
        return outcome

    async def _request(self, asked: ClientRequest) -> ClientRequestOutcome:
        asked = dataclasses.replace(asked, owner=self._loop.actor)
        self._loop.prepare(asked.run_id, asked.rows)
        reservations = self._loop.fast_path.reserve(asked, asked.rows)
        try:
            outcome = await self._journal.clients.request(asked)
        except BaseException:
            # Starts of a commit whose answer was lost are found by reconciliation.
            self._loop.fast_path.give_back(reservations)
            self._loop.look_for_created(asked.rows)
            raise
        self._requested(asked, outcome, reservations)
        return outcome

    def _requested(self, asked: ClientRequest, outcome: ClientRequestOutcome, reservations: Reservations) -> None:
        fresh = frozenset(outcome.detail.get("fresh", ()))
        rows = [row for row in asked.rows if row["effect_key"] in fresh]
        if outcome.outcome == "recorded":  # perhaps by a commit of ours whose answer was lost
            self._loop.look_for_created(asked.rows)
        events = [
            event_of_row(row, outcome.first_seq + place, outcome.recorded_at, asked.actor)
            for place, row in enumerate(rows)
        ]
        events += [event_of_row(row, int(row["seq"]), outcome.recorded_at, asked.actor) for row in outcome.extra]
        self._loop.fast_path.send(asked, rows, reservations, events)
        self._loop.fast_path.give_back(reservations)  # of keys that were recorded already
        self._loop.hear(asked.run_id, sorted(events, key=_seq))
        self._loop.committed(outcome.detail, outcome.recorded_at, asked.owner)

    async def finish(self, request: FinishRun) -> FinishRunOutcome:
        """Ends a run, or has its owner end it after its open effects."""
        outcome = await self._journal.clients.finish(request)
        self._loop.hear_rows(request.run_id, outcome.extra, outcome.recorded_at, request.actor)
        self._loop.fast_path.send_cancels(request.run_id, outcome.detail.get("cancels", ()))
        self._loop.committed(outcome.detail, outcome.recorded_at, request.actor)
        return outcome

    async def seen(self, run_ids: Sequence[str]) -> Mapping[str, float]:
        """Notes signs of life; answers with how many seconds the client of each watched run may be silent."""
        return await self._journal.clients_seen(run_ids)

    async def halt_idle(self, shards: Mapping[int, int], shard_of: Callable[[str], int]) -> None:
        """Halts the runs of these shards, by shard with its epoch, whose clients are silent for too long."""
        if time.monotonic() < self._patient_until:
            return
        for run_id in await self._journal.idle_clients(sorted(shards)):
            epoch = shards.get(shard_of(run_id))
            if epoch is None:
                continue
            outcome = await self._journal.clients.halt_idle(
                HaltIdle(run_id=run_id, epoch=epoch, actor=self._loop.actor)
            )
            if outcome.outcome == "ok":
                log.info("run %s is halted: its client is silent", run_id)
            self._loop.hear_rows(run_id, outcome.extra, outcome.recorded_at, self._loop.actor)


def _seq(event: Event) -> int:
    return event.seq
