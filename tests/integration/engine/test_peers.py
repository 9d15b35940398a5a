"""Replicas tell each other where to look: with hints everything acts at once, without them the polls find it all.

With a poll of an hour, whatever happens in time was told of.
"""

from typing import Any

import pytest

from backburner.scheduler.v1 import dispatch_service_pb2 as dispatch_pb
from backburner.scheduler.v1 import peer_service_pb2 as peer_pb
from backburner.scheduler.v1 import peer_service_pb2_grpc as peer_grpc
from tests.integration.engine.executor import CANCELLED, SUCCEEDED
from tests.integration.engine.pairs import NEVER, run_of, start_of, two
from tests.integration.engine.world import World
from tests.support.eventually import eventually


@pytest.mark.invariant("I6")
async def test_an_effect_of_one_replicas_run_runs_on_the_executor_of_the_other(database_url: str) -> None:
    async with two(database_url, poll_seconds=NEVER) as (first, second):
        executor = second.executor()
        await executor.connect()
        run_id = await run_of(first, second, "steps", count=2)
        for step in range(2):
            start = await start_of(executor, run_id, f"step/{step}")
            assert await executor.settle(start, value=step) == "ok"
        assert await second.value(run_id) == [0, 1]


@pytest.mark.invariant("I6")
async def test_a_cancel_through_one_replica_reaches_the_executor_of_the_other(database_url: str) -> None:
    async with two(database_url, poll_seconds=NEVER) as (first, second):
        executor = second.executor()
        await executor.connect()
        run_id = await run_of(first, first, "one")
        start = await start_of(executor, run_id, "it")
        await first.cancel(run_id)
        cancel = await eventually(lambda: [c for c in executor.cancels if c.ref.effect_id == start.effect_id])
        assert cancel[0].ref.attempt == 1
        await executor.settle(start, **CANCELLED)
        await first.row(run_id, "RUN_CANCELLED")


@pytest.mark.invariant("I13")
@pytest.mark.parametrize("hinted", [True, False])
async def test_what_the_executor_of_another_replica_refuses_is_queued_again(database_url: str, hinted: bool) -> None:
    settings: dict[str, Any] = {"poll_seconds": 0.5} if hinted else {"poll_seconds": 0.1, "advertise": "127.0.0.1:1"}
    async with two(database_url, **settings) as (first, second):
        executor = second.executor()
        await executor.connect()
        run_id = await run_of(first, first, "one")
        start = await start_of(executor, run_id, "it")
        await executor.reject(start, dispatch_pb.RejectedAttempt.REASON_NO_SLOT)
        lost = await first.row(run_id, "EFFECT_ATTEMPT_LOST")
        assert lost.writer == f"scheduler/{first.engine.scheduler_id}"
        again = await eventually(lambda: [s for s in executor.starts if s.run_id == run_id and s.attempt == 2])
        assert await executor.settle(again[0], value="done") == "ok"
        assert await first.value(run_id) == "done"


@pytest.mark.invariant("I6")
async def test_with_every_hint_lost_everything_arrives_all_the_same(database_url: str) -> None:
    async with two(database_url, poll_seconds=0.1, advertise="127.0.0.1:1") as (first, second):
        executor = second.executor()
        await executor.connect()
        executor.answer = lambda start: SUCCEEDED | {"value": start.effect_key}
        run_id = await run_of(first, second, "steps", count=2)
        assert await second.value(run_id) == ["step/0", "step/1"]
        executor.answer = lambda start: None
        run_id = await run_of(first, first, "one")
        start = await start_of(executor, run_id, "it")
        await first.cancel(run_id)
        await eventually(lambda: [c for c in executor.cancels if c.ref.effect_id == start.effect_id])


@pytest.mark.invariant("I11")
async def test_a_hint_that_makes_no_sense_does_no_harm(at: World) -> None:
    stub = peer_grpc.PeerServiceStub(at.channel)
    nonsense = ["", "x", "ffffffff-ffff-ffff-ffff-ffffffffffff", "FFFFFFFF-ffff-ffff-ffff-ffffffffffff"] * 3_000
    await stub.Hint(
        peer_pb.HintRequest(
            scheduler_id="nobody",
            moved_run_ids=nonsense,
            stopped_run_ids=nonsense,
            created_run_ids=nonsense,
            watched_run_ids=nonsense,
            cancelled_executor_ids=nonsense,
            queued=[peer_pb.QueuedWork(namespace="n", pool="p")] * 6_000,
            shards_moved=True,
            attempts_missing=True,
            orders_given=True,
            queue_moved=True,
        ),
        timeout=60,
    )
    assert await at.value(await at.create("sleeper", seconds=0)) == "woke"
