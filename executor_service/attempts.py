"""Every attempt that this executor holds: admits starts, launches invocations, ends them, forgets what is recorded.

Called by the control stream (`intake.py`) for starts and cancels, by the service (`api.py`) to look, and by the
recorder when something was journaled. It remembers the identity of each attempt it took (`memory.py`), so that none
starts twice.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service import failpoints
from executor_service.assignment import Assignment, Ref
from executor_service.harness.registry import Harnesses
from executor_service.invocation import Invocation
from executor_service.memory import Memory
from executor_service.outcome import Ending, Outcome
from executor_service.slots import Pool
from executor_service.spool import Spool

log = logging.getLogger(__name__)

Reason = pb.RejectedAttempt.Reason

#: Cancels that are remembered for starts which have not come yet.
TOMBSTONES_MAX: Final = 10_000
#: Attempts that did not end when asked to, and may still run, before they count against the slots.
ABANDONED_MAX: Final = 64
#: Age at which an attempt that still runs is announced: to the scheduler as accepted, to the journal as started. What
#: ends sooner is known by its end, which saves a message and a row for each of the many short ones.
ANNOUNCE_SECONDS: Final = 0.15
_TICK_SECONDS: Final = 0.05

_SETTLES: Final = ("EFFECT_RESOLVED", "EFFECT_CANCELLED")
STALE: Final = Ending("cancelled", "EXECUTOR_LOST", "the attempt was declared lost while it ran", True)


class Recorder(Protocol):
    """What is written to the journal: see `recording.py`."""

    def started(self, invocation: Invocation) -> None:
        """The attempt has run for a while."""

    def dirty_progress(self, invocation: Invocation) -> None:
        """Progress waits."""

    def dirty_output(self, invocation: Invocation) -> None:
        """Output waits."""

    def settle(self, invocation: Invocation) -> None:
        """The outcome waits."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a start is refused."""

    reason: Reason.ValueType
    message: str


class Attempts:
    """The attempts of one executor."""

    def __init__(self, incarnation: str, harnesses: Harnesses, pools: Mapping[str, Pool], spool: Spool) -> None:
        self.incarnation = incarnation
        self.pools = pools
        self._spool = spool
        self.draining = ""
        self.recorder: Recorder | None = None
        self.harnesses = harnesses
        #: Takes what is refused after it was taken, and the outcomes of effects that have settled.
        self.on_refused: Callable[[Ref, Refusal], None] = lambda ref, refusal: None
        self.on_settled: Callable[[Outcome], None] = lambda outcome: None
        #: Hears of each attempt that is taken: for metrics.
        self.on_started: Callable[[Assignment], None] = lambda assignment: None
        self._held: dict[Ref, Invocation] = {}
        self._memory = Memory()
        self._tombstones: OrderedDict[Ref, Ending] = OrderedDict()
        self._young: dict[Ref, Invocation] = {}
        self._accepted: list[Ref] = []
        self._repeated: list[pb.JournaledEvent] = []
        #: Effects of attempts that were told that they no longer count, and still end.
        self._leaving: set[str] = set()
        #: True from when the database came into another life until the next hello.
        self._other_life = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: set[Ref] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._empty = asyncio.Event()
        self._empty.set()

    def __iter__(self) -> Iterator[Invocation]:
        return iter(list(self._held.values()))

    def __len__(self) -> int:
        return len(self._held)

    @property
    def functions_run(self) -> bool:
        """True while a function runs, or may still run."""
        return self.pools["functions"].taken > 0 or self._abandoned() > 0

    def get(self, effect_id: str, attempt: int) -> Invocation | None:
        """An attempt that is held; the newest one of the effect for attempt 0."""
        if attempt:
            return self._held.get((effect_id, attempt))
        return next((held for held in reversed(self._held.values()) if held.assignment.effect_id == effect_id), None)

    def taken(self, ref: Ref) -> bool:
        """True when this attempt, or a later one of its effect, was taken before."""
        return ref in self._held or ref in self._memory

    def start(self, assignment: Assignment) -> Refusal | None:
        """Starts an attempt, or says why not.

        A repeated start changes nothing. Of an attempt that is held, which it is until its outcome is recorded, it is
        answered as accepted; of one that has ended, with the notice of its end while that is known. The token tells it
        from one of the same number in a life of the database that is over.
        """
        ref = assignment.ref
        if (held := self._held.get(ref)) is not None:
            if held.assignment.token == assignment.token:
                self._accepted.append(ref)
                return None
            self.stale([ref])
        if (event := self._memory.notice(ref)) is not None:
            self._repeated.append(event)
            return None
        refusal = self._refusal(assignment)
        if refusal is None:
            self._launch(assignment, self._tombstones.pop(ref, None))
        return refusal

    def cancel(self, cancel: pb.CancelAttempt) -> None:
        """Ends an attempt. One never seen leaves a tombstone, or is settled at once when its token is known."""
        ref = (cancel.ref.effect_id, cancel.ref.attempt)
        ending = Ending("cancelled", cancel.reason or "CANCELLED_BY_USER", cancel.message or "cancelled")
        held = self._held.get(ref)
        if held is not None:
            held.end(ending)
        elif ref in self._memory:
            return  # it has ended and its outcome is recorded
        elif cancel.token:
            self._settle_unseen(cancel, ending)
        else:
            self._tombstones[ref] = ending
            if len(self._tombstones) > TOMBSTONES_MAX:
                self._tombstones.popitem(last=False)

    def stale(self, refs: Iterable[Ref]) -> None:
        """Ends attempts whose results no longer count."""
        for ref in refs:
            if held := self._held.get(ref):
                self._leaving.add(ref[0])
                held.end(STALE)

    def other_life(self) -> None:
        """The database may have lost the end of what it had told: it is asked of every attempt whether that counts."""
        self._other_life = True
        self._memory.forget_notices()
        self._repeated.clear()
        for ref, held in self._held.items():
            if ref not in self._young and held.outcome is None and held.assignment.token:
                self._journal.started(held)

    def before_hello(self) -> None:
        """No start of an earlier session can come any more. What a database has forgotten may be started anew."""
        if self._other_life:
            self._other_life = False
            self._memory.forget()

    def end_all(self, ending: Ending) -> None:
        """Ends every attempt."""
        for held in self:
            held.end(ending)

    def recorded(self, invocation: Invocation, event: pb.JournaledEvent | None) -> None:
        """The outcome is in the journal, as the row in `event`: the attempt is forgotten but for its identity.

        Without a row the journal knows nothing of it: a start of that number would be another attempt's.
        """
        ref = invocation.assignment.ref
        if event is not None:
            self._memory.keep_notice(ref, event)
        if self._held.get(ref) is None:
            return
        self._let_go(invocation)
        if event is None:
            self._memory.drop(ref[0])
        else:
            self._memory.note(ref)
            if event.type in _SETTLES and invocation.outcome is not None:
                self.on_settled(invocation.outcome)

    def _let_go(self, invocation: Invocation) -> None:
        ref = invocation.assignment.ref
        del self._held[ref]
        if pool := self.pools.get(invocation.assignment.pool):
            pool.give_back(background=invocation.assignment.background)
        self._young.pop(ref, None)
        self._spool.release(ref)
        self._leaving.discard(ref[0])
        invocation.log.close(executor_pb.StreamEnd.REASON_ATTEMPT_ENDED)
        if not self._held:
            self._empty.set()

    async def until_idle(self) -> None:
        """Waits until no attempt runs; results may wait for their commit."""
        await self._idle.wait()

    async def until_empty(self) -> None:
        """Waits until no attempt is held."""
        await self._empty.wait()

    async def announce(self, accept: Callable[[Iterable[Ref]], None]) -> None:
        """Announces attempts that live longer than a moment, until cancelled."""
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            before = time.monotonic() - ANNOUNCE_SECONDS
            for ref, invocation in list(self._young.items()):
                if invocation.started_at > before:
                    break  # they stand in the order of their starts
                if invocation.undecided:
                    continue
                del self._young[ref]
                self._announce(ref, invocation)
            accept(self.take_accepted())

    def take_accepted(self) -> list[Ref]:
        """Attempts that the scheduler was not told of yet."""
        accepted, self._accepted = self._accepted, []
        return accepted

    def take_repeated(self) -> list[pb.JournaledEvent]:
        """Notices that the scheduler has to hear again."""
        repeated, self._repeated = self._repeated, []
        return repeated

    # What an invocation says: see invocation.Listener.

    def dirty_output(self, invocation: Invocation) -> None:
        """Output waits for the journal."""
        self._journal.dirty_output(invocation)

    def dirty_progress(self, invocation: Invocation) -> None:
        """Progress waits for the journal."""
        self._journal.dirty_progress(invocation)

    def finished(self, invocation: Invocation) -> None:
        """The outcome waits for the journal."""
        failpoints.hit("outcome", "held")
        self._running.discard(invocation.assignment.ref)
        if not self._running:
            self._idle.set()
        self._journal.settle(invocation)

    def not_started(self, invocation: Invocation, message: str) -> None:
        """Another effect works in its workspace: the attempt is forgotten, and refused."""
        ref = invocation.assignment.ref
        self._running.discard(ref)
        if not self._running:
            self._idle.set()
        self._let_go(invocation)
        self._memory.drop(ref[0])  # it never started: should the refusal get lost, it may be sent again
        self.on_refused(ref, Refusal(pb.RejectedAttempt.REASON_WORKSPACE_BUSY, message))

    @property
    def _journal(self) -> Recorder:
        assert self.recorder is not None  # noqa: S101 - set before the first session
        return self.recorder

    def _refusal(self, assignment: Assignment) -> Refusal | None:
        if assignment.effect_id in self._leaving:
            return Refusal(pb.RejectedAttempt.REASON_NO_SLOT, "an attempt of it that no longer counts still ends")
        if assignment.ref in self._memory:
            return Refusal(pb.RejectedAttempt.REASON_DUPLICATE, "the attempt was taken before and has ended")
        if self.draining:
            return Refusal(pb.RejectedAttempt.REASON_DRAINING, self.draining)
        pool = self.pools.get(assignment.pool)
        if pool is None or self._abandoned() > ABANDONED_MAX or not pool.take(background=assignment.background):
            return Refusal(pb.RejectedAttempt.REASON_NO_SLOT, f"no free slot in pool {assignment.pool!r}")
        if full := self._spool.reserve(assignment.ref):
            pool.give_back(background=assignment.background)
            return Refusal(pb.RejectedAttempt.REASON_NO_SPOOL, full)
        return None

    def _launch(self, assignment: Assignment, tombstone: Ending | None) -> None:
        invocation = self._hold(assignment)
        self.on_started(assignment)
        if tombstone is not None:
            invocation.end(tombstone)
        self._young[assignment.ref] = invocation
        task = asyncio.create_task(invocation.run(self.harnesses))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _hold(self, assignment: Assignment) -> Invocation:
        ref = assignment.ref
        invocation = Invocation(assignment, self.incarnation, self)
        self._held[ref] = invocation
        self._running.add(ref)
        self._idle.clear()
        self._empty.clear()
        self._memory.note(ref)
        return invocation

    def _settle_unseen(self, cancel: pb.CancelAttempt, ending: Ending) -> None:
        """Settles an attempt that never started. It takes no slot: its pool is unknown here."""
        assignment = Assignment(
            cancel.run_id, cancel.ref.effect_id, "", cancel.ref.attempt, cancel.token.hex(), "", "", False, "", "", 0,
            None, None, b"",
        )  # fmt: skip
        invocation = self._hold(assignment)
        invocation.end(ending)
        invocation.finish_unstarted()

    def _abandoned(self) -> int:
        """Work that was given up and forgotten, and still runs."""
        return max(0, len(self._tasks) - len(self._held))

    def _announce(self, ref: Ref, invocation: Invocation) -> None:
        self._accepted.append(ref)
        if invocation.outcome is None and invocation.assignment.token:
            self._journal.started(invocation)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an attempt's task died", exc_info=error)
