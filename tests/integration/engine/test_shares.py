"""Replicas that come and go: shards move to fair shares in a planned way, and the runs in them go on."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from scheduler_service.journal import AdoptedRun, shard_of
from tests.integration.engine.executor import SUCCEEDED
from tests.integration.engine.world import World, world
from tests.support.eventually import eventually
from tests.support.journals import of_type


async def shares(at: World, *counts: int) -> None:
    """Waits until the live owners hold so many shards each."""
    held: list[int] = []

    async def look() -> bool:
        rows = await at.query("SELECT owner FROM backburner.shards WHERE expires_at > clock_timestamp()")
        held[:] = sorted(Counter(row[0] for row in rows).values(), reverse=True)
        return held == list(counts)

    await eventually(look, timeout=30, message=lambda: f"the shares are {held}")


@pytest.mark.invariant("I5", "I6")
async def test_shards_move_as_replicas_come_and_go_and_nothing_is_run_twice(at: World) -> None:
    await shares(at, 16)
    executor = at.executor()
    await executor.connect()
    run_ids = await asyncio.gather(*(at.create("one") for _ in range(40)))
    await eventually(lambda: len(executor.starts) == 40)
    async with AsyncExitStack() as stack:
        second = await stack.enter_async_context(world(at.dsn))
        await shares(at, 8, 8)
        third = await stack.enter_async_context(world(at.dsn))
        await shares(at, 6, 5, 5)
        await eventually(lambda: all(len(one.engine.shards.epochs) in (5, 6) for one in (at, second, third)))
        for start in list(executor.starts):
            assert await executor.settle(start, **SUCCEEDED, value=start.run_id) == "ok"
        values = await asyncio.gather(*(third.value(run_id) for run_id in run_ids))
        assert values == run_ids
    await shares(at, 16)
    assert await at.value(await _created(at, executor)) == "again"
    for run_id in run_ids:
        assert len(await at.rows(run_id, "EFFECT_DISPATCHED")) == 1


async def _created(at: World, executor: object) -> str:
    executor.answer = lambda start: SUCCEEDED | {"value": "again"}  # type: ignore[attr-defined]
    return await at.create("one")


@pytest.mark.invariant("I5")
async def test_a_replica_that_died_leaves_its_shards_to_the_others_after_its_lease(at: World) -> None:
    async with world(at.dsn) as other:
        await shares(at, 8, 8)
        for task in other.engine._services:
            task.cancel()
        await shares(at, 16)
        assert len(at.engine.shards.epochs) == 16


async def test_a_shard_of_very_many_runs_does_not_cost_the_leases(at: World) -> None:
    """Its adoption takes longer than a lease: meanwhile the leases are renewed, and other runs go on."""
    await at.stop()
    await at.start()
    go_on = asyncio.Event()
    leases = at.engine.journal.leases
    adopt, asked = leases.adopt_runs, asyncio.Event()

    async def slow(scheduler_id: str, shard: int, epoch: int, after: str | None, most: int) -> list[AdoptedRun]:
        asked.set()
        await go_on.wait()
        return await adopt(scheduler_id, shard, epoch, after, most)

    leases.adopt_runs = slow  # type: ignore[method-assign]
    epochs = dict(at.engine.shards.epochs)
    at.engine.shards.adoption.read(3)
    await asked.wait()
    renewed = await at.query("SELECT min(expires_at) + interval '3 s' FROM backburner.shards")
    await eventually(
        lambda: at.query("SELECT 1 FROM backburner.shards HAVING min(expires_at) > %s", renewed[0][0]), timeout=30
    )
    assert at.engine.shards.epochs == epochs
    go_on.set()
    await eventually(lambda: not at.engine.shards.adoption._unread)


@pytest.mark.invariant("I6")
async def test_runs_of_every_shard_are_run_whichever_replica_they_are_created_on(at: World) -> None:
    async with world(at.dsn) as other:
        await shares(at, 8, 8)
        places = (at, other)
        run_ids = [await places[n % 2].create("sleeper", seconds=0) for n in range(24)]
        owned = {len(set(map(shard_of, run_ids)) & set(place.engine.shards.epochs)) > 0 for place in places}
        assert owned == {True}
        for n, run_id in enumerate(run_ids):
            assert await places[(n + 1) % 2].value(run_id) == "woke"
            assert of_type(await at.rows(run_id), "RUN_COMPLETED")


async def test_the_replicas_are_there_to_be_read(at: World) -> None:
    async with world(at.dsn, advertise="scheduler-2:7233") as other:
        await shares(at, 8, 8)
        replicas = {replica.scheduler_id: replica for replica in await at.engine.journal.leases.replicas()}
        mine, its = replicas[at.engine.scheduler_id], replicas[other.engine.scheduler_id]
        assert mine.live
        assert its.live
        assert not its.draining
        assert (mine.shards, its.shards) == (8, 8)
        assert (mine.address, its.address) == (at.server.address, "scheduler-2:7233")
    gone = {replica.scheduler_id: replica for replica in await at.engine.journal.leases.replicas()}[its.scheduler_id]
    assert not gone.live
    assert gone.shards == 0
