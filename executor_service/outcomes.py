"""The writer of outcomes: takes what ended to the journal, and tells what was written.

It sends everything that waits in one call, which is one commit; while a commit is in flight the next batch gathers.
Rows go on to the scheduler, the end of an attempt to `attempts.py`. While Postgres is away outcomes wait here, and on
disk (`spool.py`): an attempt keeps its slot until its outcome is recorded, which bounds them to as many as there are
slots, each of at most RESULT_BYTES_MAX and what it takes to quote that; one large outcome at a time is on its way. One
whose outcome cannot be stored fails with INVALID_RESULT; if the journal does not take even that, it stays held and
reported, and is tried again now and then.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.assignment import Assignment, Ref
from executor_service.invocation import Invocation
from executor_service.outbox import notice
from executor_service.outcome import Outcome, settle_item
from executor_service.recording import SETTLE, Busy, Lane, Refused
from executor_service.spool import Spool

log = logging.getLogger(__name__)

BATCH_MAX: Final = 500
#: Bytes of outcomes in one call; a larger one travels alone.
BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
#: Pause after a batch whose every run is locked by somebody else.
_BUSY_SECONDS: Final = 0.005
#: After so long an outcome that the journal does not take at all is tried again.
REFUSED_SECONDS: Final = 60.0


class Holder(Protocol):
    """Who holds the attempts: see `attempts.py`."""

    def recorded(self, invocation: Invocation, event: pb.JournaledEvent | None) -> None:
        """The outcome is in the journal, as the row in `event` when there is one."""

    def stale(self, refs: Sequence[Ref]) -> None:
        """These attempts are no longer ours."""


Publish = Callable[[Sequence[pb.JournaledEvent]], None]


@dataclass(slots=True)
class _Settlement:
    invocation: Invocation
    item: bytes
    busy: int = 0
    #: True when the outcome was replaced by one that says it could not be stored.
    replaced: bool = False


class Outcomes:
    """The writer of outcomes."""

    def __init__(
        self,
        lane: Lane,
        holder: Holder,
        publish: Publish,
        spool: Spool,
        executor_id: str,
        *,
        park_after_s: float | None = None,
    ) -> None:
        self._lane = lane
        self._holder = holder
        self._publish = publish
        self._spool = spool
        self._executor_id = executor_id
        self._park_after_s = park_after_s
        #: Takes what was recorded: see `again.py`.
        self.keep: Callable[[Assignment, bytes], None] = lambda assignment, item: None
        #: Hears what the journal says of each outcome: for metrics.
        self.on_recorded: Callable[[Invocation, str], None] = lambda invocation, verdict: None
        self._waiting: deque[_Settlement] = deque()
        self._wake = asyncio.Event()

    @property
    def journal_up(self) -> bool:
        """False while the journal does not answer."""
        return self._lane.up

    def add(self, invocation: Invocation) -> None:
        """Takes the outcome of an attempt."""
        try:
            settlement = self._settlement(invocation)
        except Exception as error:
            log.exception("the outcome of attempt %s cannot be encoded", invocation.assignment.ref)
            settlement = self._replacement(invocation, error)
        self._queue(settlement)

    async def run(self) -> None:
        """Writes until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._write(self._batch())

    def _queue(self, settlement: _Settlement) -> None:
        self._waiting.append(settlement)
        self._wake.set()

    def _replacement(self, invocation: Invocation, error: Exception) -> _Settlement:
        """What is settled instead: nothing of it can be refused for what the work gave."""
        assert invocation.outcome is not None  # noqa: S101 - it has finished
        invocation.outcome = Outcome(death_proven=invocation.outcome.death_proven).fail(
            "INVALID_RESULT", f"the outcome cannot be stored: {error}", final=True
        )
        replacement = self._settlement(invocation)
        replacement.replaced = True
        return replacement

    def _settlement(self, invocation: Invocation) -> _Settlement:
        assert invocation.outcome is not None  # noqa: S101 - it has finished
        item = settle_item(
            invocation.assignment, self._executor_id, invocation.outcome, invocation.elapsed_s, self._park_after_s
        )
        invocation.outcome.value_json = None  # a large value is held once
        self._spool.wait(invocation.assignment.ref, item)
        return _Settlement(invocation, item)

    def _batch(self) -> list[_Settlement]:
        batch = [self._waiting.popleft()]
        size = len(batch[0].item)
        # The journal waits for the lock of a run only when a call is about that run alone.
        while self._waiting and len(batch) < BATCH_MAX and batch[0].busy < 2 and self._waiting[0].busy < 2:
            size += len(self._waiting[0].item)
            if size > BATCH_BYTES_MAX:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _write(self, batch: list[_Settlement]) -> None:
        try:
            items = [orjson.Fragment(settlement.item) for settlement in batch]
            rows = await self._lane.call(SETTLE, (orjson.dumps(items).decode(),))
        except Refused as error:
            await self._bisect(batch, error)
            return
        except Busy:
            for settlement in batch:
                self._postpone(settlement)
            await asyncio.sleep(_BUSY_SECONDS)
            return
        self._take(batch, rows)
        if all(row[1] == "busy" for row in rows):
            await asyncio.sleep(_BUSY_SECONDS)

    def _take(self, batch: list[_Settlement], rows: Sequence[tuple[Any, ...]]) -> None:
        events = []
        for row in rows:
            settlement = batch[row[0]]
            if row[1] == "busy":
                self._postpone(settlement)
                continue
            self.on_recorded(settlement.invocation, row[1])
            if row[1] in ("ok", "already"):
                self.keep(settlement.invocation.assignment, settlement.item)
            else:
                log.warning("the outcome of attempt %s is %s", settlement.invocation.assignment.ref, row[1])
            event = None if row[2] is None else notice(settlement.invocation, row, frees_slot=True)
            if event is not None:
                events.append(event)
            self._holder.recorded(settlement.invocation, event)
        if events:
            self._publish(events)

    def _postpone(self, settlement: _Settlement) -> None:
        settlement.busy += 1
        self._waiting.append(settlement)

    async def _bisect(self, batch: list[_Settlement], error: Refused) -> None:
        """One outcome that cannot be stored must not hold up the others."""
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._write(batch[:middle])
            await self._write(batch[middle:])
            return
        [settlement] = batch
        ref = settlement.invocation.assignment.ref
        if settlement.replaced:
            # It stays in the report: forgotten here, its row and its slot at the scheduler would stay open for ever.
            log.error("attempt %s has ended, and the journal takes no outcome of it: it stays held: %s", ref, error)
            asyncio.get_running_loop().call_later(REFUSED_SECONDS, self._queue, settlement)
            return
        log.error("the outcome of attempt %s is refused, and it fails instead: %s", ref, error)
        await self._write([self._replacement(settlement.invocation, error)])
