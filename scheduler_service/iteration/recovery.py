"""Stage 9, RESUME, of the scheduler: which shards are ours.

A shard is leased with an epoch. Each live replica holds its fair share: it takes what is free up to it at once, and
gives back what it has beyond it once the replicas have been the same for a whole lease. What was lost is dropped at
once: its appends would be refused anyway.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from scheduler_service.iteration.adoption import Adoption
from scheduler_service.iteration.loop import Loop
from scheduler_service.iteration.runs import Phase, RunState
from scheduler_service.iteration.shares import SHARDS, Membership
from scheduler_service.journal import Journal, JournalUnavailable, Replica, Vitals, shard_of
from scheduler_service.recent import Recent

log = logging.getLogger(__name__)

#: Longest that a shard which is given back waits for the appends that are on their way.
_HANDOVER_SECONDS_MAX: Final = 1.0
#: How long a loss of shards is told of.
_LOSSES_SECONDS: Final = 600.0


class Shards:
    """Keeps the leases of this replica at its fair share."""

    def __init__(
        self,
        journal: Journal,
        loop: Loop,
        *,
        scheduler_id: str,
        version: str,
        lease_s: float,
        poll_s: float,
        on_parked_cancel: Callable[[RunState], None],
    ) -> None:
        self._leases = journal.leases
        self._loop = loop
        self._scheduler_id = scheduler_id
        self._version = version
        self._lease_s = lease_s
        self._members = Membership(scheduler_id, quiet_s=lease_s)
        self._draining = False
        self._wake = asyncio.Event()
        #: Where the other replicas reach this one. Empty: nowhere. Set before the first turn.
        self.address = ""
        #: The shards that are ours, with their epochs.
        self.epochs: dict[int, int] = {}
        self.adoption = Adoption(
            journal, loop, scheduler_id=scheduler_id, epochs=self.epochs, poll_s=poll_s,
            on_parked_cancel=on_parked_cancel,
        )  # fmt: skip
        #: Set by the engine: hears of the replicas and the owners as they are read, and of shards given back or taken.
        self.on_replicas: Callable[[Sequence[Replica], Mapping[int, str]], None] = lambda replicas, owners: None
        self.on_moved: Callable[[], None] = lambda: None
        #: Set by the engine: how this replica does.
        self.vitals: Callable[[], Vitals] = Vitals
        #: Shards that were lost and not given back.
        self.losses = Recent(_LOSSES_SECONDS)

    def epoch_of(self, run_id: str) -> int | None:
        """Epoch of the run's shard when it is ours."""
        return self.epochs.get(shard_of(run_id))

    def forget(self) -> None:
        """The database is in another life: no lease and no run that we know of need be there. All are taken anew."""
        for shard in list(self.epochs):
            self._drop(shard)
        self.look()

    def look(self) -> None:
        """Something may be free: the next turn is now."""
        self._wake.set()

    async def run(self) -> None:
        """Renews, gives back and claims until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._lease_s / 3 * random.uniform(0.75, 1.0)):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self.turn()
            except JournalUnavailable as error:
                log.warning("leases cannot be renewed: %s", error)

    async def turn(self) -> None:
        """One renewal; then what is beyond our share is given back, and what is free is taken up to it."""
        await self._renew()
        self._note(await self._leases.replicas(), await self._leases.owners())
        if self._draining:
            return
        surplus = len(self.epochs) - self._members.share
        if surplus > 0 and self._members.is_settled(time.monotonic()):
            await self.give_back(sorted(self.epochs)[-surplus:])
        elif surplus < 0:
            await self._claim(-surplus)

    async def _renew(self) -> None:
        leases = await self._leases.renew(
            self._scheduler_id,
            address=self.address,
            version=self._version,
            ttl_s=self._lease_s,
            draining=self._draining,
            vitals=self.vitals(),
        )
        kept = {lease.shard: lease.epoch for lease in leases}
        for shard in set(self.epochs) - set(kept):
            log.warning("shard %d is lost; its runs go on elsewhere", shard)
            self.losses.note(shard)
            self._drop(shard)
        if kept != self.epochs:
            await self._start_over()

    async def _start_over(self) -> None:
        """We hold leases whose epochs we never heard of: the answer to a claim was lost. All are given back."""
        log.warning("the answer to a claim of shards was lost: claiming anew")
        for shard in list(self.epochs):
            self._drop(shard)
        await self._leases.release(self._scheduler_id, range(SHARDS))

    def _note(self, replicas: Sequence[Replica], owners: Mapping[int, str]) -> None:
        others = [r for r in replicas if r.live and not r.draining and r.scheduler_id != self._scheduler_id]
        self._members.note([replica.scheduler_id for replica in others], time.monotonic())
        self.on_replicas(replicas, owners)

    async def _claim(self, most: int) -> None:
        claimed = await self._leases.claim(
            self._scheduler_id, address=self.address, version=self._version, ttl_s=self._lease_s, most=most
        )
        for lease in claimed:
            if lease.shard in self.epochs:
                self._drop(lease.shard)  # it ran out between the renewal and the claim
            self.epochs[lease.shard] = lease.epoch
            self.adoption.read(lease.shard)
        if claimed:
            log.info("took shards %s: %d of ours now", sorted(lease.shard for lease in claimed), len(self.epochs))
            self.on_moved()

    async def give_back(self, shards: Collection[int]) -> None:
        """Hands shards over: nothing new is begun for their runs, appends on their way end, the runs are let go of."""
        self._loop.leaving |= set(shards)
        try:
            await self._quiet(shards)
            for shard in shards:
                self._drop(shard)
            await self._leases.release(self._scheduler_id, list(shards))
        finally:
            self._loop.leaving -= set(shards)
        log.info("gave back shards %s: %d of ours now", sorted(shards), len(self.epochs))
        self.on_moved()

    async def _quiet(self, shards: Collection[int]) -> None:
        deadline = time.monotonic() + min(_HANDOVER_SECONDS_MAX, self._lease_s / 4)
        busy = self._runs_of(shards)
        while time.monotonic() < deadline:
            busy = [run for run in busy if run.phase in (Phase.STEPPING, Phase.APPENDING)]
            if not busy:
                return
            await asyncio.sleep(0.005)

    async def drain(self) -> None:
        """Says to the others that this replica goes away: they share among themselves."""
        self._draining = True
        await self._renew()
        self._note(await self._leases.replicas(), await self._leases.owners())  # those that came since the last turn

    async def release(self) -> None:
        """Hands everything over, so that the next owners need not wait for the leases to run out."""
        self._draining = True
        await self.give_back(list(self.epochs))
        await self._leases.release(self._scheduler_id)

    def _runs_of(self, shards: Collection[int]) -> list[RunState]:
        return [run for run in self._loop.runs if shard_of(run.run_id) in shards]

    def _drop(self, shard: int) -> None:
        self.epochs.pop(shard, None)
        self.adoption.lost(shard)
        for run in self._runs_of((shard,)):
            self._loop.forget(run)
