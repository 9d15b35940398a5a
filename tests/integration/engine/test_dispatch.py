"""Who is next: foreground before background, priorities, groups, pauses, labels, alternatives, namespaces."""

import asyncio
import time

import pytest

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from tests.integration.engine.executor import SUCCEEDED, ScriptedExecutor
from tests.integration.engine.world import World
from tests.support.eventually import eventually


async def all_requested(at: World, run_id: str, count: int) -> None:
    async def there() -> bool:
        return len(await at.rows(run_id, "EFFECT_REQUESTED")) >= count

    await eventually(there, timeout=20)


def background(executor: ScriptedExecutor) -> list[pb.StartAttempt]:
    return [start for start in executor.starts if start.background]


@pytest.mark.parametrize("before", [True, False], ids=["queued-before-connect", "fast-path"])
async def test_background_never_holds_the_last_slot(at: World, before: bool) -> None:
    """However it comes to be assigned: a thousand are queued, and a foreground effect starts at once."""
    executor = at.executor(pools={"functions": (4, 4)})
    if not before:
        await executor.connect()
    run_id = await at.create("fan", count=1000)
    await all_requested(at, run_id, 1000)
    if before:
        await executor.connect()
    await eventually(lambda: len(background(executor)) == 3)
    started = time.monotonic()
    foreground = await at.create("one")
    start = await executor.start_of("it")
    assert time.monotonic() - started < 1.0
    await executor.settle(start)
    await at.value(foreground)
    assert len(background(executor)) == 3
    for _ in range(10):
        count = len(background(executor))
        await executor.settle(background(executor)[-1])
        await eventually(lambda count=count: len(background(executor)) > count)  # type: ignore[misc]
    await at.cancel(run_id)


async def test_a_claim_on_its_way_counts_for_the_share_of_background(at: World) -> None:
    """Fast path and claim at the same time must not each take the whole share."""
    executor = at.executor(pools={"functions": (8, 4)})
    await executor.connect()
    run_ids = [await at.create("fan", count=3) for _ in range(8)]
    await eventually(lambda: len(background(executor)) == 4)
    session = at.engine.sessions.get("x")
    assert session is not None
    for _ in range(20):
        await asyncio.gather(*(executor.settle(s) for s in background(executor)[-4:-2]), return_exceptions=True)
        assert session.pools["functions"].background_taken <= 4
        run_ids.append(await at.create("fan", count=3))
    assert session.pools["functions"].background_taken <= 4


async def test_foreground_is_claimed_before_a_thousand_background_effects(at: World) -> None:
    run_id = await at.create("fan", count=1000)
    await all_requested(at, run_id, 1000)
    foreground = await at.create("one")
    await at.row(foreground, "EFFECT_REQUESTED", "it")
    executor = at.executor(pools={"functions": (1, 1)})
    executor.answer = lambda start: SUCCEEDED
    await executor.connect()
    assert executor.starts == [] or executor.starts[0].effect_key == "it"
    await at.value(foreground)
    assert executor.starts[0].effect_key == "it"
    await at.cancel(run_id)


async def test_priority_decides_within_a_class(at: World) -> None:
    low = await at.create("fan", count=3, background=False, priority=0)
    await all_requested(at, low, 3)
    high = await at.create("fan", count=3, background=False, priority=50)
    await all_requested(at, high, 3)
    executor = at.executor(pools={"functions": (1, 1)})
    executor.answer = lambda start: SUCCEEDED
    await executor.connect()
    await at.value(low)
    assert [start.run_id for start in executor.starts] == [high] * 3 + [low] * 3


@pytest.mark.parametrize("before", [True, False], ids=["from-the-queue", "fast-path"])
async def test_a_group_never_runs_more_than_its_limit(at: World, before: bool) -> None:
    executor = at.executor()
    if not before:
        await executor.connect()
    run_id = await at.create("fan", count=12, most=2)
    await all_requested(at, run_id, 12)
    if before:
        await executor.connect()
    for done in range(12):
        await eventually(lambda done=done: len(executor.starts) > done, timeout=5)  # type: ignore[misc]
        [(open_now,)] = await at.query(
            "SELECT count(*) FROM backburner.effects WHERE run_id = %s AND state IN ('DISPATCHED', 'RUNNING')", run_id
        )
        assert open_now <= 2
        await executor.settle(executor.starts[done])
    assert await at.value(run_id) == 12
    assert not at.engine.dispatcher._grouped, "settled effects are remembered for ever"


async def test_a_group_without_a_limit_has_none(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("unlimited-group")
    await eventually(lambda: len(executor.starts) == 5)
    for start in executor.starts:
        await executor.settle(start)
    assert await at.value(run_id) == 5


async def test_cancelled_members_of_a_group_are_forgotten(at: World) -> None:
    run_id = await at.create("fan", count=20, most=2)
    await all_requested(at, run_id, 20)
    await at.cancel(run_id)
    await at.row(run_id, "RUN_CANCELLED")
    assert not at.engine.dispatcher._grouped


async def test_sleep_until_is_kept(at: World) -> None:
    executor = at.executor()
    executor.answer = lambda start: SUCCEEDED
    await executor.connect()
    run_id = await at.create("later", seconds=0.7)
    await at.value(run_id)
    requested, dispatched = await at.row(run_id, "EFFECT_REQUESTED"), await at.row(run_id, "EFFECT_DISPATCHED")
    waited = (dispatched.recorded_at - requested.recorded_at).total_seconds()
    assert 0.65 <= waited < 2


async def test_executor_labels_choose_the_executor(at: World) -> None:
    wrong, right = at.executor("wrong", labels={"zone": "a"}), at.executor("right", labels={"zone": "b"})
    await wrong.connect()
    run_ids = [await at.create("labelled") for _ in range(3)]
    await at.row(run_ids[-1], "EFFECT_REQUESTED")
    await right.connect()
    run_ids += [await at.create("labelled") for _ in range(3)]
    await eventually(lambda: len(right.starts) == 6)
    assert not wrong.starts


async def test_an_executor_gets_no_work_of_another_namespace(at: World) -> None:
    executor = at.executor(namespace="elsewhere")
    await executor.connect()
    here = await at.create("one")
    await at.row(here, "EFFECT_REQUESTED")
    there = await at.create("one", namespace="elsewhere")
    await executor.start_of("it")
    assert [start.run_id for start in executor.starts] == [there]


async def test_fallbacks_are_taken_when_only_they_are_there(at: World) -> None:
    pools = {"agents": (4, 2)}
    second = at.executor("second", harnesses=["claude-code"], pools=pools)
    await second.connect()
    await at.create("agents")
    assert (await second.start_of("it")).harness == "claude-code"
    first = at.executor("first", harnesses=["codex"], pools={"agents": (2, 1)})
    await first.connect()
    await at.create("agents")
    assert (await first.start_of("it")).harness == "codex"
    assert len(second.starts) == 1, "the fallback was taken although the preferred harness had room"
