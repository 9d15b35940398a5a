"""Timers, heads and the sample of watched steps."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from scheduler_service.clock import DatabaseClock
from scheduler_service.iteration import heads as heads_module
from scheduler_service.iteration.call_checks import FIRST_STEPS, THEN_EVERY, CallChecks
from scheduler_service.iteration.heads import Heads
from scheduler_service.iteration.timers import Timers
from tests.support.eventually import eventually


async def test_timers_fire_in_the_order_of_due_time_and_ordinal() -> None:
    fired: list[tuple[str, int]] = []
    timers = Timers(lambda *what: fired.append(what), lambda _run, _ordinal: True, DatabaseClock())
    due = datetime.now(UTC) + timedelta(seconds=0.05)
    for run_id, ordinal, later in (("a", 3, 0), ("a", 1, 0), ("b", 2, 0), ("a", 0, 20), ("c", 9, -20)):
        timers.set(run_id, ordinal, due + timedelta(milliseconds=later))
    await eventually(lambda: len(fired) == 5)
    assert fired == [("c", 9), ("a", 1), ("b", 2), ("a", 3), ("a", 0)]
    assert len(timers) == 0


async def test_a_timer_that_is_noted_twice_fires_once_and_can_be_noted_again() -> None:
    fired: list[int] = []
    timers = Timers(lambda _, ordinal: fired.append(ordinal), lambda _run, _ordinal: True, DatabaseClock())
    now = datetime.now(UTC)
    timers.set("a", 1, now)
    timers.set("a", 1, now)
    await eventually(lambda: fired)
    assert fired == [1]
    timers.set("a", 1, now)
    await eventually(lambda: len(fired) == 2)


async def test_timers_go_by_the_clock_of_the_database() -> None:
    fired: list[float] = []
    clock = DatabaseClock()
    clock.learn(datetime.now(UTC) + timedelta(hours=1))
    timers = Timers(lambda *_: fired.append(clock.now()), lambda _run, _ordinal: True, clock)
    due = datetime.now(UTC) + timedelta(hours=1, seconds=0.1)
    timers.set("a", 1, due)
    await eventually(lambda: fired)
    assert 0 <= fired[0] - due.timestamp() < 60, "never before its time, and not an hour late"


@pytest.mark.parametrize("jump_s", [7200.0, -7200.0])
async def test_a_wall_clock_that_is_set_anew_changes_no_timer(monkeypatch: pytest.MonkeyPatch, jump_s: float) -> None:
    fired: list[float] = []
    clock = DatabaseClock()
    timers = Timers(lambda *_: fired.append(clock.now()), lambda _run, _ordinal: True, clock)
    wall = time.time
    monkeypatch.setattr("time.time", lambda: wall() + jump_s)
    due = datetime.now(UTC) + timedelta(seconds=0.2)
    timers.set("a", 1, due)
    timers.set("a", 2, due + timedelta(hours=1))
    await eventually(lambda: fired, timeout=30)
    assert len(fired) == 1
    assert fired[0] >= due.timestamp()


async def test_a_timer_that_sets_another_does_not_lose_it() -> None:
    fired: list[int] = []

    def fire(run_id: str, ordinal: int) -> None:
        fired.append(ordinal)
        if ordinal < 3:
            timers.set(run_id, ordinal + 1, datetime.now(UTC))

    timers = Timers(fire, lambda _run, _ordinal: True, DatabaseClock())
    timers.set("a", 1, datetime.now(UTC))
    await eventually(lambda: fired == [1, 2, 3])


async def test_a_wait_for_a_head_ends_when_it_is_reached() -> None:
    heads = Heads()
    heads.advance("r", 3)
    assert await heads.wait("r", 2, 10) == 3
    waits = [asyncio.create_task(heads.wait("r", 3, 10)) for _ in range(50)]
    other = asyncio.create_task(heads.wait("other", 0, 0.05))
    await asyncio.sleep(0)
    heads.advance("r", 2)
    await asyncio.sleep(0)
    assert not any(wait.done() for wait in waits), "an older seq is no news"
    heads.advance("r", 7)
    assert await asyncio.gather(*waits) == [7] * 50
    assert await other == 0
    assert not heads._waiters, "waiters are left behind"


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    heads = Heads()
    wait = asyncio.create_task(heads.wait("r", 0, 10))
    await asyncio.sleep(0)
    wait.cancel()
    await asyncio.gather(wait, return_exceptions=True)
    assert not heads._waiters


async def test_a_wait_for_the_stop_is_not_ended_by_other_news() -> None:
    heads = Heads()
    wait = asyncio.create_task(heads.wait_stopped("r", 0, 10))
    await asyncio.sleep(0)
    heads.advance("r", 5)
    await asyncio.sleep(0)
    assert not wait.done()
    heads.stopped("r", 6)
    await asyncio.wait_for(wait, 30)
    await asyncio.wait_for(heads.wait_stopped("r", 5, 10), 30)


@pytest.mark.invariant("I11")
def test_the_heads_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads_module, "HEADS_MAX", 10)
    heads = Heads()
    for i in range(100):
        heads.advance(f"r{i}", 1)
        heads.stopped(f"r{i}", 1)
    assert len(heads._heads) == len(heads._stops) == 10
    assert (heads.get("r0"), heads.get("r99")) == (0, 1)


def test_the_first_steps_of_each_process_are_watched_and_then_a_sample() -> None:
    checks = CallChecks("sampled")
    due = [checks.due("p") for _ in range(FIRST_STEPS + 10 * THEN_EVERY)]
    assert all(due[:FIRST_STEPS])
    assert sum(due[FIRST_STEPS:]) == 10
    assert checks.due("another")


def test_all_or_none_are_watched_when_asked() -> None:
    assert all(CallChecks("all").due("p") for _ in range(FIRST_STEPS * 3))
    assert not any(CallChecks("off").due("p") for _ in range(10))


async def test_timers_that_nobody_waits_for_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler_service.iteration.timers.COMPACT_TIMERS", 10)
    timers = Timers(lambda *_: None, lambda _run, ordinal: ordinal % 100 == 0, DatabaseClock())
    for ordinal in range(1, 1001):
        timers.set("run", ordinal, datetime.now(UTC) + timedelta(days=1))
    assert len(timers) < 100
