"""Stage 5, DISPATCH: who is next.

Two ways lead to an executor. The fast path puts the dispatch into the request's own commit, when this replica holds a
session with a free slot and knows of no queued effect that comes first. All else waits in `dispatch_queue` and is
claimed when a slot frees, when something is queued, or by the poll, which is the truth behind both.
"""

import asyncio
import contextlib
import hashlib
import heapq
import logging
import random
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from google.protobuf import json_format

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from scheduler_service import failpoints
from scheduler_service.clock import DatabaseClock
from scheduler_service.dispatch.budgets import bounds_of, least
from scheduler_service.dispatch.durations import Durations
from scheduler_service.dispatch.peers import Kind
from scheduler_service.dispatch.sessions import LATE_SECONDS, Held, Pool, Reservation, Session, Sessions, duration_of
from scheduler_service.dispatch.work import Work, harness_of
from scheduler_service.journal import Claimed, ClaimedAttempt, ClaimPool, ClaimRequest, Journal, JournalUnavailable

log = logging.getLogger(__name__)

#: Attempts that one claim may take: bounds the commit and the locks it holds.
CLAIM_MAX = 512
#: Open effects of groups, and wake-up times, that are remembered; beyond them the poll is quick enough.
MEMBERS_MAX = 100_000
ALARMS_MAX = 10_000
_ABSENT = object()
_BUSY_SECONDS = 0.002
#: An alarm rings so much later: by the database's clock it must not be early, for then nothing is due yet.
_LATE_SECONDS: Final = 0.001
#: What an alarm is for when it may be any kind of work.
ANY: Final[Kind] = ("", "", False)


class Dispatcher:
    """Decides between fast path and queue, and claims from the queue for the sessions of this replica."""

    def __init__(
        self,
        journal: Journal,
        sessions: Sessions,
        durations: Durations,
        clock: DatabaseClock,
        *,
        poll_s: float,
        session_wait_s: float,
        actor: str,
    ) -> None:
        self._journal = journal
        self._sessions = sessions
        self._durations = durations
        self._clock = clock
        self._poll_s = poll_s
        self._session_wait_s = session_wait_s
        self._actor = actor
        self._wake = asyncio.Event()
        self._alarms: list[tuple[float, Kind]] = []
        self._polled_at = 0.0
        #: Queued effects of groups with namespace and class, how many of each, and all open effects of groups.
        self._grouped: dict[str, tuple[str, str, bool]] = {}
        self._grouped_classes: Counter[tuple[str, str, bool]] = Counter()
        self._members: OrderedDict[str, None] = OrderedDict()
        self.on_dispatched: Any = None
        #: Hears the pool of each attempt that is sent: for metrics.
        self.on_sent: Callable[[str], None] = lambda pool: None
        #: Set by the engine: tells the other replicas that work of a namespace and class may be had, or any work.
        self.on_queued: Callable[[str, str, bool], None] = lambda namespace, pool, background: None
        self.on_moved: Callable[[], None] = lambda: None

    def reserve(self, work: Work) -> Reservation | None:
        """A slot for the fast path, unless a queued effect of the same or a higher class may come first."""
        reservation = self._sessions.reserve(work)
        if reservation is None:
            return None
        ahead = reservation.session.queued
        if (work.pool, False) in ahead or (work.background and (work.pool, True) in ahead):
            self._sessions.cancel_reservation(reservation)
            return None
        return reservation

    def give_back(self, reservation: Reservation) -> None:
        """The fast path was not taken after all; the effect is in the queue."""
        self._sessions.cancel_reservation(reservation)

    def queued(self, effect_id: str, work: Work, *, grouped: bool, not_before: float | None = None) -> None:
        """Notes a queued effect. `not_before` is seconds since 1970."""
        if grouped:
            self.in_group(effect_id)
            self._leave_queue(effect_id)
            self._grouped[effect_id] = (work.namespace, work.pool, work.background)
            self._grouped_classes[self._grouped[effect_id]] += 1
        if not_before is not None and not_before > self._clock.now():
            self.wake_at(not_before, (work.namespace, work.pool, work.background))
            return
        self._mark(work)
        self._wake.set()
        self.on_queued(work.namespace, work.pool, work.background)

    def hinted(self, namespace: str, pool: str, background: bool) -> None:
        """Another replica says that work of a class waits in the queue."""
        for session in self._sessions:
            if session.namespace == namespace and pool in session.pools:
                session.queued.add((pool, background))
                self._wake.set()

    def wake_at(self, when: float, kind: Kind = ANY) -> None:
        """Claims at this time (seconds since 1970, by the database's clock), and has the other replicas claim: a pause,
        a hold or sleep_until ends.
        """
        heapq.heappush(self._alarms, (time.monotonic() + max(0.0, when - self._clock.now()) + _LATE_SECONDS, kind))
        if len(self._alarms) > ALARMS_MAX:
            self._alarms = heapq.nsmallest(ALARMS_MAX // 2, self._alarms)  # the poll stands behind the others
        self._wake.set()

    def freed(self, session: Session) -> None:
        """A slot of the session is free."""
        if session.queued:
            self._wake.set()

    def settled(self, effect_id: str) -> None:
        """An effect settled: its group may have room for queued ones."""
        self._leave_queue(effect_id)
        if self._members.pop(effect_id, _ABSENT) is not _ABSENT:
            self._room_in_groups()

    def paused(self, effect_id: str) -> None:
        """An attempt ended and another one follows later: meanwhile its group may have room for others."""
        if effect_id in self._members:
            self._room_in_groups()

    def _room_in_groups(self) -> None:
        if not self._grouped_classes:
            return
        for namespace, pool, background in self._grouped_classes:
            self.hinted(namespace, pool, background)
            self.on_queued(namespace, pool, background)

    def in_group(self, effect_id: str) -> None:
        """Notes an open effect of a group: its settlement makes room for others."""
        self._members[effect_id] = None
        if len(self._members) > MEMBERS_MAX:
            self._members.popitem(last=False)  # the poll finds what waits for it

    def _leave_queue(self, effect_id: str) -> None:
        known = self._grouped.pop(effect_id, None)
        if known is not None:
            self._grouped_classes[known] -= 1
            if not self._grouped_classes[known]:
                del self._grouped_classes[known]

    def connected(self, session: Session) -> None:
        """A new session, reconciled: from now on it gets work, and anything may be waiting for it."""
        session.ready = True
        self.changed(session)

    def changed(self, session: Session) -> None:
        """It can do other work than before, or may be given it: anything may be waiting for it."""
        session.queued.update((pool, background) for pool in session.pools for background in (False, True))
        self._wake.set()

    def released(self) -> None:
        """A hold or a drain is gone: anything may be waiting for any session of this replica."""
        for session in self._sessions:
            session.queued.update((pool, background) for pool in session.pools for background in (False, True))
        self._wake.set()

    def released_everywhere(self) -> None:
        """The same on all replicas."""
        self.released()
        self.on_moved()

    def start(self, session: Session, start: pb.StartAttempt, held: Held) -> None:
        """Sends a committed attempt to its executor. Its slot is already taken."""
        ref = (start.effect_id, start.attempt)
        held.name = start.name
        self._leave_queue(start.effect_id)
        expected = self._durations.median(start.namespace, start.name)
        if expected is not None:
            start.expected_duration.CopyFrom(duration_of(expected))
        session.hold(ref, held)
        session.send_start(ref, start)
        self.on_sent(start.pool)

    async def run(self) -> None:
        """Claims until cancelled."""
        while True:
            polled = await self._wait()
            for session in list(self._sessions):
                with contextlib.suppress(JournalUnavailable):  # the next poll tries again
                    await self._claim_for(session, polled=polled)

    async def _wait(self) -> bool:
        """Waits for a wake, an alarm or the poll; True when everything is to be asked for: wakes never delay a poll."""
        timeout = self._poll_s * random.uniform(0.75, 1.25)
        if self._alarms:
            timeout = min(timeout, max(0.0, self._alarms[0][0] - time.monotonic()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        self._wake.clear()
        polled = self._drop_alarms() or time.monotonic() - self._polled_at >= 0.75 * self._poll_s
        if polled:
            self._polled_at = time.monotonic()
        return polled

    def _drop_alarms(self) -> bool:
        due: set[Kind] = set()
        while self._alarms and self._alarms[0][0] <= time.monotonic():
            due.add(heapq.heappop(self._alarms)[1])
        if ANY in due:
            self.released_everywhere()
            return True
        for kind in due:
            self.hinted(*kind)
            self.on_queued(*kind)
        return bool(due)

    def _mark(self, work: Work) -> None:
        for session in self._sessions:
            if session.serves(work) is not None:
                session.queued.add((work.pool, work.background))

    async def _claim_for(self, session: Session, *, polled: bool) -> None:
        while session.takes:
            asks = [ask for name, pool in session.pools.items() if (ask := _ask(session, name, pool, polled=polled))]
            if not asks:
                return
            claimed = await self._claim(session, asks)
            if claimed.busy:
                self._again_soon()
            if len(claimed.attempts) < sum(ask.foreground for ask in asks) or polled:
                return

    def _again_soon(self) -> None:
        """Somebody holds runs whose effects could be taken: their commit will be through in a moment."""
        asyncio.get_running_loop().call_later(_BUSY_SECONDS, self._wake.set)

    async def _claim(self, session: Session, asks: Sequence[ClaimPool]) -> Claimed:
        for ask in asks:
            session.pools[ask.pool].claiming += ask.foreground
            session.pools[ask.pool].claiming_background += ask.background
            session.queued -= {(ask.pool, True)} if ask.background else set()
            session.queued -= {(ask.pool, False)} if ask.foreground > ask.background else set()
        begun = time.monotonic()
        tokens = [secrets.token_bytes(16) for _ in range(min(CLAIM_MAX, sum(ask.foreground for ask in asks)))]
        try:
            claimed = await self._journal.claim(self._request(session, asks, tokens))
        finally:
            for ask in asks:
                session.pools[ask.pool].claiming -= ask.foreground
                session.pools[ask.pool].claiming_background -= ask.background
        self._remark(session, asks, claimed)
        failpoints.hit("dispatch", "send")
        if time.monotonic() - begun > LATE_SECONDS:
            return claimed  # reconciliation finds them
        for attempt in claimed.attempts:
            self._start_claimed(session, attempt, tokens[attempt.token_index])
        return claimed

    def _request(self, session: Session, asks: Sequence[ClaimPool], tokens: list[bytes]) -> ClaimRequest:
        return ClaimRequest(
            executor_id=session.executor_id,
            incarnation=session.incarnation,
            session_no=session.session_no,
            namespace=session.namespace,
            capabilities=sorted(session.capabilities),
            labels=dict(session.labels),
            pools=list(asks),
            token_hashes=[hashlib.sha256(token).hexdigest() for token in tokens],
            limit=len(tokens),
            actor=self._actor,
            session_wait_s=self._session_wait_s,
        )

    def _remark(self, session: Session, asks: Sequence[ClaimPool], claimed: Claimed) -> None:
        """A class of which as many came as were asked for may have more; so may all when runs were busy."""
        for ask in asks:
            mine = [attempt for attempt in claimed.attempts if attempt.pool == ask.pool]
            if len(mine) >= ask.foreground or claimed.busy:
                session.queued |= {(ask.pool, False), (ask.pool, True)}
            elif ask.background and sum(attempt.background for attempt in mine) >= ask.background:
                session.queued.add((ask.pool, True))

    def _start_claimed(self, session: Session, attempt: ClaimedAttempt, token: bytes) -> None:
        session.pools[attempt.pool].take(background=attempt.background)
        held = Held(attempt.run_id, attempt.pool, attempt.background, token, time.monotonic())
        start = pb.StartAttempt(
            run_id=attempt.run_id,
            effect_id=attempt.effect_id,
            effect_key=attempt.effect_key,
            attempt=attempt.attempt,
            token=token,
            harness=harness_of(attempt.harness),
            pool=attempt.pool,
            spec_json=attempt.spec,
            background=attempt.background,
            namespace=session.namespace,
            name=attempt.name,
        )
        if attempt.budget is not None and (bounds := bounds_of(attempt.budget)):
            start.budget_bounds.extend(bounds)
            start.budget_left.CopyFrom(least(bounds))
        if attempt.total_remaining_s is not None:
            start.total_remaining.CopyFrom(duration_of(max(0.0, attempt.total_remaining_s)))
        _note_session(start, attempt.resume or {})
        self.start(session, start, held)
        if self.on_dispatched is not None:
            self.on_dispatched(attempt)


def _note_session(start: pb.StartAttempt, left: Mapping[str, Any]) -> None:
    """What earlier attempts left to go on with, or why nothing of it."""
    if left.get("session_id"):
        json_format.ParseDict(dict(left), start.resume, ignore_unknown_fields=True)
    start.fresh_because = left.get("fresh_because", "")


def _ask(session: Session, name: str, pool: Pool, *, polled: bool) -> ClaimPool | None:
    """What to claim for a pool. A poll that nothing hints at asks for half, so that the fast path keeps room."""
    foreground, background = pool.free(background=False), pool.free(background=True)
    hinted_foreground, hinted_background = (name, False) in session.queued, (name, True) in session.queued
    if not hinted_foreground:
        foreground = background if hinted_background else (max(1, foreground // 2) if polled and foreground else 0)
    background = min(background, foreground) if hinted_background or polled else 0
    foreground = min(foreground, CLAIM_MAX)
    return ClaimPool(pool=name, foreground=foreground, background=min(background, foreground)) if foreground else None
