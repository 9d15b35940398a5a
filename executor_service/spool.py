"""Results on disk: what has ended is written down at once, and flushed when it cannot be committed.

Each result is appended to a file as soon as it is there, while its commit is on its way, and so outlives this process
(`spool_recent.py`). One that waits while Postgres does not answer, or for very long, gets a file of its own that is
flushed, and so outlives the machine's fall as well. A successor takes what is left to the journal (`resend.py`).
There is room for the result of each attempt before its start is accepted: an executor whose room is taken, or whose
disk refuses, accepts nothing new. The files hold the attempts' tokens, and only their owner can read them.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from executor_service import failpoints, spool_files
from executor_service.assignment import Ref
from executor_service.spool_recent import Recent

log = logging.getLogger(__name__)

#: Room set aside for each attempt: any result without a large value fits. A large one takes what is free besides.
RESERVED_BYTES: Final = 100 * 1024
#: How long a result may wait for its commit before it is flushed to disk, while nothing is known to be wrong.
WAIT_SECONDS: Final = 2.0
#: After a write that failed, nothing new is accepted for so long; half of that passes before the next try.
REFUSING_SECONDS: Final = 10.0
_TICK_SECONDS: Final = 0.1


class Room:
    """How much of the spool is taken: from the start of an attempt until its result is recorded. Pure."""

    def __init__(self, bytes_max: int, entries_max: int) -> None:
        self._bytes_max = bytes_max
        self._entries_max = entries_max
        self._taken: dict[Ref, int] = {}
        self._bytes = 0

    def take(self, ref: Ref, size: int = RESERVED_BYTES) -> bool:
        """Takes so much for a result, or as much more as it needs. False: that much is not free."""
        before = self._taken.get(ref, 0)
        size = max(size, before)
        if self._bytes - before + size > self._bytes_max or (not before and len(self._taken) >= self._entries_max):
            return False
        self._taken[ref] = size
        self._bytes += size - before
        return True

    @property
    def taken_bytes(self) -> int:
        """Bytes that are taken."""
        return self._bytes

    def give_back(self, ref: Ref) -> None:
        """Nothing is to be kept of the attempt any more."""
        self._bytes -= self._taken.pop(ref, 0)


@dataclass(slots=True)
class _Waiting:
    """A result that waits for its commit. `name`: of its file; `written`: what that holds, None while there is none."""

    since: float
    name: str
    item: bytes
    written: bytes | None = None


class Spool:
    """The results of one incarnation that wait for their commit."""

    def __init__(self, folder: Path, *, bytes_max: int, entries_max: int) -> None:
        self._folder = folder
        self._room = Room(bytes_max, entries_max)
        self._waiting: dict[Ref, _Waiting] = {}
        self._homeless: set[Ref] = set()
        self._recorded: list[str] = []
        self._names = itertools.count(1)
        self._recent = Recent(folder)
        #: What the recent file does not have yet: new results, and names to cross out.
        self._new: dict[str, tuple[Ref, bytes]] = {}
        self._gone: list[str] = []
        self._news = asyncio.Event()
        self._closed = False
        self._refusing_until = 0.0
        self._turn = asyncio.Lock()
        self._noting = asyncio.Lock()
        #: Says whether Postgres is known to be away.
        self.away: Callable[[], bool] = lambda: False

    @property
    def kept(self) -> int:
        """Results that are flushed to disk."""
        return sum(waiting.written is not None for waiting in self._waiting.values())

    @property
    def waiting(self) -> int:
        """Results that wait for their commit."""
        return len(self._waiting)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the results that are flushed to disk."""
        return sum(len(waiting.written) for waiting in self._waiting.values() if waiting.written is not None)

    @property
    def taken_bytes(self) -> int:
        """Bytes that are taken, by results and for those that are to come."""
        return self._room.taken_bytes

    def reserve(self, ref: Ref) -> str:
        """Takes room for the result of an attempt. Returns why there is none; empty: there is."""
        if time.monotonic() < self._refusing_until:
            return "results cannot be written to the executor's disk"
        if self._homeless or not self._room.take(ref):
            return f"no room for another result: {len(self._waiting)} wait for Postgres"
        return ""

    def wait(self, ref: Ref, item: bytes) -> None:
        """The result of an attempt waits for its commit. A second one takes the place of the first."""
        if ref in self._waiting:
            self._waiting[ref].item = item
        else:
            self._waiting[ref] = _Waiting(time.monotonic(), f"{next(self._names):010d}", item)
        self._new[self._waiting[ref].name] = (ref, item)
        self._news.set()

    def release(self, ref: Ref) -> None:
        """The result is recorded: its room is free."""
        self._room.give_back(ref)
        self._homeless.discard(ref)
        waiting = self._waiting.pop(ref, None)
        if waiting is None:
            return
        if waiting.written is not None:
            self._recorded.append(waiting.name)
        self._cross_out(waiting.name)

    def _cross_out(self, name: str) -> None:
        if self._new.pop(name, None) is None:
            self._gone.append(name)
            self._news.set()

    async def run(self) -> None:
        """Writes down what comes and what waits for too long, and removes what is recorded, until cancelled."""
        async with asyncio.TaskGroup() as both:  # a slow flush must not hold up what comes
            both.create_task(self._run_recent())
            both.create_task(self._run_flush())

    async def _run_recent(self) -> None:
        while True:
            await self._news.wait()
            await self.note()

    async def note(self) -> None:
        """Appends what is new to the recent file."""
        self._news.clear()
        new, self._new = self._new, {}
        gone, self._gone = self._gone, []
        if self._closed:
            return
        if time.monotonic() < self._refusing_until:
            self._gone[:0] = gone  # what is new is flushed later
            return
        results = [(name, item) for name, (ref, item) in new.items() if self._room.take(ref, len(item))]
        async with self._noting:
            try:
                await asyncio.to_thread(self._recent.write, results, gone)
            except OSError as error:
                self._gone[:0] = gone
                self._refuse(error)

    async def close(self) -> None:
        """Nothing more is appended. Removes the recent file, unless it has results that are nowhere else."""
        await self.note()
        self._closed = True
        async with self._noting:
            await asyncio.to_thread(self._recent.close)

    async def _run_flush(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            if time.monotonic() > self._refusing_until - REFUSING_SECONDS / 2:
                await self.flush(0.0 if self.away() else WAIT_SECONDS)

    async def flush(self, older_than_s: float = 0.0) -> None:
        """Writes down what has waited for so long."""
        async with self._turn:
            if self._recorded:
                recorded, self._recorded = self._recorded, []
                await asyncio.to_thread(spool_files.remove, self._folder, recorded)
            due = self._due(time.monotonic() - older_than_s)
            if due:
                await self._write(due)

    def _due(self, before: float) -> list[tuple[Ref, _Waiting, bytes]]:
        due = []
        for ref, waiting in self._waiting.items():
            if waiting.since > before:
                break  # they stand in the order in which they began to wait
            if waiting.written is not waiting.item and self._fits(ref, waiting.item):
                due.append((ref, waiting, waiting.item))
        return due

    def _fits(self, ref: Ref, item: bytes) -> bool:
        if self._room.take(ref, len(item)):
            self._homeless.discard(ref)
            return True
        if ref not in self._homeless:
            log.error("no room on disk for the result of attempt %s, %d bytes: held in memory", ref, len(item))
            self._homeless.add(ref)
        return False

    async def _write(self, due: Sequence[tuple[Ref, _Waiting, bytes]]) -> None:
        files = [(waiting.name, item) for _, waiting, item in due]
        try:
            await asyncio.to_thread(spool_files.write, self._folder, files)
        except OSError as error:
            self._refuse(error)
            return
        failpoints.hit("spool", "written")
        for ref, waiting, item in due:
            waiting.written = item
            self._cross_out(waiting.name)
            if self._waiting.get(ref) is not waiting:  # recorded meanwhile
                self._recorded.append(waiting.name)
        log.warning("%d results wait on disk for Postgres", self.kept)

    def _refuse(self, error: OSError) -> None:
        self._refusing_until = time.monotonic() + REFUSING_SECONDS
        log.error("results cannot be written to disk, and are held in memory: %s", error)
