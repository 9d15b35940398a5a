"""Takes to the journal what dead incarnations had finished and could not commit: the files of their spools.

Before anything else that a successor says: an attempt whose result is on disk is not lost. Nothing is asked of the
files but that they are whole, because the journal knows each attempt by its token, and answers what it has with
`already`. A file that is damaged, or whose result the journal does not take at all, is set aside for somebody to see.
"""

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from executor_service import failpoints, spool_files, spool_recent
from executor_service.outcome import refused_item
from executor_service.outcomes import BATCH_BYTES_MAX, BATCH_MAX
from executor_service.recording import SETTLE, Busy, Lane, Refused

log = logging.getLogger(__name__)

#: Name of the folder beside the spools where damaged files go.
ASIDE: Final = "damaged"
#: How long results wait for runs that somebody keeps locked before they are left to the next start.
_BUSY_SECONDS_MAX: Final = 15.0
_BUSY_SECONDS: Final = 0.05


@dataclass(slots=True)
class _Entry:
    path: Path
    item: bytes
    #: True when the item says that what was there is refused.
    replaced: bool = False


class Resend:
    """Sends the spools in `folder`, one subfolder an incarnation."""

    def __init__(self, lane: Lane, folder: Path) -> None:
        self._lane = lane
        self._folder = folder

    async def send(self, incarnation: str) -> bool:
        """Sends what this incarnation left. True: nothing is left of it."""
        spool = self._folder / incarnation
        try:
            waiting = deque(await asyncio.to_thread(_entries, spool))
        except OSError as error:
            log.error("the results of incarnation %s cannot be read now, and stay: %s", incarnation, error)  # noqa: TRY400
            return False
        count, deadline = len(waiting), time.monotonic() + _BUSY_SECONDS_MAX
        while waiting:
            batch = await asyncio.to_thread(self._next, waiting)
            busy = await self._write(batch)
            waiting.extend(entry.path for entry in busy)
            if busy and time.monotonic() > deadline:
                log.error(
                    "%d results of incarnation %s cannot be committed now: kept on disk", len(waiting), incarnation
                )
                return False
            await asyncio.sleep(_BUSY_SECONDS if busy else 0)
        if count:
            log.warning("%d results that incarnation %s had kept on disk are in the journal", count, incarnation)
        await asyncio.to_thread(_remove_folder, spool)
        return True

    def _next(self, waiting: deque[Path]) -> list[_Entry]:
        """The next results, as many as travel together."""
        batch: list[_Entry] = []
        size = 0
        while waiting and len(batch) < BATCH_MAX and size < BATCH_BYTES_MAX:
            path = waiting.popleft()
            try:
                batch.append(_Entry(path, spool_files.load(path)))
            except spool_files.Damaged as error:
                self._set_aside(path, error)
                continue
            size += len(batch[-1].item)
        return batch

    async def _write(self, batch: list[_Entry]) -> list[_Entry]:
        """Commits results; returns those whose run is locked by somebody else."""
        if not batch:
            return []
        items = [orjson.Fragment(entry.item) for entry in batch]
        try:
            rows = await self._lane.call(SETTLE, (orjson.dumps(items).decode(),))
        except Busy:
            return batch
        except Refused as error:
            return await self._bisect(batch, error)
        failpoints.hit("resend", "committed")
        busy = [batch[row[0]] for row in rows if row[1] == "busy"]
        for row in rows:
            if row[1] != "busy":
                log.info("the result in %s is %s", batch[row[0]].path.name, row[1])
                batch[row[0]].path.unlink(missing_ok=True)
        return busy

    async def _bisect(self, batch: list[_Entry], error: Refused) -> list[_Entry]:
        if len(batch) > 1:
            middle = len(batch) // 2
            return [*await self._write(batch[:middle]), *await self._write(batch[middle:])]
        [entry] = batch
        if entry.replaced:
            await asyncio.to_thread(self._set_aside, entry.path, error)
            return []
        log.error("the result in %s is refused, and its attempt fails instead: %s", entry.path, error)
        return await self._write([_Entry(entry.path, refused_item(entry.item, error), replaced=True)])

    def _set_aside(self, path: Path, error: Exception) -> None:
        try:
            aside = spool_files.set_aside(path, self._folder / ASIDE)
        except OSError as failed:
            log.error("the result in %s is no use (%s), and cannot be set aside: %s", path, error, failed)  # noqa: TRY400
            return
        log.error("the result in %s is no use, and set aside as %s: %s", path, aside, error)


def _entries(spool: Path) -> list[Path]:
    spool_recent.unpack(spool)
    return list(spool_files.entries(spool))


def _remove_folder(spool: Path) -> None:
    try:
        spool.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        log.error("the spool %s cannot be removed: %s", spool, error)  # noqa: TRY400 - no bug
