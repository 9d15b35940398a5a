"""The life of an effect in a test: its attempts, timeouts, retries and cancel, in virtual time."""

from __future__ import annotations

import asyncio
import datetime as dt
import inspect
import itertools
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from scheduler_service.authoring.errors import DeterminismError
from scheduler_service.authoring.options import timestamp
from scheduler_service.replay.harness import Clock, Journal
from scheduler_service.replay.policies import policy_of
from scheduler_service.replay.testing.fakes import NEVER, After, Asked, FakeMisused, Result, call
from scheduler_service.replay.testing.given import Given, failure, progress_given, raised_given, value_given

#: What ends the test instead of the attempt: the test is wrong, or has found what it looks for.
TEST_ERRORS: Final = (AssertionError, FakeMisused, DeterminismError)
_TIMEOUTS: Final = {"start_to_close": "START_TO_CLOSE", "silence": "SILENCE", "total": "TOTAL"}


class _Late(Exception):
    """One of the effect's timeouts was reached."""


class Life:
    """One effect from its request to its settlement. `live` runs as a task of the test's loop; cancel that task."""

    def __init__(
        self, journal: Journal, clock: Clock, asked: Asked, fake: Any, slots: asyncio.Semaphore | None
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._asked = asked
        self._fake = fake
        self._slots = slots
        self._started = clock.now
        self._heard: asyncio.Timeout | None = None
        self._attempt = 0 if asked.kind in ("approval", "external", "run", "timer") else 1
        self.cancelled: Mapping[str, Any] = {}  # data of the request of its cancel

    async def live(self) -> None:
        """To its settlement. Raises one of TEST_ERRORS, and nothing else."""
        try:
            given = await self._attempts()
        except asyncio.CancelledError:
            given = Given("CANCELLED")
        self.settle(given)

    def settle(self, given: Given) -> None:
        """Append the row that settles it."""
        self._row(*settlement(given, self.cancelled))

    def _row(self, type_: str, data: Mapping[str, Any]) -> None:
        self._journal.append_of_effect(self._asked.key, type_, data, self._attempt)

    async def _attempts(self) -> Given:
        if until := self._asked.spec.get("sleep_until"):
            await asyncio.sleep((dt.datetime.fromisoformat(until) - self._clock.now).total_seconds())
        if not self._attempt:  # nobody executes it
            return await self._bounded()
        for number in itertools.count(1):
            self._attempt = number
            given = await self._on_executor()
            pause = self._pause(given, number)
            if pause is None:
                return given
            due = self._clock.now + dt.timedelta(seconds=pause)
            data = {"error": given.error, "next_attempt_at": timestamp(due)}
            self._row("EFFECT_ATTEMPT_FAILED", data | ({"partial": given.result} if given.result else {}))
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _on_executor(self) -> Given:
        if self._slots is None:
            return await self._dispatched()
        async with self._slots:
            return await self._dispatched()

    async def _dispatched(self) -> Given:
        self._row("EFFECT_DISPATCHED", {"executor_id": "test"})
        self._row("EFFECT_STARTED", {})
        return await self._bounded()

    def _pause(self, given: Given, number: int) -> float | None:
        """Seconds until the next attempt; None when there is none."""
        policy = self._asked.spec.get("retry", {})
        if given.outcome not in ("FAILED", "TIMED_OUT") or number >= policy.get("max_attempts", 1):
            return None
        if given.reason in policy.get("non_retryable", ()) or not policy_of(given.reason).retried:
            return None
        pause = min(
            _seconds(policy["initial"]) * policy["backoff"] ** min(number - 1, 60), _seconds(policy["max_interval"])
        )
        left = self._left("total")
        return float(pause) if left is None or pause < left else None

    async def _bounded(self) -> Given:
        """One attempt within the effect's timeouts."""
        kind = "START_TO_CLOSE"
        try:
            async with self._within("total"), self._within("start_to_close"), self._within("silence") as self._heard:
                return await self._call()
        except _Late as late:
            kind = str(late)
        return failure(f"TIMEOUT_{kind}", "", "TIMED_OUT")

    @asynccontextmanager
    async def _within(self, timeout: str) -> AsyncIterator[asyncio.Timeout]:
        limit = asyncio.timeout(self._left(timeout))
        try:
            async with limit:
                yield limit
        except TimeoutError:
            if not limit.expired():
                raise
            # What nobody executes begins with its request: all bounds in time are one.
            raise _Late(_TIMEOUTS[timeout] if self._attempt else "TOTAL") from None

    def _left(self, timeout: str) -> float | None:
        """Seconds until that timeout of the effect, None when it has none."""
        stored = self._asked.spec.get("timeouts", {}).get(timeout)
        if stored is None:
            return None
        spent = (self._clock.now - self._started).total_seconds() if timeout == "total" else 0.0
        return _seconds(stored) - spent

    async def _call(self) -> Given:
        try:
            return value_given(self._asked, await self._value(self._fake))
        except TEST_ERRORS:
            raise
        except Exception as error:  # noqa: BLE001 - what a fake raises is how the attempt ends
            return raised_given(self._asked, error)

    async def _value(self, fake: Any) -> Any:
        """What the fake gives, once its virtual time has passed."""
        if fake is NEVER:
            await asyncio.get_running_loop().create_future()
        if isinstance(fake, After):
            await asyncio.sleep(fake.seconds)
            return await self._value(fake.fake)
        value = call(fake, self._asked)
        if inspect.isasyncgen(value):
            value = await self._yielded(value)
        elif inspect.isgenerator(value):
            value = self._walked(value)
        elif inspect.isawaitable(value):
            value = await value
        return await self._value(value) if value is NEVER or isinstance(value, After) else value

    async def _yielded(self, steps: AsyncIterator[Any]) -> Any:
        given = None
        async for step in steps:
            if isinstance(step, Result):
                given = step.value
            else:
                self._progress(step)
        return given

    def _walked(self, steps: Iterator[Any]) -> Any:
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
            self._progress(step)

    def _progress(self, step: Any) -> None:
        self._row("EFFECT_PROGRESS", progress_given(self._asked, step))
        silence = self._left("silence")
        if silence is not None and self._heard is not None:
            self._heard.reschedule(asyncio.get_running_loop().time() + silence)


def settlement(given: Given, cancelled: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Type and data of the row that settles an effect; `cancelled` is the data of its cancel request, if any."""
    if given.outcome == "CANCELLED" or (cancelled and given.outcome != "SUCCEEDED"):
        said = {**given.error, **cancelled}
        why: dict[str, Any] = {name: said[name] for name in ("reason", "message") if name in said}
        partial = {"partial": dict(given.result)} if given.result else {}
        return "EFFECT_CANCELLED", {**why, **partial, "death": "DEATH_PROVEN"}
    parts = {"result": dict(given.result), "error": dict(given.error), "resolved_by": given.resolved_by}
    kept: dict[str, Any] = {name: part for name, part in parts.items() if part}
    data = {"state": f"EFFECT_STATE_{given.outcome}", **kept}
    return "EFFECT_RESOLVED", data


def _seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))
