"""Who is next: foreground before background, priorities, groups, pauses, labels, alternatives, namespaces."""

import asyncio

import pytest

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from backburner.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from tests.integration.engine.executor import FAILED, SUCCEEDED, ScriptedExecutor
from tests.integration.engine.world import World
from tests.support.eventually import eventually


async def all_requested(at: World, run_id: str, count: int) -> None:
    async def there() -> bool:
        return len(await at.rows(run_id, "EFFECT_REQUESTED")) >= count

    await eventually(there)


def background(executor: ScriptedExecutor) -> list[pb.StartAttempt]:
    return [start for start in executor.starts if start.background]


@pytest.mark.parametrize("before", [True, False], ids=["queued-before-connect", "fast-path"])
async def test_background_never_holds_the_last_slot(at: World, before: bool) -> None:
    """However it comes to be assigned: a thousand are queued, and a foreground effect starts before one ends."""
    executor = at.executor(pools={"functions": (4, 4)})
    if not before:
        await executor.connect()
    run_id = await at.create("fan", count=1000)
    await all_requested(at, run_id, 1000)
    if before:
        await executor.connect()
    await eventually(lambda: len(background(executor)) == 3)
    foreground = await at.create("one")
    start = await executor.start_of("it")
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
        await eventually(lambda done=done: len(executor.starts) > done)  # type: ignore[misc]
        [(open_now,)] = await at.query(
            "SELECT count(*) FROM backburner.effects WHERE run_id = %s AND state IN ('DISPATCHED', 'RUNNING')", run_id
        )
        assert open_now <= 2
        await executor.settle(executor.starts[done])
    assert await at.value(run_id) == 12
    assert not at.engine.dispatcher._grouped, "settled effects are remembered for ever"


async def test_who_waits_for_its_group_is_told_how_many_of_it_run(at: World) -> None:
    executor = at.executor(pools={"functions": (20, 20)})
    await executor.connect()
    run_id = await at.create("adaptive", count=12)
    await eventually(lambda: len(executor.starts) == 8)

    async def waiting_on() -> set[str]:
        run = (await at.client.GetRun(scheduler_pb.GetRunRequest(run_id=run_id))).run
        return {cause.message.partition(": ")[2] for cause in run.waiting_on if "group" in cause.message}

    assert await waiting_on() == {"group fix: 8 of 8 run"}
    for start in executor.starts[:4]:
        await executor.settle(start, **(FAILED | {"reason": "EFFECT_REASON_RATE_LIMITED"}))
    assert await waiting_on() == {"group fix: 4 of 1 run (adaptive: up to 8)"}
    await at.cancel(run_id)


async def test_a_pause_before_the_next_attempt_leaves_its_place_to_others_at_once(at: World) -> None:
    await at.restart(poll_seconds=600.0)
    executor = at.executor(pools={"functions": (20, 20)})
    await executor.connect()
    run_id = await at.create("adaptive", count=9)
    await eventually(lambda: len(executor.starts) == 8)
    await executor.settle(executor.starts[0], **FAILED)
    await executor.start_of("fix/8")
    await at.cancel(run_id)


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
    created, dispatched = await at.row(run_id, "RUN_CREATED"), await at.row(run_id, "EFFECT_DISPATCHED")
    # It counts from the event that was being fed, not from the commit of the request.
    assert (dispatched.recorded_at - created.recorded_at).total_seconds() >= 0.7


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


async def test_executors_and_clients_are_told_what_attempts_of_the_name_took(at: World) -> None:
    """The median of the latest successes: known at once and, for other work than functions, after a restart too."""
    executor = at.executor(pools={"shell": (10, 10)})
    await executor.connect()
    told = []
    for key, took in (("a", 100.0), ("b", 2000.0), ("c", 300.0), ("d", 0.0)):
        run_id = await at.create("command", key=key)
        start = await executor.start_of(key)
        told.append(start.expected_duration.seconds if start.HasField("expected_duration") else None)
        await executor.settle(start, elapsed_s=took or 1.0, **({} if took else FAILED))
        await at.result(run_id)
    assert told == [None, 100, 1050, 300], "the median of those before"
    await at.restart()
    again = at.executor("y", pools={"shell": (10, 10)})
    await again.connect()
    run_id = await at.create("command", key="e")
    assert (await again.start_of("e")).expected_duration.seconds == 300, "the failure says nothing about it"
    for progress in (await shown(at, run_id), await watched(at, run_id)):
        assert (progress.eta_estimated, 200 < progress.eta.seconds <= 300) == (True, True)
    await at.cancel(run_id)


async def shown(at: World, run_id: str) -> journal_pb2.Progress:
    """The progress of the run's only effect, as it is listed."""
    [effect] = (await at.client.ListEffects(scheduler_pb.ListEffectsRequest(run_id=run_id))).effects
    return effect.progress


async def watched(at: World, run_id: str) -> journal_pb2.Progress:
    """The same, as a watch begins with it."""
    call = at.client.WatchRun(scheduler_pb.WatchRunRequest(run_id=run_id))
    try:
        async for frame in call:
            if frame.HasField("snapshot"):
                [effect] = frame.snapshot.effects
                return effect.progress
    finally:
        call.cancel()
    raise AssertionError("no snapshot")


async def test_an_attempt_that_outlives_its_session_tells_what_it_took(at: World) -> None:
    executor = at.executor(pools={"shell": (10, 10)})
    await executor.connect()
    await at.create("command", key="a")
    start = await executor.start_of("a")
    await executor.hang_up()
    await executor.connect([start])
    await executor.settle(start, elapsed_s=70.0)
    await eventually(lambda: at.engine.expected_duration("default", "make") == 70.0)
