"""The journal as dispatch sees it, in memory: which attempt of which effect is where, and what the fences refuse."""

import asyncio
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import orjson

from scheduler_service.clock import DatabaseClock
from scheduler_service.journal import (
    Claimed,
    ClaimedAttempt,
    ClaimRequest,
    ExecutorFound,
    ExecutorHello,
    ExecutorSeen,
    HelloAnswer,
    JournalUnavailable,
    LostAttempt,
    OpenAttempt,
    Readoption,
)

EPOCH = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
SPEC = orjson.dumps({"shell": {"command_line": "true"}})


@dataclass
class Effect:
    """One effect. `starts` are the attempts that may have been started, as the policy counts them."""

    effect_id: str
    max_attempts: int
    background: bool
    state: str = "QUEUED"
    attempt: int = 0
    starts: int = 0
    not_before: float = 0.0
    executor_id: str = ""
    incarnation: str = ""
    session_no: int = 0
    dispatched_at: float = 0.0
    known_to_run: bool = False
    never_started: set[int] = field(default_factory=set)
    settled: list[str] = field(default_factory=list)

    def dispatch(self, executor: "Executor", incarnation: str, now: float) -> None:
        """A new attempt, on this executor."""
        assert self.state == "QUEUED"
        self.state, self.attempt, self.starts = "DISPATCHED", self.attempt + 1, self.starts + 1
        self.executor_id, self.incarnation, self.session_no = executor.executor_id, incarnation, executor.session_no
        self.dispatched_at, self.known_to_run = now, False

    def end_attempt(self, outcome: str) -> None:
        """Settles, or queues another attempt when the policy has one left."""
        if outcome != "ok" and self.starts < self.max_attempts:
            self.state = "QUEUED"
        else:
            self.state = "SETTLED"
            self.settled.append(outcome)


@dataclass
class Executor:
    """An executor as its last hello registered it."""

    executor_id: str
    session_no: int = 0
    incarnation: str = ""
    dial: int = 0
    succeeded: list[str] = field(default_factory=list)
    seen_at: float = 0.0
    #: When each earlier incarnation was last heard of.
    earlier: dict[str, float] = field(default_factory=dict)


class Model:
    """Every method is one commit, somewhere between its call and its answer; either may be lost."""

    def __init__(self, draw: Random) -> None:
        self._draw = draw
        self.effects: dict[str, Effect] = {}
        self.executors: dict[str, Executor] = {}
        self.away = False
        self.clock = DatabaseClock()

    @property
    def now(self) -> float:
        """The database's clock."""
        return asyncio.get_running_loop().time()

    @property
    def settled(self) -> bool:
        """True when every effect is."""
        return all(effect.state == "SETTLED" for effect in self.effects.values())

    async def pause(self) -> None:
        """On the way to the database or back. Raises JournalUnavailable while it is away."""
        slow = self._draw.uniform(1, 5) if self._draw.random() < 0.03 else self._draw.uniform(0, 0.3)
        await asyncio.sleep(self._draw.choice((0.0, 0.001, 0.01, slow)))
        if self.away and self._draw.random() < 0.5:
            raise JournalUnavailable("away")

    # -- what schedulers write ---------------------------------------------------------------------------------

    async def request(self, effect: Effect, dispatch: tuple[str, str, int] | None) -> bool:
        """The fast path: a request with its dispatch; True when the dispatch stands."""
        await self.pause()
        self.effects[effect.effect_id] = effect
        if dispatch is not None:
            executor_id, incarnation, session_no = dispatch
            executor = self.executors[executor_id]
            if executor.session_no == session_no:
                effect.dispatch(executor, incarnation, self.now)
        dispatched = effect.state == "DISPATCHED"
        await self.pause()
        return dispatched

    async def claim(self, request: ClaimRequest) -> Claimed:
        """Queued effects for one session."""
        await self.pause()
        executor = self.executors[request.executor_id]
        taken: list[ClaimedAttempt] = []
        if executor.session_no == request.session_no:
            taken = list(self._take(executor, request))
        await self.pause()
        return Claimed(taken, busy=False)

    def _take(self, executor: Executor, request: ClaimRequest) -> list[ClaimedAttempt]:
        [ask] = request.pools
        taken: list[ClaimedAttempt] = []
        queued = [e for e in self.effects.values() if e.state == "QUEUED" and e.not_before <= self.now]
        for effect in sorted(queued, key=lambda e: e.background):
            background = sum(one.background for one in taken)
            if len(taken) < min(ask.foreground, request.limit) and (
                not effect.background or background < ask.background
            ):
                effect.dispatch(executor, request.incarnation, self.now)
                taken.append(_claimed(effect, len(taken)))
        return taken

    async def attempts_lost(self, lost: LostAttempt) -> str:
        """The loss of an attempt, or that it never started."""
        await self.pause()
        effect = self.effects[lost.effect_id]
        executor = self.executors[effect.executor_id] if effect.executor_id else None
        stale = effect.state != "DISPATCHED" or effect.attempt != lost.attempt
        if not stale and executor is not None and lost.executor_session not in (None, executor.session_no):
            stale = True
        if not stale:
            if lost.never_started and not effect.known_to_run:
                effect.never_started.add(effect.attempt)
                effect.starts -= 1
                effect.state, effect.not_before = "QUEUED", self.now + lost.pause_s
            else:
                effect.end_attempt("lost")
        await self.pause()
        return "stale_attempt" if stale else "ok"

    async def executor_hello(self, hello: ExecutorHello) -> HelloAnswer:
        """A new session."""
        await self.pause()
        executor = self.executors.setdefault(hello.executor_id, Executor(hello.executor_id))
        overtaken = executor.incarnation == hello.incarnation and hello.dial < executor.dial
        if overtaken or hello.incarnation in executor.succeeded:
            return HelloAnswer(0, executor.incarnation)
        executor.dial = hello.dial
        executor.succeeded += hello.succeeds
        executor.earlier[executor.incarnation] = executor.seen_at
        previous, executor.incarnation = executor.incarnation, hello.incarnation
        executor.session_no += 1
        executor.seen_at = self.now
        answer = HelloAnswer(executor.session_no, previous)
        await self.pause()
        return answer

    async def executor_found(self, _found: ExecutorFound) -> None:
        """What an executor has of harnesses: here all have the same."""
        await self.pause()

    async def readopt(self, readoption: Readoption) -> str:
        """A running attempt belongs to the new session."""
        await self.pause()
        effect = self.effects[readoption.effect_id]
        fits = (effect.state, effect.attempt, effect.incarnation) == (
            "DISPATCHED", readoption.attempt, readoption.incarnation,
        )  # fmt: skip
        if fits and self.executors[readoption.executor_id].session_no == readoption.session_no:
            effect.session_no, effect.known_to_run = readoption.session_no, True
        await self.pause()
        return "ok" if fits else "stale_attempt"

    async def executors_seen(self, seen: Sequence[ExecutorSeen]) -> None:
        """Signs of life."""
        await self.pause()
        for one in seen:
            if self.executors[one.executor_id].session_no == one.session_no:
                self.executors[one.executor_id].seen_at = self.now

    async def executor_gone(self, _executor_id: str, _session_no: int) -> None:
        """The end of a session."""
        await self.pause()

    # -- what they read ----------------------------------------------------------------------------------------

    async def open_attempts(self, executor_id: str) -> list[OpenAttempt]:
        """Attempts that an executor has, or may have."""
        await self.pause()
        rows = [_open(e, self.now, None) for e in self._open() if e.executor_id == executor_id]
        await self.pause()
        return rows

    async def stranded_attempts(self, grace_s: float) -> list[OpenAttempt]:
        """Attempts whose executor has been silent for longer than the grace."""
        await self.pause()
        rows = []
        for effect in self._open():
            executor = self.executors[effect.executor_id]
            mine = effect.incarnation == executor.incarnation
            heard = executor.seen_at if mine else executor.earlier.get(effect.incarnation, 0.0)
            if self.now - grace_s > max(effect.dispatched_at, heard):
                rows.append(_open(effect, self.now, executor.session_no))
        await self.pause()
        return rows

    def _open(self) -> list[Effect]:
        return [effect for effect in self.effects.values() if effect.state == "DISPATCHED"]

    # -- what executors write ----------------------------------------------------------------------------------

    async def settle(self, effect_id: str, attempt: int, outcome: str) -> str:
        """The outcome of an attempt: `ok`, or `stale` when it no longer counts. Waits while the database is away."""
        while True:
            try:
                await self.pause()
            except JournalUnavailable:
                continue
            effect = self.effects[effect_id]
            if effect.state == "DISPATCHED" and effect.attempt == attempt:
                effect.end_attempt(outcome)
                return "ok"
            return "stale"


def _open(effect: Effect, now: float, executor_session: int | None) -> OpenAttempt:
    return OpenAttempt(
        run_id="run", effect_id=effect.effect_id, key=effect.effect_id, name="work", attempt=effect.attempt,
        state=effect.state, executor_id=effect.executor_id, incarnation=effect.incarnation,
        session_no=effect.session_no, pool="shell", background=effect.background, cancel_reason="", cancel_message="",
        age_s=now - effect.dispatched_at, executor_session=executor_session,
    )  # fmt: skip


def _claimed(effect: Effect, index: int) -> ClaimedAttempt:
    data: dict[str, Any] = {}
    return ClaimedAttempt(
        token_index=index, run_id="run", effect_id=effect.effect_id, effect_key=effect.effect_id,
        attempt=effect.attempt, name="work", harness="shell", pool="shell", background=effect.background, spec=SPEC,
        total_remaining_s=None, seq=1, recorded_at=EPOCH, data=data, head_seq=1,
    )  # fmt: skip
