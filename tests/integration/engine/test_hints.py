"""What one replica knows of and another one has to do: with hints it is done at once, without them the polls find it.

With hints, a poll is an hour away.
"""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import peer_service_pb2 as peer_pb
from backburner.scheduler.v1 import peer_service_pb2_grpc as peer_grpc
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.integration.engine.executor import FAILED, SUCCEEDED
from tests.integration.engine.pairs import HINTED, asked_for_all, run_of, start_of, two
from tests.integration.engine.world import World
from tests.support.eventually import eventually

hinted = pytest.mark.parametrize("told", [True, False], ids=["hints", "polls"])


@hinted
async def test_a_retry_comes_due_where_no_executor_is_left(database_url: str, told: bool) -> None:
    """The replica that heard of the failure has lost its executor meanwhile; the other one has had one all along."""
    async with two(database_url, **HINTED[told], grace_seconds=600.0) as (first, second):
        mine, others = first.executor("mine"), second.executor("others")
        await mine.connect()
        await others.connect()
        run_id = await run_of(first, first, "one", attempts=2, pause=1.5)
        start = await start_of(mine, run_id, "it")
        await mine.settle(start, **FAILED)
        await mine.hang_up()
        await others.settle(await start_of(others, run_id, "it", attempt=2), value="done")
        assert await first.value(run_id, timeout_s=40) == "done"


@hinted
async def test_what_slept_starts_on_the_executor_of_the_other(database_url: str, told: bool) -> None:
    async with two(database_url, **HINTED[told]) as (first, second):
        await second.executor(answer=lambda start: SUCCEEDED).connect()
        run_id = await run_of(first, first, "later", seconds=1.5)
        assert await first.value(run_id, timeout_s=40) is None


async def hold(at: World, seconds: float | None = None) -> op.Hold:
    """Holds everything, for good or for so long."""
    asked = op.Hold()
    if seconds is not None:
        asked.until.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return (await at.operator.SetHold(op.SetHoldRequest(hold=asked))).hold


@hinted
@pytest.mark.parametrize("seconds", [None, 4.0], ids=["released", "ended"])
async def test_a_hold_of_one_replica_is_gone_for_the_other(
    database_url: str, told: bool, seconds: float | None
) -> None:
    async with two(database_url, **HINTED[told]) as (first, second):
        set_here = await hold(first, seconds)
        run_id = await run_of(second, second, "one")
        await second.row(run_id, "EFFECT_REQUESTED")
        await second.executor(answer=lambda start: SUCCEEDED).connect()
        if seconds is None:
            if told:
                await asked_for_all(second, "x")
            released = op.SetHoldRequest(hold=op.Hold(hold_id=set_here.hold_id), release=True)
            await first.operator.SetHold(released)
        assert await second.value(run_id, timeout_s=40) is None


@hinted
async def test_a_drain_is_heard_of_by_the_holder_of_the_session(database_url: str, told: bool) -> None:
    async with two(database_url, **HINTED[told]) as (first, second):
        executor = second.executor(answer=lambda start: SUCCEEDED)
        await executor.connect()
        await asked_for_all(second, "x")
        session = second.engine.sessions.get("x")
        assert session is not None
        order = op.DrainExecutorRequest(executor_id="x", drain=True)
        await first.operator.DrainExecutor(order)
        await eventually(lambda: session.ordered_drain, timeout=40, message="the holder does not know of the drain")
        run_id = await run_of(second, second, "one")
        await second.row(run_id, "EFFECT_REQUESTED")
        order.drain = False
        await first.operator.DrainExecutor(order)
        assert await second.value(run_id, timeout_s=40) is None


@hinted
async def test_what_a_dead_executor_had_is_lost_and_tried_again_elsewhere(database_url: str, told: bool) -> None:
    """The order is given here; the run and the dead executor are the other one's, and the next attempt is ours."""
    async with two(database_url, **HINTED[told], grace_seconds=600.0) as (first, second):
        dead, heir = second.executor("dead"), first.executor("heir")
        await dead.connect()
        await heir.connect()
        run_id = await run_of(second, second, "one", attempts=2, pause=1.0)
        start = await start_of(dead, run_id, "it")
        await dead.started(start)
        dead.beat_s = 0
        await first.operator.ExpireExecutor(
            op.ExpireExecutorRequest(executor_id="dead", incarnation=dead.incarnation, reason="burnt")
        )
        await second.row(run_id, "EFFECT_ATTEMPT_LOST", timeout_s=40)
        await eventually(dead.stream.ended.is_set, timeout=40, message="its session does not end")
        await heir.settle(await start_of(heir, run_id, "it", attempt=2), value="done")
        assert await second.value(run_id, timeout_s=40) == "done"


@hinted
async def test_an_effect_is_settled_by_hand_through_the_other(database_url: str, told: bool) -> None:
    async with two(database_url, **HINTED[told]) as (first, second):
        executor = second.executor()
        await executor.connect()
        run_id = await run_of(second, second, "one")
        await start_of(executor, run_id, "it")
        request = op.SettleEffectRequest(effect=pb.EffectName(run_id=run_id, key="it"))
        request.succeeded.value.string_value = "by hand"
        await first.operator.SettleEffect(request, timeout=40)
        assert await second.value(run_id, timeout_s=40) == "by hand"


@pytest.mark.invariant("I11")
async def test_a_storm_of_orders_is_looked_at_once_at_a_time(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hint waits for the looks, and a look that has not begun stands for all that was told before."""
    await at.restart(poll_seconds=3600.0)
    journal, looks, gate = at.engine.journal, 0, asyncio.Event()
    look = journal.executor_orders

    async def slow(executor_ids: list[str]) -> object:
        nonlocal looks
        looks += 1
        await gate.wait()
        return await look(executor_ids)

    monkeypatch.setattr(type(journal), "executor_orders", lambda self, executor_ids: slow(executor_ids))
    stub = peer_grpc.PeerServiceStub(at.channel)
    hint = peer_pb.HintRequest(scheduler_id="other", orders_given=True)
    await asyncio.gather(*(stub.Hint(hint, timeout=40) for _ in range(200)))
    waiting = [task for task in asyncio.all_tasks() if task.get_name() == "orders"]
    assert len(waiting) <= 2, "one looks, and one stands for all that was told since"
    gate.set()
    await eventually(lambda: looks >= 2, timeout=40, message="what was told during the look is not looked at")
