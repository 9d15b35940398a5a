"""Stage 9, RESUME, of the scheduler: the runs behind the shards that this replica holds.

Adopting a run means to stamp the shard's epoch into its head row, commit, and only then read its journal. It goes on
beside the renewal of the leases: a shard with very many runs must not cost the leases of all.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from scheduler_service.iteration.loop import Loop
from scheduler_service.iteration.runs import Phase, RunState
from scheduler_service.journal import AdoptedRun, Journal, JournalUnavailable, shard_of

log = logging.getLogger(__name__)

_PAGE: Final = 500
#: Runs whose creation was heard of and that are not adopted yet; the poll finds what is dropped beyond it.
_HEARD_MAX: Final = 10_000
#: The sweep leaves alone what has happened within so many seconds: whoever did it is about to learn that it is done.
_QUIET_SECONDS: Final = 5.0
_PARKED: Final = ("PROCESS_ERROR", "HALTED")


class Adoption:
    """Adopts whole shards that are new here, and single runs that another replica has created in ours."""

    def __init__(
        self,
        journal: Journal,
        loop: Loop,
        *,
        scheduler_id: str,
        epochs: Mapping[int, int],
        poll_s: float,
        on_parked_cancel: Callable[[RunState], None],
    ) -> None:
        self._leases = journal.leases
        self._loop = loop
        self._scheduler_id = scheduler_id
        self._epochs = epochs
        self._poll_s = poll_s
        self._on_parked_cancel = on_parked_cancel
        #: Shards of ours with runs that are yet to be adopted.
        self._unread: set[int] = set()
        self._heard: dict[str, None] = {}
        #: How far the sweep has come: a shard, and the run after which its next page begins.
        self._swept: tuple[int, str | None] = (-1, None)
        self._wake = asyncio.Event()

    def read(self, shard: int) -> None:
        """Has all runs of a shard adopted."""
        self._unread.add(shard)
        self._wake.set()

    def lost(self, shard: int) -> None:
        """The shard is not ours any more."""
        self._unread.discard(shard)

    def created(self, run_id: str) -> None:
        """A run may have been created that nobody here has begun; it is looked at when its shard is ours."""
        if shard_of(run_id) in self._epochs and len(self._heard) < _HEARD_MAX:
            self._heard[run_id] = None
            self._wake.set()

    async def sweep(self) -> None:
        """Looks for runs of ours that nobody here knows: a page of one shard, and the next one at the next call.

        A run is created with our epoch when its shard is ours, so that no other replica looks for it. When we do not
        learn of the commit, or it comes only after we have looked, the run would lie there until its shard moves.
        """
        shard, after = self._swept
        if after is None or shard not in self._epochs:
            shard, after = next((s for s in sorted(self._epochs) if s > shard), -1), None
        self._swept = shard, None
        if shard == -1 or shard in self._unread:
            return
        page = await self._leases.quiet_runs(shard, after, _PAGE, quiet_s=_QUIET_SECONDS)
        self._swept = shard, page[-1] if len(page) == _PAGE else None
        for run_id in page:
            if self._loop.runs.get(run_id) is None:
                log.warning("run %s is ours and was not known here", run_id)
                self.created(run_id)

    async def run(self) -> None:
        """Adopts what is heard of at once, and looks for what was not heard of."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s * random.uniform(0.75, 1.25)):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._turn()
            except JournalUnavailable as error:
                log.warning("runs cannot be adopted: %s", error)
                await asyncio.sleep(self._poll_s)

    async def _turn(self) -> None:
        for shard in sorted(self._unread):
            await self._adopt_shard(shard)
        found = await self._leases.created_elsewhere(self._scheduler_id, _PAGE) if self._epochs else []
        # Kept until the answer is there: one that is lost may have stamped them, and then nobody finds them again.
        self._heard |= dict.fromkeys(found)
        heard = list(self._heard)[:_PAGE]
        if heard:
            self._begin(await self._leases.adopt_created(self._scheduler_id, heard))
        for run_id in heard:
            self._heard.pop(run_id, None)
        if self._heard or len(found) == _PAGE:
            self._wake.set()

    async def _adopt_shard(self, shard: int) -> None:
        """All open runs of a shard; stops when it is lost meanwhile. One that fails half-way is read again."""
        epoch = self._epochs.get(shard)
        after: str | None = None
        while epoch is not None and self._epochs.get(shard) == epoch:
            page = await self._leases.adopt_runs(self._scheduler_id, shard, epoch, after, _PAGE)
            self._begin(page)
            if len(page) < _PAGE:
                if self._epochs.get(shard) == epoch:
                    self._unread.discard(shard)
                return
            after = page[-1].run_id

    def _begin(self, heads: Sequence[AdoptedRun]) -> None:
        for head in heads:
            if self._epochs.get(shard_of(head.run_id)) != head.epoch:
                continue  # lost while the answer was on its way
            run = self._loop.runs.add(_run_of(head))
            if run.phase is Phase.PARKED and head.cancel_requested:
                self._on_parked_cancel(run)
            elif run.phase is Phase.IDLE:
                self._loop.kick(run)


def _run_of(head: AdoptedRun) -> RunState:
    parked = head.state in _PARKED
    return RunState(
        run_id=head.run_id,
        namespace=head.namespace,
        process=head.process,
        client=head.client_driven,
        epoch=head.epoch,
        iteration=head.iteration,
        strikes=head.strikes,
        head=head.seq,
        fed=head.seq if parked else 0,
        phase=Phase.PARKED if parked else Phase.IDLE,
        parked_at=head.seq if parked else 0,
    )
