"""Who is connected: the sessions of executors on this replica, their slots, and what is on its way to them.

Called by the control stream (`api/dispatch.py`), by the fast path of the loop and by the claim (`dispatch/queue.py`).
All of it runs on the service's event loop and none of it waits: a frame that does not fit its bounded outbox ends the
session, and the executor's next hello puts both sides right.
"""

import asyncio
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import duration_pb2

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from scheduler_service.dispatch.work import Work

#: Starts and cancels that may wait for one executor; an executor that does not read for so long is gone.
OUTBOX_MAX = 20_000
#: Attempts without a slot whose late news a session still takes.
RELEASED_MAX = 4096
#: Starts in one message: far below the message limit for ordinary specs.
STARTS_PER_MESSAGE = 200
#: Bytes of specs in one message, below the 4 MiB that executors accept by default.
START_BYTES_PER_MESSAGE = 2_000_000

#: A dispatch whose commit was this long under way is not sent: reconciliation may have taken it for one that never was,
#: and given the effect a new attempt. Left unsent, that is what it becomes.
LATE_SECONDS = 1.5

Ref = tuple[str, int]


@dataclass(slots=True)
class Pool:
    """Slots of one class of work on one executor."""

    slots: int
    background_slots: int
    foreground_taken: int = 0
    background_taken: int = 0
    #: Slots set aside for a claim whose answer is not there yet; of these, the most that background may take.
    claiming: int = 0
    #: Slots that the executor uses for attempts that are not ours to count: stale ones that still die.
    foreign: int = 0
    claiming_background: int = 0

    def free(self, *, background: bool) -> int:
        """Slots that an effect may take now. Background never takes the last slot of two or more."""
        room = self.slots - self.foreground_taken - self.background_taken - self.claiming - self.foreign
        if not background:
            return room
        floor = 1 if self.slots > 1 else 0
        most = max(1, min(self.background_slots, self.slots - floor))
        return max(0, min(room, most - self.background_taken - self.claiming_background))

    def take(self, *, background: bool, count: int = 1) -> None:
        """Takes slots, or gives them back with a negative count."""
        if background:
            self.background_taken += count
        else:
            self.foreground_taken += count


@dataclass(slots=True)
class Held:
    """An attempt that holds a slot of a session."""

    run_id: str
    pool: str
    background: bool
    token: bytes
    since: float
    name: str = ""
    start: pb.StartAttempt | None = None
    cancel_sent_at: float = 0.0
    #: True after the executor said that it took this attempt before.
    duplicate: bool = False


@dataclass(slots=True)
class Reservation:
    """A slot taken for an attempt whose dispatch is not committed yet."""

    session: "Session"
    work: Work
    token: bytes
    harness: str
    since: float = field(default_factory=lambda: time.monotonic())  # noqa: PLW0108 - tests have their own clock

    @property
    def late(self) -> bool:
        """True when its start must not be sent any more."""
        return time.monotonic() - self.since > LATE_SECONDS


@dataclass(slots=True, eq=False)
class Session:
    """One connected executor."""

    executor_id: str
    incarnation: str
    session_no: int
    namespace: str
    address: str
    version: str
    capabilities: frozenset[str]
    labels: Mapping[str, str]
    pools: dict[str, Pool]
    harnesses: tuple[pb.Harness, ...] = ()
    functions: tuple[str, ...] = ()
    #: What it has found of harnesses since its hello, until that is in the journal: HarnessCheck as proto3 JSON.
    checks: Sequence[Mapping[str, Any]] | None = None
    draining: bool = False
    #: True while an operator lets it take nothing new.
    ordered_drain: bool = False
    #: Until then it has no room for another result: what it refuses goes elsewhere.
    full_until: float = 0.0
    connected_at: float = field(default_factory=time.time)
    last_frame: float = field(default_factory=time.monotonic)
    clock_skew_s: float = 0.0
    held: dict[Ref, Held] = field(default_factory=dict)
    report: set[Ref] = field(default_factory=set)
    report_at: float = 0.0
    live: dict[Ref, executor_pb.Attempt] = field(default_factory=dict)
    #: False until its hello is reconciled: an attempt dispatched before would look like one that never arrived.
    ready: bool = False
    #: True while a sign of life is on its way into the journal.
    noting: bool = False
    closed: str = ""
    #: Incarnation whose newer session has ended this one.
    superseded_by: str = ""
    #: Classes (pool, background) of which queued effects may be waiting for this executor.
    queued: set[tuple[str, bool]] = field(default_factory=set)
    #: Attempts that lately held a slot, with their runs.
    _released: dict[Ref, str] = field(default_factory=dict)
    _starts: list[pb.StartAttempt] = field(default_factory=list)
    _cancels: list[pb.CancelAttempt] = field(default_factory=list)
    _frames: list[pb.ConnectResponse] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def serves(self, work: Work) -> str | None:
        """The capability by which it can do the work: the first of the work's alternatives that it has."""
        if not self.takes or self.namespace != work.namespace:
            return None
        if any(self.labels.get(k) != v for k, v in work.executor_labels.items()):
            return None
        return next((c for c in work.capabilities if c in self.capabilities), None)

    @property
    def takes(self) -> bool:
        """True while it takes new work."""
        full = time.monotonic() < self.full_until
        return self.ready and not (self.draining or self.ordered_drain or self.closed or full)

    def order_drain(self, reason: str | None) -> None:
        """Tells it to take nothing new, or with None that it may again."""
        self.ordered_drain = reason is not None
        if reason is None:
            self.draining = False
        self.send(pb.ConnectResponse(drain=pb.DrainCommand(reason=reason or "", drain=reason is not None)))

    def hold(self, ref: Ref, held: Held) -> None:
        """Notes an attempt whose slot is already taken."""
        self.held[ref] = held

    def adopt(self, ref: Ref, held: Held) -> None:
        """Notes a running attempt of an earlier session and takes its slot."""
        if ref not in self.held:
            self.held[ref] = held
            self._take(held.pool, background=held.background, count=1)

    def release(self, ref: Ref) -> bool:
        """Frees the slot of an attempt; False when it held none."""
        held = self.held.pop(ref, None)
        self.live.pop(ref, None)
        if held is None:
            return False
        self._take(held.pool, background=held.background, count=-1)
        self._released[ref] = held.run_id
        if len(self._released) > RELEASED_MAX:
            del self._released[next(iter(self._released))]
        return True

    def was_given(self, ref: Ref, run_id: str) -> bool:
        """True for an attempt of this session, one that has ended lately too: only of these it may bring news."""
        held = self.held.get(ref)
        return run_id == (held.run_id if held is not None else self._released.get(ref))

    def note_report(self, attempts: Iterable[pb.ReportedAttempt]) -> None:
        """Takes a whole report: what the executor holds, and which slots are taken by what nobody here counts."""
        reported = list(attempts)
        self.report = {(item.ref.effect_id, item.ref.attempt) for item in reported}
        self.report_at = self.last_frame = time.monotonic()
        ended = executor_pb.Attempt.STATE_FINISHED
        unknown = [item.pool for item in reported
                   if (item.ref.effect_id, item.ref.attempt) not in self.held and item.state != ended]  # fmt: skip
        for name, pool in self.pools.items():
            pool.foreign = unknown.count(name)

    def send_start(self, ref: Ref, start: pb.StartAttempt) -> None:
        """Queues a start; many go in one message."""
        held = self.held.get(ref)
        if held is not None:
            held.start, held.name = start, start.name
        self._starts.append(start)
        self._bounded()

    def send_cancel(self, cancel: pb.CancelAttempt) -> None:
        """Queues a cancel; repeated ones are harmless and thinned to one every two seconds."""
        held = self.held.get((cancel.ref.effect_id, cancel.ref.attempt))
        now = time.monotonic()
        if held is not None:
            if now - held.cancel_sent_at < 2.0:
                return
            held.cancel_sent_at = now
            cancel.token = held.token
        self._cancels.append(cancel)
        self._bounded()

    def send(self, frame: pb.ConnectResponse) -> None:
        """Queues any other frame."""
        self._frames.append(frame)
        self._bounded()

    def close(self, reason: str) -> None:
        """Ends the session; its stream ends with the reason."""
        self.closed = self.closed or reason
        self._wake.set()

    def void(self, reason: str) -> None:
        """Ends the session, and believes nothing more that comes up: it is news of what may never have been."""
        self.close(reason)
        self.held.clear()
        self._released.clear()

    def supersede(self, incarnation: str) -> None:
        """A newer session of the same executor ends this one."""
        self.superseded_by = incarnation
        self.close("superseded by a newer session")

    async def wait(self) -> None:
        """Waits until there is something to send or the session is closed."""
        await self._wake.wait()
        self._wake.clear()

    def take_frames(self) -> Iterator[pb.ConnectResponse]:
        """Everything that waits, cancels before starts, many starts to a message."""
        frames, self._frames = self._frames, []
        cancels, self._cancels = self._cancels, []
        starts, self._starts = self._starts, []
        yield from frames
        if cancels:
            yield pb.ConnectResponse(cancel=pb.CancelAttempts(attempts=cancels))
        for batch in _batches(starts):
            yield pb.ConnectResponse(start=pb.StartAttempts(session_no=self.session_no, attempts=batch))

    def _take(self, pool: str, *, background: bool, count: int) -> None:
        if pool in self.pools:
            self.pools[pool].take(background=background, count=count)

    def _bounded(self) -> None:
        if len(self._starts) + len(self._cancels) + len(self._frames) > OUTBOX_MAX:
            self.close("outbox full: the executor does not read its control stream")
        self._wake.set()


class Sessions:
    """The sessions of this replica, by executor."""

    def __init__(self) -> None:
        self._by_executor: dict[str, Session] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(self._by_executor.values())

    def __len__(self) -> int:
        return len(self._by_executor)

    def get(self, executor_id: str) -> Session | None:
        """The session of an executor, if it is connected here."""
        return self._by_executor.get(executor_id)

    def add(self, session: Session) -> bool:
        """Adds a session and ends an older one of the same executor; False when this one is the older."""
        other = self._by_executor.get(session.executor_id)
        if other is not None and other.session_no > session.session_no:
            session.supersede(other.incarnation)  # its hello was on its way for longer
            return False
        if other is not None:
            other.supersede(session.incarnation)
        self._by_executor[session.executor_id] = session
        return True

    def remove(self, session: Session) -> bool:
        """Removes a session; False when a newer one has taken its place."""
        session.close("ended")
        if self._by_executor.get(session.executor_id) is not session:
            return False
        del self._by_executor[session.executor_id]
        return True

    def reserve(self, work: Work) -> Reservation | None:
        """Takes a slot of the most preferred alternative that has one, on the executor with the most room.

        What continues a session gets one only where that is; otherwise the claim decides how long it waits for it.
        """
        best: tuple[tuple[int, int], Session, str] | None = None
        for session in self._by_executor.values():
            capability = session.serves(work)
            room = session.pools[work.pool].free(background=work.background) if work.pool in session.pools else 0
            if capability is None or room <= 0 or work.continues_on not in ("", session.executor_id):
                continue
            rank = (-work.capabilities.index(capability), room)
            if best is None or rank > best[0]:
                best = (rank, session, capability)
        if best is None:
            return None
        _, session, capability = best
        session.pools[work.pool].take(background=work.background)
        return Reservation(session, work, secrets.token_bytes(16), capability)

    def cancel_reservation(self, reservation: Reservation) -> None:
        """Gives back a slot whose dispatch was not committed."""
        pool = reservation.session.pools[reservation.work.pool]
        pool.take(background=reservation.work.background, count=-1)

    def lagging(self, silence_s: float) -> Iterable[Session]:
        """Sessions that have not sent a frame for so long; one whose hello is still looked at has to wait for us."""
        now = time.monotonic()
        return [s for s in self._by_executor.values() if s.report_at and now - s.last_frame > silence_s]


def _batches(starts: list[pb.StartAttempt]) -> Iterator[list[pb.StartAttempt]]:
    batch: list[pb.StartAttempt] = []
    size = 0
    for start in starts:
        if batch and (len(batch) >= STARTS_PER_MESSAGE or size + len(start.spec_json) > START_BYTES_PER_MESSAGE):
            yield batch
            batch, size = [], 0
        batch.append(start)
        size += len(start.spec_json)
    if batch:
        yield batch


def duration_of(seconds: float) -> duration_pb2.Duration:
    """Seconds as the wire has them."""
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
