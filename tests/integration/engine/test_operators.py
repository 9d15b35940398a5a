"""Executors drained and declared dead, effects settled by hand: durable, fenced, audited, on whichever replica."""

from typing import Any

import grpc
import pytest
from google.protobuf import json_format, struct_pb2

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api import settlements
from tests.integration.engine.executor import SUCCEEDED, ScriptedExecutor
from tests.integration.engine.world import World
from tests.support.eventually import eventually

NOBODYS = "UPDATE backburner.run_heads SET shard = 99 WHERE run_id = %s RETURNING 1"
OWNED = "UPDATE backburner.run_heads SET shard = backburner.shard_of(run_id) WHERE run_id = %s RETURNING 1"


async def expire(at: World, executor: ScriptedExecutor) -> int:
    request = op.ExpireExecutorRequest(
        executor_id=executor.executor_id, incarnation=executor.incarnation, reason="burnt", actor="ada"
    )
    return (await at.operator.ExpireExecutor(request)).attempts_lost


async def settle(at: World, run_id: str, *, value: Any = None, fail: str = "", attempt: int | None = None) -> pb.Effect:
    request = op.SettleEffectRequest(
        effect=pb.EffectName(run_id=run_id, key="it"), attempt=attempt, reason="INC-7", actor="ada"
    )
    if fail:
        request.failed.message = fail
    else:
        request.succeeded.value.CopyFrom(json_format.ParseDict(value, struct_pb2.Value()))
    return (await at.operator.SettleEffect(request, timeout=30)).effect


@pytest.mark.invariant("I2")
async def test_a_dead_executor_is_not_waited_for_and_what_it_says_later_is_evidence(at: World) -> None:
    await at.restart(grace_seconds=600.0)
    dead = at.executor("dead")
    await dead.connect()
    run_id = await at.create("one", attempts=2)
    start = await dead.start_of("it")
    await dead.started(start)
    await dead.hang_up()
    other = World(at.dsn)  # whoever is asked
    await other.start()
    try:
        assert await expire(other, dead) == 1
        await expire(other, dead)  # may be repeated
    finally:
        await other.close()
    lost = await at.row(run_id, "EFFECT_ATTEMPT_LOST")
    assert lost.data["message"] == "its executor dead was declared dead by ada: burnt"
    assert lost.writer.startswith("scheduler/")
    assert await dead.settle(start, value=1) == "stale"
    heir = at.executor("heir", answer=lambda start: SUCCEEDED)
    await heir.connect()
    assert await at.value(run_id) is None
    [evidence] = await at.rows(run_id, "EFFECT_SUPERSEDED")
    assert evidence.attempt == 1
    entries = (await at.operator.ListAudit(op.ListAuditRequest(subject="dead"))).entries
    assert [(e.action, e.actor, e.detail["attempts"]) for e in entries] == [("EXPIRE_EXECUTOR", "ada", 1)]


@pytest.mark.invariant("I3")
async def test_at_most_once_holds_for_an_executor_that_is_declared_dead_and_lives(at: World) -> None:
    """Its session ends; when it is back its attempt is stale, is not taken up again, and it gets new work."""
    await at.restart(grace_seconds=600.0)
    executor = at.executor()
    stream = await executor.connect()
    run_id = await at.create("one")
    start = await executor.start_of("it")
    await expire(at, executor)
    await stream.ended.wait()
    assert "declared the executor dead" in stream.moved
    assert await at.value(run_id) == ["EXECUTOR_LOST", 1]
    again = await executor.connect([start])
    assert [(ref.effect_id, ref.attempt) for ref in again.welcome.stale] == [(start.effect_id, 1)]
    executor.answer = lambda start: SUCCEEDED
    await at.value(await at.create("one"))
    assert len([s for s in executor.starts if s.run_id == run_id]) == 1


async def test_an_attempt_that_comes_back_before_its_loss_is_declared_is_not_taken_up(at: World) -> None:
    """The owner is away while the executor is declared dead, and back: it is lost all the same."""
    await at.restart(grace_seconds=600.0)
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("one")
    start = await executor.start_of("it")
    await executor.hang_up()
    await at.query(NOBODYS, run_id)
    assert await expire(at, executor) == 1
    again = await executor.connect([start])
    assert [ref.effect_id for ref in again.welcome.stale] == [start.effect_id]
    assert await at.rows(run_id, "EFFECT_ATTEMPT_LOST") == []
    await at.query(OWNED, run_id)
    assert await at.value(run_id) == ["EXECUTOR_LOST", 1]


async def test_another_incarnation_is_not_hit(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    request = op.ExpireExecutorRequest(executor_id="x", incarnation="older")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await at.operator.ExpireExecutor(request)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    executor.answer = lambda start: SUCCEEDED
    await at.value(await at.create("one"))


async def test_a_drained_executor_takes_nothing_until_it_is_undrained_whatever_it_thinks(at: World) -> None:
    executor = at.executor(answer=lambda start: SUCCEEDED)
    await executor.connect()
    other = World(at.dsn)
    await other.start()
    try:
        order = op.DrainExecutorRequest(executor_id="x", drain=True, reason="kernel", actor="ada")
        assert (await other.operator.DrainExecutor(order)).executor.state == op.Executor.STATE_DRAINING
        run_id = await at.create("one")
        await at.row(run_id, "EFFECT_REQUESTED")
        await executor.hang_up()
        await executor.connect()  # it is no other one after a restart

        async def told() -> bool:
            run = (await at.client.GetRun(pb.GetRunRequest(run_id=run_id))).run
            return any("draining" in waiting.message for waiting in run.waiting_on)

        await eventually(told)
        assert executor.starts == []
        order.drain = False
        assert (await other.operator.DrainExecutor(order)).executor.state == op.Executor.STATE_CONNECTED
        await at.value(run_id)
    finally:
        await other.close()


@pytest.mark.invariant("I2")
async def test_a_stuck_effect_is_settled_by_hand_and_its_late_result_is_evidence(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("one", attempts=5)
    start = await executor.start_of("it")
    await executor.started(start)
    for _ in range(2):  # may be repeated
        effect = await settle(at, run_id, value={"by": "hand"}, attempt=1)
        assert effect.state == journal_pb2.EFFECT_STATE_SUCCEEDED
    assert await at.value(run_id) == {"by": "hand"}
    rows = await at.rows(run_id, "EFFECT_ATTEMPT_LOST", "EFFECT_RESOLVED")
    assert [row.type for row in rows] == ["EFFECT_ATTEMPT_LOST", "EFFECT_RESOLVED"]
    assert rows[0].recorded_at == rows[1].recorded_at, "in one commit"
    assert (rows[0].data["message"], rows[1].data["death"]) == ("settled by hand by ada: INC-7", "DEATH_UNPROVEN")
    await eventually(lambda: executor.cancels, message="its executor need not go on")
    assert await executor.settle(start, value="late") == "stale"
    assert len(await at.rows(run_id, "EFFECT_SUPERSEDED")) == 1


async def test_what_waits_in_the_queue_is_settled_too_and_never_starts(at: World) -> None:
    run_id = await at.create("one")
    await at.row(run_id, "EFFECT_REQUESTED")
    effect = await settle(at, run_id, fail="not needed", attempt=0)
    assert effect.state == journal_pb2.EFFECT_STATE_FAILED
    executor = at.executor()
    await executor.connect()
    assert await at.value(run_id) == ["REJECTED_BY_RESOLVER", 0]
    assert executor.starts == []


async def test_an_order_stands_until_there_is_an_owner(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settlements, "_WAIT_SECONDS", 0.5)
    run_id = await at.create("one")
    await at.row(run_id, "EFFECT_REQUESTED")
    await at.query(NOBODYS, run_id)
    assert not (await settle(at, run_id, value=1)).HasField("settle_time")
    await at.query(OWNED, run_id)
    assert await at.value(run_id) == 1


async def test_only_what_an_executor_has_and_as_it_was_seen(at: World) -> None:
    run_id = await at.create("asks", count=1)
    await at.row(run_id, "EFFECT_REQUESTED")
    request = op.SettleEffectRequest(effect=pb.EffectName(run_id=run_id, key="ask/0"))
    request.failed.message = "no"
    with pytest.raises(grpc.aio.AioRpcError, match="resolve an external one"):
        await at.operator.SettleEffect(request)
    run_id = await at.create("one")
    await at.row(run_id, "EFFECT_REQUESTED")
    with pytest.raises(grpc.aio.AioRpcError, match="at attempt 0, not 3"):
        await settle(at, run_id, fail="no", attempt=3)


async def test_a_diagnosis_over_the_wire(at: World) -> None:
    run_id = await at.create("raises")
    executor = at.executor(answer=lambda start: SUCCEEDED)
    await executor.connect()
    await at.result(run_id)
    found = {finding.code: finding for finding in (await at.operator.Diagnose(op.DiagnoseRequest())).findings}
    assert list(found["PROCESS_ERRORS"].subjects) == [run_id]
    assert "SHARDS_UNOWNED" not in found
