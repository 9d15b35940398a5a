"""The writer of starts, progress and output: what an attempt says while it runs, taken to the journal in batches.

An attempt that the journal no longer counts as ours is ended. Unlike outcomes, what the journal refuses here is left
out: one bad item goes alone, and stands in the way of no other. What somebody else has locked is tried again.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, Final, LiteralString

import orjson

from executor_service.invocation import Invocation
from executor_service.outbox import notice
from executor_service.outcome import storable
from executor_service.outcomes import BATCH_MAX, Holder, Outcomes, Publish
from executor_service.output import CHUNK_BYTES_MAX, Capture
from executor_service.recording import OUTPUT, PROGRESS, STARTED, Busy, Lane, Refused

log = logging.getLogger(__name__)

#: At most one commit of progress in so many seconds: each row of it costs a synchronous commit.
PROGRESS_SECONDS: Final = 1.0
#: How long output gathers before it is written.
OUTPUT_SECONDS: Final = 0.2
#: Bytes of output in one call.
OUTPUT_BYTES_MAX: Final = 1024 * 1024
#: How long an outcome waits for the last of its output to be written.
_LAST_OUTPUT_SECONDS: Final = 2.0
#: Pause before what was locked by somebody else is tried again.
_BUSY_SECONDS: Final = 0.05


class Reports:
    """The writer of starts, progress and output."""

    def __init__(self, lane: Lane, holder: Holder, publish: Publish, outcomes: Outcomes) -> None:
        self._lane = lane
        self._holder = holder
        self._publish = publish
        self._outcomes = outcomes
        self._started: list[Invocation] = []
        self._progress: dict[Invocation, None] = {}
        self._output: dict[Invocation, None] = {}
        self._last_output: dict[Invocation, asyncio.TimerHandle] = {}
        self._starts_due = 0.0
        self._progress_due = 0.0
        self._output_due = 0.0
        self._wake = asyncio.Event()

    def started(self, invocation: Invocation) -> None:
        """The attempt has run for a while."""
        self._started.append(invocation)
        self._wake.set()

    def dirty_progress(self, invocation: Invocation) -> None:
        """Progress waits."""
        if not self._progress:
            self._wake.set()
        self._progress[invocation] = None

    def dirty_output(self, invocation: Invocation) -> None:
        """Output waits."""
        if not self._output:
            self._output_due = time.monotonic() + OUTPUT_SECONDS
            self._wake.set()
        self._output[invocation] = None

    def settle(self, invocation: Invocation) -> None:
        """The outcome waits: it goes on at once, or after the last of its output so that readers find all of it.

        While Postgres is away it goes on at once all the same: on its way it is kept on disk.
        """
        self._progress.pop(invocation, None)
        if not invocation.captures:
            self._outcomes.add(invocation)
            return
        self._output.pop(invocation, None)
        loop = asyncio.get_running_loop()
        patience = _LAST_OUTPUT_SECONDS if self._lane.up else 0.0
        self._last_output[invocation] = loop.call_later(patience, self._outcomes.add, invocation)
        self._wake.set()

    async def run(self) -> None:
        """Writes until cancelled. Each kind is tried on its own: what goes wrong with one is no other's."""
        kinds = (self._write_starts, self._write_last_output, self._write_progress, self._write_output)
        while True:
            await self._until_due()
            for write in kinds:
                try:
                    await write()
                except Exception:
                    log.exception("reports of attempts cannot be written, and are left out")

    async def _until_due(self) -> None:
        """Waits for news, or until what waits is due: nothing that waits depends on news of something else."""
        dues = (
            (self._started, self._starts_due),
            (self._progress, self._progress_due),
            (self._output, self._output_due),
        )
        due = min((when for waiting, when in dues if waiting), default=None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if due is None else max(0.0, due - time.monotonic())):
                await self._wake.wait()
        self._wake.clear()

    async def _write_starts(self) -> None:
        if not self._started or time.monotonic() < self._starts_due:
            return
        batch, self._started = [i for i in self._started if i.outcome is None], []
        for part in _parts(batch):
            busy = await self._write(STARTED, _encoded(part, _start_item))
            if busy:
                self._starts_due = time.monotonic() + _BUSY_SECONDS
                self._started += [item.invocation for item in busy]

    async def _write_progress(self) -> None:
        if not self._progress or time.monotonic() < self._progress_due:
            return
        self._progress_due = time.monotonic() + PROGRESS_SECONDS
        batch = [i for i in self._progress if i.outcome is None][:BATCH_MAX]
        for invocation in batch:
            del self._progress[invocation]
        before = {i: i.progress.recorded for i in batch}
        for item in await self._write(PROGRESS, _encoded(batch, _progress_item)):
            if item.invocation.outcome is None:
                item.invocation.progress.recorded = before[item.invocation]
                self._progress[item.invocation] = None

    async def _write(self, statement: LiteralString, batch: "list[_Item]") -> "list[_Item]":
        """Writes what can be written; returns what somebody else's lock is in the way of."""
        if not batch:
            return []
        try:
            rows = await self._lane.call(statement, (orjson.dumps([item.encoded for item in batch]).decode(),))
        except Busy:
            return batch if len(batch) == 1 else await self._halves(statement, batch)
        except Refused as error:
            if len(batch) > 1 and not error.whole:
                return await self._halves(statement, batch)
            refs = [item.invocation.assignment.ref for item in batch]
            log.error("reports of attempts %s are refused, and left out: %s", refs, error)  # noqa: TRY400 - no bug
            return []
        self._take(batch, rows)
        return [batch[row[0]] for row in rows if row[1] == "busy"]

    async def _halves(self, statement: LiteralString, batch: "list[_Item]") -> "list[_Item]":
        """One that cannot be written must not keep the others from it."""
        middle = len(batch) // 2
        return [*await self._write(statement, batch[:middle]), *await self._write(statement, batch[middle:])]

    def _take(self, batch: "list[_Item]", rows: Sequence[tuple[Any, ...]]) -> None:
        events = [notice(batch[row[0]].invocation, row) for row in rows if row[1] == "ok"]
        if events:
            self._publish(events)
        refused = [batch[row[0]].invocation for row in rows if row[1] in ("stale", "settled", "not_found")]
        self._holder.stale([i.assignment.ref for i in refused if i.outcome is None])

    async def _write_output(self) -> None:
        if not self._output or time.monotonic() < self._output_due:
            return
        self._output_due = time.monotonic() + OUTPUT_SECONDS
        pieces: list[_Piece] = []
        size = 0
        for invocation in list(self._output):
            for piece in _guarded(invocation, _head_pieces(invocation)):
                pieces.append(piece)
                size += len(piece.data)
                if size >= OUTPUT_BYTES_MAX:
                    break
            if size >= OUTPUT_BYTES_MAX:
                break
            del self._output[invocation]
        await self._append(pieces)

    async def _write_last_output(self) -> None:
        waiting, pieces, size = list(self._last_output), list[_Piece](), 0
        for invocation in waiting:
            for piece in _guarded(invocation, chain(_head_pieces(invocation), _tail_pieces(invocation))):
                pieces.append(piece)
                size += len(piece.data)
                if size >= OUTPUT_BYTES_MAX:
                    await self._append(pieces)
                    pieces, size = [], 0
        await self._append(pieces)
        for invocation in waiting:
            timer = self._last_output.pop(invocation)
            if not timer.cancelled() and timer.when() > asyncio.get_running_loop().time():
                timer.cancel()
                self._outcomes.add(invocation)

    async def _append(self, pieces: "list[_Piece]") -> None:
        """Stores output; leaves out what is refused."""
        if not pieces:
            return
        columns = [[getattr(piece, field.name) for piece in pieces] for field in fields(_Piece)]
        try:
            await self._lane.call(OUTPUT, columns)
        except Busy:
            await asyncio.sleep(_BUSY_SECONDS)
            await self._append(pieces)
        except Refused as error:
            if len(pieces) > 1 and not error.whole:
                await self._append(pieces[: len(pieces) // 2])
                await self._append(pieces[len(pieces) // 2 :])
                return
            refs = {(piece.effect_id, piece.attempt) for piece in pieces}
            log.error("output of attempts %s is refused, and left out: %s", refs, error)  # noqa: TRY400 - no bug


@dataclass(frozen=True, slots=True)
class _Item:
    """One attempt's part of a call."""

    invocation: Invocation
    encoded: orjson.Fragment


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece of output; its fields are the columns of `output_append_v1`, in this order."""

    run_id: str
    effect_id: str
    attempt: int
    token: bytes
    stream: int
    offset: int
    data: bytes


def _guarded(invocation: Invocation, pieces: Iterator[_Piece]) -> Iterator[_Piece]:
    """The pieces, up to the first that cannot be made."""
    try:
        yield from pieces
    except Exception:
        log.exception("output of attempt %s cannot be read, and is left out", invocation.assignment.ref)


def _head_pieces(invocation: Invocation) -> Iterator[_Piece]:
    for capture in invocation.captures.values():
        while (taken := capture.take(CHUNK_BYTES_MAX)) is not None:
            yield _piece(invocation, capture, *taken)


def _tail_pieces(invocation: Invocation) -> Iterator[_Piece]:
    for capture in invocation.captures.values():
        for offset, data in capture.take_tail():
            yield _piece(invocation, capture, offset, data)


def _piece(invocation: Invocation, capture: Capture, offset: int, data: bytes) -> _Piece:
    a = invocation.assignment
    return _Piece(a.run_id, a.effect_id, a.attempt, bytes.fromhex(a.token), capture.stream, offset, data)


def _identity(invocation: Invocation) -> dict[str, Any]:
    a = invocation.assignment
    return {"run_id": a.run_id, "effect_id": a.effect_id, "attempt": a.attempt, "token": a.token}


def _start_item(invocation: Invocation) -> dict[str, Any]:
    item = _identity(invocation) | {"pid": invocation.pid}
    if invocation.continues is not None:
        item["continues"] = {name: storable(value) for name, value in invocation.continues.items() if value}
    if invocation.fresh_because:
        item["fresh_because"] = storable(invocation.fresh_because)
    return item


def _progress_item(invocation: Invocation) -> dict[str, Any]:
    progress = invocation.progress
    durable = progress.durable
    item = _identity(invocation) | {"ordinal": progress.ordinal, "progress": progress.as_json(), "durable": durable}
    if progress.usage is not None:
        item["usage"] = progress.usage
    if progress.session != progress.recorded.session:
        item["session"] = dict(zip(("session_id", "workspace"), map(storable, progress.session), strict=True))
    progress.note_recorded(durable=durable)
    return item


def _encoded(batch: list[Invocation], item_of: Callable[[Invocation], dict[str, Any]]) -> list[_Item]:
    """The items of a batch; one that cannot be made is left out."""
    items = []
    for invocation in batch:
        try:
            items.append(_Item(invocation, orjson.Fragment(orjson.dumps(item_of(invocation)))))
        except Exception:
            log.exception("a report of attempt %s cannot be encoded, and is left out", invocation.assignment.ref)
    return items


def _parts(batch: list[Invocation]) -> Iterator[list[Invocation]]:
    for start in range(0, len(batch), BATCH_MAX):
        yield batch[start : start + BATCH_MAX]
