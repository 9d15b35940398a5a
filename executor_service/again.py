"""Records again what was recorded lately, when the database is in another life: that one may have lost it.

A server that was promoted lacks what its standby had not received, however well it was acknowledged. So the outcomes of
the last SECONDS are kept, within bounds, and sent once more before anything else is written in a new life. The journal
knows each attempt by its token: what it has, it answers with `already`; what it has as lost is kept as evidence; and
what it has never heard of is no use to it.

An executor may have nothing to write for hours, and find no other life. So it asks before each hello, which a scheduler
that has met one makes it say. For as long as the database does not answer, its reports name what was recorded lately
as finished and held: else it would be taken for what was never started, and run once more.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, LiteralString

import orjson

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.assignment import Assignment, Ref
from executor_service.lives import Lives
from executor_service.outcomes import BATCH_BYTES_MAX, BATCH_MAX
from executor_service.recording import SETTLE, Busy, Lane, Refused

log = logging.getLogger(__name__)

#: What is kept: outcomes of so many seconds, so many bytes of them, and so many.
SECONDS: Final = 60.0
BYTES_MAX: Final = 8 * 1024 * 1024
COUNT_MAX: Final = 4_000
#: How long a hello waits for the database to answer.
LOOK_SECONDS: Final = 5.0
#: How long others wait for outcomes of runs that somebody keeps locked; these are tried on behind that.
_BUSY_SECONDS_MAX: Final = 5.0
_BUSY_SECONDS: Final = 0.05

_LOOK: Final[LiteralString] = "SELECT 1"


@dataclass(frozen=True, slots=True)
class _Kept:
    """An outcome that the journal has taken."""

    at: float
    item: bytes
    reported: pb.ReportedAttempt


class Lately:
    """The outcomes that were recorded lately. Pure but for the clock."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Ref, _Kept] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, assignment: Assignment, item: bytes) -> None:
        """Keeps an outcome. One that alone is beyond the bound is not worth all others."""
        self._drop(assignment.ref)
        if len(item) <= BYTES_MAX:
            self._kept[assignment.ref] = _Kept(time.monotonic(), item, _reported(assignment))
            self._bytes += len(item)
        self._prune()

    def items(self) -> list[bytes]:
        """What is kept, in the order in which it was recorded."""
        self._prune()
        return [kept.item for kept in self._kept.values()]

    def reported(self) -> list[pb.ReportedAttempt]:
        """The attempts, as a report names what has ended and is held."""
        self._prune()
        return [kept.reported for kept in self._kept.values()]

    def _prune(self) -> None:
        before = time.monotonic() - SECONDS
        while self._kept:
            ref, oldest = next(iter(self._kept.items()))
            if oldest.at > before and self._bytes <= BYTES_MAX and len(self._kept) <= COUNT_MAX:
                return
            self._drop(ref)

    def _drop(self, ref: Ref) -> None:
        kept = self._kept.pop(ref, None)
        if kept is not None:
            self._bytes -= len(kept.item)


class Again:
    """Looks which life the database is in, and writes first in a new one."""

    def __init__(self, lane: Lane, lives: Lives, lately: Lately) -> None:
        self._lane = lane
        self._lives = lives
        self._lately = lately
        self._wake = asyncio.Event()
        self._looking: list[asyncio.Future[None]] = []
        #: True while it is not known whether the database has what was recorded lately.
        self._unsure = False
        #: What others do when another life is met.
        self.on_change: Callable[[], None] = lambda: None
        lives.on_change = self._changed

    async def look(self) -> bool:
        """Asks the database which life it is in, and waits until it has all. False: it does not answer in time."""
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._looking.append(answered)
        self._wake.set()
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await answered
        except TimeoutError:
            log.warning("Postgres does not answer: what was recorded lately is reported as held until it does")
            self._unsure = True
            return False
        return True

    def in_doubt(self) -> Iterable[pb.ReportedAttempt]:
        """What reports have to name besides the attempts that are held."""
        return self._lately.reported() if self._unsure else ()

    async def run(self) -> None:
        """Looks when asked, and records again, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            looking, self._looking = self._looking, []
            await self._lane.call(_LOOK, ())  # on a connection to the life that counts
            if not self._lives.caught_up.is_set():
                await self._record()
            if self._wake.is_set() and not self._lives.caught_up.is_set():
                self._looking += looking
                continue  # it was another life meanwhile
            self._unsure = False
            for answered in looking:
                if not answered.done():
                    answered.set_result(None)

    def _changed(self) -> None:
        self._lives.caught_up.clear()
        self._wake.set()
        self.on_change()

    async def _record(self) -> None:
        """Sends all that is kept. Who waits for it does not wait for ever: not for what others have locked."""
        life = self._lives.current
        waiting, deadline = self._lately.items(), time.monotonic() + _BUSY_SECONDS_MAX
        count = len(waiting)
        while waiting:
            busy: list[bytes] = []
            for batch in _batches(waiting):
                busy += await self._write(batch)
            waiting = busy
            if busy and time.monotonic() > deadline:
                self._catch_up(life)
            await asyncio.sleep(_BUSY_SECONDS if busy else 0)
        self._catch_up(life)
        log.warning("%d outcomes that were recorded lately are recorded again, where they were lost", count)

    def _catch_up(self, life: object) -> None:
        if self._lives.current == life:
            self._lives.caught_up.set()

    async def _write(self, batch: list[bytes]) -> list[bytes]:
        """Commits outcomes; returns those whose run somebody else has locked."""
        try:
            rows = await self._lane.call(SETTLE, (orjson.dumps([orjson.Fragment(item) for item in batch]).decode(),))
        except Busy:
            return batch
        except Refused as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                return [*await self._write(batch[:middle]), *await self._write(batch[middle:])]
            log.error("an outcome that was recorded before is refused now, and left: %s", error)  # noqa: TRY400
            return []
        for row in rows:
            if row[1] not in ("already", "busy"):
                log.info("an outcome of effect %s that was recorded before is %s now", row[6], row[1])
        return [batch[row[0]] for row in rows if row[1] == "busy"]


def _batches(items: list[bytes]) -> Iterable[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for item in items:
        if batch and (len(batch) >= BATCH_MAX or size + len(item) > BATCH_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item)
    if batch:
        yield batch


def _reported(a: Assignment) -> pb.ReportedAttempt:
    return pb.ReportedAttempt(
        ref=pb.AttemptRef(effect_id=a.effect_id, attempt=a.attempt),
        state=executor_pb.Attempt.STATE_FINISHED,
        session_no=a.session_no,
        pool=a.pool,
        background=a.background,
        run_id=a.run_id,
    )
