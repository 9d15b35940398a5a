"""Group commit: everything that waits goes in one call of one function, and each item gets its own outcome.

There is no timer: while one commit is on its way, the next batch gathers. A caller that is cancelled does not take its
item back: what was submitted is written.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString

import orjson

from scheduler_service.journal.connecting import Row
from scheduler_service.journal.errors import JournalBusy, JournalRefused, JournalUnavailable
from scheduler_service.journal.link import Link
from scheduler_service.journal.lives import Life, Lives

log = logging.getLogger(__name__)

#: Items and bytes of one call: bounds the commit, and how long its heads stay locked.
ITEMS_MAX: Final = 500
BYTES_MAX: Final = 8_000_000
#: Items that may wait; beyond it, callers are told that the journal is not available.
WAITING_MAX: Final = 20_000
#: How long an item is tried before its caller is told that its fate is unknown.
ITEM_SECONDS: Final = 15.0
_BUSY_TRIES_TOGETHER = 2
_BUSY_SECONDS = 0.002


@dataclass(slots=True, eq=False)
class _Item:
    payload: bytes
    future: asyncio.Future[Row]
    deadline: float
    life: Life | None
    busy: int = 0


@dataclass(slots=True, eq=False)
class GroupWriter:
    """Calls one array function; `statement` has the one parameter %(items)s and answers (ord, outcome, ...).

    With `lives` an item is written in the life of the database in which it was submitted, or not at all.
    """

    link: Link
    statement: LiteralString
    name: str
    lives: Lives | None = None
    _waiting: deque[_Item] = field(default_factory=deque)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts the writer task."""
        self._task = asyncio.create_task(self._run(), name=f"writer {self.name}")

    async def stop(self) -> None:
        """Stops the task; what still waits is answered with JournalUnavailable."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for item in self._waiting:
            _fail(item, JournalUnavailable(f"{self.name}: the service stops"))
        self._waiting.clear()

    async def submit(self, item: Mapping[str, Any]) -> Row:
        """Writes one item and answers with its row. Raises JournalUnavailable or JournalRefused."""
        if len(self._waiting) >= WAITING_MAX:
            raise JournalUnavailable(f"{self.name}: {WAITING_MAX} writes are waiting already")
        life = self.lives.current if self.lives is not None else None
        deadline = time.monotonic() + ITEM_SECONDS
        waiting = _Item(orjson.dumps(item), asyncio.get_running_loop().create_future(), deadline, life)
        self._waiting.append(waiting)
        self._wake.set()
        return await asyncio.shield(waiting.future)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch = self._next_batch()
                try:
                    await self._write(batch)
                except asyncio.CancelledError:
                    for item in batch:
                        _fail(item, JournalUnavailable(f"{self.name}: the service stops"))
                    raise
                except Exception as error:  # whatever it is, the next batch must not wait for ever
                    log.exception("writer %s: a batch of %d went wrong", self.name, len(batch))
                    for item in batch:
                        _fail(item, JournalUnavailable(f"{self.name}: {error!r}"))

    def _next_batch(self) -> list[_Item]:
        """The oldest items; one that was busy too often goes alone, so that it waits for its lock."""
        batch = [self._waiting.popleft()]
        size = len(batch[0].payload)
        alone, life = batch[0].busy >= _BUSY_TRIES_TOGETHER, batch[0].life
        while not alone and self._waiting and len(batch) < ITEMS_MAX:
            item = self._waiting[0]
            if item.life != life or item.busy >= _BUSY_TRIES_TOGETHER or size + len(item.payload) > BYTES_MAX:
                break
            size += len(item.payload)
            batch.append(self._waiting.popleft())
        return batch

    async def _write(self, batch: Sequence[_Item]) -> None:
        try:
            rows = await self._call(batch)
        except JournalBusy as error:
            self._postpone(batch, error)
        except JournalUnavailable as error:
            for item in batch:
                _fail(item, error)
        except JournalRefused as error:
            await self._bisect(batch, error)
        else:
            await self._answer(batch, rows)

    def _postpone(self, batch: Sequence[_Item], error: JournalBusy) -> None:
        """Items whose lock is held for long go to the end: what waits behind them need not."""
        for item in batch:
            item.busy += 1
            if time.monotonic() >= item.deadline:
                _fail(item, error)
            else:
                self._waiting.append(item)

    async def _call(self, batch: Sequence[_Item]) -> list[Row]:
        items = b"[" + b",".join(item.payload for item in batch) + b"]"
        deadline = min(item.deadline for item in batch)
        return await self.link.call(
            self.statement, {"items": items.decode()}, name=self.name, deadline=deadline, life=batch[0].life
        )

    async def _bisect(self, batch: Sequence[_Item], error: JournalRefused) -> None:
        """A batch that fails as a whole is halved until the items that are to blame stand alone."""
        if len(batch) == 1:
            _fail(batch[0], error)
            return
        middle = len(batch) // 2
        await self._write(batch[:middle])
        await self._write(batch[middle:])

    async def _answer(self, batch: Sequence[_Item], rows: Sequence[Row]) -> None:
        again = []
        for row in rows:
            item = batch[row["ord"]]
            if row["outcome"] == "busy":
                item.busy += 1
                again.append(item)
            elif not item.future.done():
                item.future.set_result(row)
        if again:
            self._waiting.extendleft(reversed(again))
            self._wake.set()
            await asyncio.sleep(_BUSY_SECONDS)


def _fail(item: _Item, error: Exception) -> None:
    if not item.future.done():
        item.future.set_exception(error)
        item.future.exception()  # a caller that went away does not make it an unhandled one
