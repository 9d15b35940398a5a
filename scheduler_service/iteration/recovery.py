"""Stage 9, RESUME, of the scheduler: which shards are ours, and the runs in them.

A shard is leased with an epoch. Adopting a run means to stamp the epoch into its head row, commit, and only then read
its journal. What was lost is dropped at once: its appends would be refused anyway.
"""

import asyncio
import logging
import random
from collections.abc import Callable

from scheduler_service.iteration.loop import Loop
from scheduler_service.iteration.runs import Phase, RunState
from scheduler_service.journal import Journal, JournalUnavailable, shard_of

log = logging.getLogger(__name__)

_ADOPT_PAGE = 500
_PARKED = ("PROCESS_ERROR", "HALTED")


class Shards:
    """Keeps the leases of this replica and adopts the runs behind them."""

    def __init__(
        self,
        journal: Journal,
        loop: Loop,
        *,
        scheduler_id: str,
        address: str,
        version: str,
        lease_s: float,
        on_parked_cancel: Callable[[RunState], None],
    ) -> None:
        self._journal = journal
        self._loop = loop
        self._scheduler_id = scheduler_id
        self._address = address
        self._version = version
        self._lease_s = lease_s
        self._on_parked_cancel = on_parked_cancel
        self.epochs: dict[int, int] = {}
        #: Shards of ours with runs that are yet to be adopted.
        self._unread: set[int] = set()

    def epoch_of(self, run_id: str) -> int | None:
        """Epoch of the run's shard when it is ours."""
        return self.epochs.get(shard_of(run_id))

    def read_again(self, run_id: str) -> None:
        """A run may have been created without our hearing of it: its shard is read at the next turn."""
        if self.epoch_of(run_id) is not None:
            self._unread.add(shard_of(run_id))

    async def run(self) -> None:
        """Renews and claims until cancelled."""
        while True:
            try:
                await self.turn()
            except JournalUnavailable as error:
                log.warning("leases cannot be renewed: %s", error)
            await asyncio.sleep(self._lease_s / 3 * random.uniform(0.75, 1.0))

    async def turn(self) -> None:
        """One renewal and one claim; runs of new shards are adopted."""
        kept = set(await self._journal.renew_shards(self._scheduler_id, self._lease_s))
        for shard in set(self.epochs) - kept:
            self._lose(shard)
        if kept - set(self.epochs):
            await self._start_over()
        claimed = await self._journal.claim_shards(self._scheduler_id, self._address, self._version, self._lease_s)
        for lease in claimed:
            if lease.shard in self.epochs:
                self._lose(lease.shard)  # it ran out between the renewal and the claim
            self.epochs[lease.shard] = lease.epoch
            self._unread.add(lease.shard)
        self._unread |= self.epochs.keys() & set(await self._journal.unadopted(self._scheduler_id))
        for shard in sorted(self._unread):
            await self._adopt(shard, self.epochs[shard])
            self._unread.discard(shard)

    async def _start_over(self) -> None:
        """We hold leases whose epochs we never heard of: the answer to a claim was lost. All are given back."""
        log.warning("the answer to a claim of shards was lost: claiming anew")
        for shard in list(self.epochs):
            self._lose(shard)
        await self._journal.release_shards(self._scheduler_id)

    async def release(self) -> None:
        """Gives all shards back, so that the next owner need not wait for the leases to run out."""
        self.epochs.clear()
        await self._journal.release_shards(self._scheduler_id)

    async def _adopt(self, shard: int, epoch: int) -> None:
        after: str | None = None
        while True:
            page = await self._journal.adopt_runs(self._scheduler_id, shard, epoch, after, _ADOPT_PAGE)
            for head in page:
                run = RunState(
                    run_id=head.run_id,
                    namespace=head.namespace,
                    process=head.process,
                    epoch=epoch,
                    iteration=head.iteration,
                    strikes=head.strikes,
                    head=head.seq,
                    fed=head.seq if head.state in _PARKED else 0,
                    phase=Phase.PARKED if head.state in _PARKED else Phase.IDLE,
                    parked_at=head.seq if head.state in _PARKED else 0,
                )
                self._begin(self._loop.runs.add(run), cancelled=head.cancel_requested)
            if len(page) < _ADOPT_PAGE:
                return
            after = page[-1].run_id

    def _begin(self, run: RunState, *, cancelled: bool) -> None:
        if run.phase is Phase.PARKED and cancelled:
            self._on_parked_cancel(run)
        elif run.phase is Phase.IDLE:
            self._loop.kick(run)

    def _lose(self, shard: int) -> None:
        log.warning("shard %d is lost; its runs go on elsewhere", shard)
        self.epochs.pop(shard, None)
        self._unread.discard(shard)
        for run in [run for run in self._loop.runs if shard_of(run.run_id) == shard]:
            self._loop.forget(run)
