"""Process code that is evicted, missing, wrong, slow to end, changed or hostile: its run suffers, no other one does."""

import asyncio
from datetime import datetime
from typing import Any

import pytest

import backburner as bb
from backburner.journal.v1 import journal_pb2
from scheduler_service.authoring import options
from scheduler_service.authoring.definitions import AnyProcess
from scheduler_service.iteration.runs import Phase
from scheduler_service.journal import Append, AppendOutcome
from scheduler_service.journal.verify import verify
from tests.integration.engine import processes
from tests.integration.engine.executor import CANCELLED, SUCCEEDED
from tests.integration.engine.processes import ALL
from tests.integration.engine.world import World, world
from tests.support.eventually import eventually

STATE = journal_pb2.RunState.Name


def without(*names: str) -> dict[str, AnyProcess]:
    return {name: process for name, process in ALL.items() if name not in names}


async def still_works(at: World) -> None:
    """Another run goes from end to end."""
    assert await at.value(await at.create("sleeper", seconds=0.01)) == "woke"


@pytest.mark.invariant("I8", "I11")
async def test_evicted_runs_go_on_where_they_were(database_url: str) -> None:
    """One coroutine may live; five runs take turns. Their `finally` blocks ask for effects, and nobody hears it."""
    processes.CLEANED.clear()
    async with world(database_url, cache_runs_max=1, poll_seconds=0.02, check_calls="off") as at:
        executor = at.executor()
        await executor.connect()
        run_ids = [await at.create("steps", count=4) for _ in range(5)]

        def cached() -> int:
            return sum(run.execution is not None for run in at.engine.loop.runs)

        for step in range(4):
            await eventually(lambda step=step: len(executor.starts) == 5 * (step + 1))  # type: ignore[misc]
            await eventually(lambda: cached() <= 1)
            for start in executor.starts[5 * step :]:
                await executor.settle(start, value=step)
        for run_id in run_ids:
            assert await at.value(run_id) == [0, 1, 2, 3]
            assert not await at.rows(run_id, "EFFECT_REQUESTED", key="cleanup")
    assert len(processes.CLEANED) > 5, "no run was evicted: this test has shown nothing"


@pytest.mark.invariant("I6")
async def test_a_run_without_its_process_waits_for_it(at: World, caplog: pytest.LogCaptureFixture) -> None:
    """However often the scheduler is started without it: that is no strike against the run."""
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("one")
    start = await executor.start_of("it")
    for _ in range(5):
        await at.restart(without("one"))
        await eventually(lambda: f"run {run_id} waits" in caplog.text and "'one'" in caplog.text)
        caplog.clear()
        await still_works(at)
    await at.restart()
    executor.channel = at.channel
    await executor.connect([start])
    await executor.settle(start, value="back")
    assert await at.value(run_id) == "back"


@pytest.mark.invariant("I12")
async def test_a_replay_that_asks_for_nothing_leaves_no_trace_of_its_time(at: World) -> None:
    """What clears the strikes after it appends no row: the head stays that of the last one, and `verify` is content."""
    run_id = await at.create("sleeper", seconds=1000)
    await at.row(run_id, "TIMER_SET")
    await at.restart()
    await eventually(lambda: (run := at.engine.loop.runs.get(run_id)) and run.execution and run.phase is Phase.IDLE)
    [(strikes,)] = await at.query("SELECT strikes FROM backburner.run_heads WHERE run_id = %s", run_id)
    assert strikes == 0
    assert [violation async for run in verify(at.dsn) for violation in run.violations] == []


@pytest.mark.invariant("I1")
async def test_a_timer_that_comes_due_while_it_is_being_written_fires_once_and_after_that(
    at: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = at.engine.loop.journal
    append = journal.append

    async def late(item: Append) -> AppendOutcome:
        for row in item.rows:
            if row["type"] == "TIMER_SET":
                due = datetime.fromisoformat(row["data"]["fire_at"]).timestamp()
                await eventually(lambda: at.engine.loop.journal.clock.now() > due + 0.1)  # noqa: B023 - awaited at once
        return await append(item)

    monkeypatch.setattr(journal, "append", late)
    run_id = await at.create("sleeper", seconds=0.05)
    assert await at.value(run_id) == "woke"
    rows = [row.type for row in await at.rows(run_id)]
    assert rows == ["RUN_CREATED", "TIMER_SET", "TIMER_FIRED", "RUN_COMPLETED"]


@pytest.mark.invariant("I6")
async def test_a_cancel_ends_a_run_whose_process_is_missing(at: World) -> None:
    run_id = await at.create("sleeper", seconds=1000)
    await at.row(run_id, "TIMER_SET")
    await at.restart(without("sleeper"))
    await eventually(lambda: (run := at.engine.loop.runs.get(run_id)) and run.phase is Phase.PARKED)
    await at.cancel(run_id)
    await at.row(run_id, "RUN_CANCELLED")


@pytest.mark.invariant("I6")
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_parked_run_can_be_cancelled(at: World, restarted: bool) -> None:
    executor = at.executor()
    executor.answer = lambda start: SUCCEEDED if start.effect_key == "first" else None
    await executor.connect()
    run_id = await at.create("raises")
    error = await at.row(run_id, "PROCESS_RUNTIME_ERROR")
    assert "a bug" in error.data["error"]["message"]
    if restarted:
        beside = await executor.start_of("beside")
        await at.restart()
        executor.channel = at.channel
        await executor.connect([beside])
    await at.cancel(run_id)
    await at.row(run_id, "EFFECT_CANCEL_REQUESTED", "beside")
    await eventually(lambda: executor.cancels)
    assert not await at.rows(run_id, "RUN_CANCELLED")
    await executor.settle(await executor.start_of("beside"), **CANCELLED)
    await at.row(run_id, "RUN_CANCELLED")


async def force_begun(at: World, cleanup_s: float | None = 0.3) -> tuple[str, Any]:
    """A run whose cleanup takes too long, ended by its owner; the cancelled cleanup is not dead yet."""
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("slow-cleanup", cleanup_s=cleanup_s)
    long = await executor.start_of("long")
    await at.cancel(run_id)
    await eventually(lambda: executor.cancels)
    await executor.settle(long, **CANCELLED)
    cleanup = await executor.start_of("cleanup")
    closing = await at.row(run_id, "RUN_CLOSING")
    assert closing.data["outcome"] == "RUN_STATE_CANCELLED"
    return run_id, (executor, cleanup)


async def test_the_time_for_cleanup_has_a_default(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "CLEANUP_SECONDS_DEFAULT", 0.3)  # what GetServerInfo tells
    run_id, (executor, cleanup) = await force_begun(at, cleanup_s=None)
    await executor.settle(cleanup, **CANCELLED)
    await at.row(run_id, "RUN_CANCELLED")


@pytest.mark.invariant("I6")
async def test_cleanup_that_takes_too_long_is_ended_by_force(at: World) -> None:
    run_id, (executor, cleanup) = await force_begun(at)
    await eventually(lambda: any(c.ref.effect_id == cleanup.effect_id for c in executor.cancels))
    await executor.settle(cleanup, **CANCELLED)
    await at.row(run_id, "RUN_CANCELLED")
    await still_works(at)


@pytest.mark.invariant("I8")
async def test_a_run_that_is_ended_by_force_is_never_given_to_its_process_again(at: World) -> None:
    """Not after a restart either: code that has changed meanwhile would park it, and it would never end."""
    run_id, (executor, cleanup) = await force_begun(at)
    called: list[str] = []

    async def changed(ctx: bb.Context) -> None:
        called.append(ctx.run_id)
        raise ValueError("must not run")

    await at.restart({**ALL, "slow-cleanup": type(ALL["one"])("slow-cleanup", changed)})
    executor.channel = at.channel
    await executor.connect([cleanup])
    await executor.settle(cleanup, **CANCELLED)
    await at.row(run_id, "RUN_CANCELLED")
    assert not called


@pytest.mark.invariant("I8")
async def test_changed_code_is_reported_and_the_history_stays(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("changes")
    start = await executor.start_of("old")
    before = await at.rows(run_id)

    async def changed(ctx: bb.Context) -> str:
        await ctx.run(processes.probe(), key="new")
        return "new"

    await at.restart({**ALL, "changes": type(ALL["one"])("changes", changed)})
    error = (await at.row(run_id, "PROCESS_RUNTIME_ERROR")).data["error"]
    assert error["kind"] == "DIVERGENCE"
    text = str(error)
    assert "seq 1" in text or "'seq': 1" in text, error
    assert "old" in text, "what was recorded is not named"
    assert "new" in text, "what is asked now is not named"
    after = await at.rows(run_id)
    assert after[: len(before)] == before
    assert not [row for row in after if row.key == "new"]
    executor.channel = at.channel
    await executor.connect([start])
    assert await executor.settle(start) == "ok", "the result of a parked run's effect is refused"
    await still_works(at)


@pytest.mark.parametrize("how", ["exit", "interrupt"])
async def test_process_code_that_wants_to_end_the_service_parks_its_run(at: World, how: str) -> None:
    executor = at.executor()
    executor.answer = lambda start: SUCCEEDED
    await executor.connect()
    run_id = await at.create("raises", how=how)
    await at.row(run_id, "PROCESS_RUNTIME_ERROR")
    await still_works(at)


async def test_cleanup_that_exits_when_it_is_evicted_ends_nothing(database_url: str) -> None:
    async with world(database_url, cache_runs_max=1, poll_seconds=0.02) as at:
        executor = at.executor()
        await executor.connect()
        run_ids = [await at.create("exits-at-eviction") for _ in range(3)]
        await eventually(lambda: len(executor.starts) == 3)
        await eventually(lambda: sum(run.execution is not None for run in at.engine.loop.runs) <= 1)
        await still_works(at)
        for start in executor.starts:
            await executor.settle(start)
        for run_id in run_ids:
            await at.value(run_id)


@pytest.mark.invariant("I11")
async def test_a_loop_that_hides_every_exception_is_given_up(database_url: str) -> None:
    async with world(database_url, step_seconds_max=0.3, check_calls="off") as at:
        run_id = await at.create("spins")
        error = (await at.row(run_id, "PROCESS_RUNTIME_ERROR")).data["error"]
        assert error["kind"] == "BLOCKED"
        assert "spins" in error["traceback"]
        await still_works(at)
        assert at.engine.threads.healthy
        processes.RELEASED.set()
        await eventually(lambda: not at.engine.threads._stuck or at.engine.threads.healthy)


async def test_a_timer_that_comes_due_while_its_run_is_evicted_fires_once(database_url: str) -> None:
    async with world(database_url, cache_runs_max=1, poll_seconds=0.02) as at:
        run_ids = [await at.create("sleeper", seconds=0.3) for _ in range(5)]
        for run_id in run_ids:
            assert await at.value(run_id) == "woke"
            assert len(await at.rows(run_id, "TIMER_FIRED")) == 1


async def test_a_durable_sleep_outlives_its_scheduler(at: World) -> None:
    run_id = await at.create("sleeper", seconds=1.0)
    timer = await at.row(run_id, "TIMER_SET")
    await at.restart()
    assert await at.value(run_id) == "woke"
    fired = await at.row(run_id, "TIMER_FIRED")
    # Its due time counts from the event that was being fed, not from the commit of TIMER_SET.
    due = datetime.fromisoformat(timer.data["fire_at"])
    assert fired.recorded_at >= due


async def test_the_timers_of_many_runs_fire_in_time(at: World) -> None:
    run_ids = await asyncio.gather(*(at.create("sleeper", seconds=0.2 + i / 100) for i in range(20)))
    assert await asyncio.gather(*(at.value(run_id) for run_id in run_ids)) == ["woke"] * 20
