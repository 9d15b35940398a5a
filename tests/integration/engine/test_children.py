"""Child runs and continue_as_new on the real engine: results, errors, cancels both ways, restarts in the middle."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.journal import Append, AppendOutcome, JournalUnavailable
from scheduler_service.journal.verify import verify
from tests.integration.engine import child_processes
from tests.integration.engine.executor import CANCELLED, SUCCEEDED
from tests.integration.engine.world import World, world
from tests.support.eventually import eventually

STATE = journal_pb2.RunState


@pytest.fixture
async def at(database_url: str) -> AsyncIterator[World]:
    async with world(database_url, child_processes.ALL, grace_seconds=600.0) as made:
        yield made
    broken = [violation async for run in verify(database_url) for violation in run.violations]
    assert not broken


async def child_of(at: World, run_id: str, key: str = "kid") -> str:
    started = await at.row(run_id, "CHILD_RUN_STARTED", key)
    return str(started.data["child_run_id"])


async def run_of(at: World, run_id: str) -> pb.Run:
    return (await at.client.GetRun(pb.GetRunRequest(run_id=run_id), timeout=60)).run


async def effect_of(at: World, run_id: str, key: str = "kid") -> pb.Effect:
    name = pb.EffectName(run_id=run_id, key=key)
    return (await at.client.GetEffect(pb.GetEffectRequest(effect=name), timeout=60)).effect


async def signal(at: World, run_id: str, value: Any, name: str = "tell") -> None:
    request = pb.SignalRunRequest(run_id=run_id, name=name, request_id=str(uuid.uuid4()))
    json_format.ParseDict(value, request.value)
    await at.client.SignalRun(request, timeout=60)


async def test_children_run_beside_each_other_and_give_their_results(at: World) -> None:
    executor = at.executor(answer=lambda start: SUCCEEDED | {"value": "ok"})
    await executor.connect()
    run_id = await at.create("family", names=["a", "b", "c"])
    assert await at.value(run_id) == ["a: ok", "b: ok", "c: ok"]
    kid = await run_of(at, await child_of(at, run_id, "child/b"))
    assert (kid.parent_run_id, kid.process, kid.state) == (run_id, "child", STATE.RUN_STATE_COMPLETED)
    effect = await effect_of(at, run_id, "child/b")
    assert effect.child_run_id == kid.run_id


async def test_a_failed_child_raises_with_its_reason(at: World) -> None:
    executor = at.executor(answer=lambda start: SUCCEEDED)
    await executor.connect()
    run_id = await at.create("one-child", fail="too big")
    kid = await child_of(at, run_id)
    assert await at.value(run_id) == ["failed", "CHILD_RUN_FAILED", f"run {kid} failed: too big"]


@pytest.mark.parametrize(
    ("process", "given", "message"),
    [
        ("nobody", {"x": 1}, "no process 'nobody' is loaded"),
        ("child", {"item": {"name": 7}}, "input.item.name: "),
        ("child", {"item": {"name": "a", "size": 1}, "other": 1}, "input.other: "),
        ("child", {"item": {"name": "a", "size": 1, "more": 1}}, "input.item.more: unknown; Item has name, size"),
    ],
)
async def test_a_child_that_cannot_be_fails_at_once_and_names_the_field(
    at: World, process: str, given: dict[str, Any], message: str
) -> None:
    run_id = await at.create("one-child", of=process, given=given)
    said = await at.value(run_id)
    assert said[:2] == ["failed", "INVALID_WORK"]
    assert message in said[2]
    assert not await at.rows(run_id, "CHILD_RUN_STARTED")


async def test_a_run_with_an_unknown_field_deep_in_its_input_is_refused_before_it_exists(at: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=r"input\.item\.more: unknown; Item has name, size") as refused:
        await at.create("child", item={"name": "a", "size": 1, "more": 1})
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not await at.query("SELECT 1 FROM backburner.runs")


@pytest.mark.invariant("I6")
async def test_the_cancel_of_a_run_reaches_its_grandchildren(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("grandparent")
    start = await executor.start_of("work")
    await at.cancel(run_id)
    await eventually(lambda: executor.cancels, message="the grandchild's effect was not cancelled")
    await executor.settle(start, **CANCELLED)
    assert (await at.result(run_id)).state == STATE.RUN_STATE_CANCELLED
    middle = await child_of(at, run_id, "middle")
    assert (await run_of(at, middle)).state == STATE.RUN_STATE_CANCELLED
    assert (await run_of(at, await child_of(at, middle))).state == STATE.RUN_STATE_CANCELLED


async def test_a_child_that_somebody_cancels_is_an_ordinary_error_to_its_parent(at: World) -> None:
    executor = at.executor(answer=lambda start: None)
    await executor.connect()
    run_id = await at.create("one-child")
    kid = await child_of(at, run_id)
    start = await executor.start_of("work")
    await at.cancel(kid)
    await executor.settle(start, **CANCELLED)
    assert await at.value(run_id) == ["cancelled", "CANCELLED_BY_USER", "CANCELLED_BY_USER"]


async def test_giving_a_foreground_child_up_waits_for_its_death(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("impatient")
    start = await executor.start_of("work")
    await eventually(lambda: executor.cancels, message="no cancel")
    assert not await at.rows(run_id, "RUN_COMPLETED")
    await executor.settle(start, **CANCELLED)
    assert await at.value(run_id) == "gave up"
    assert (await at.rows(run_id, "EFFECT_CANCELLED"))[0].data["reason"] == "EFFECT_REASON_AWAIT_CANCELLED"


async def test_a_child_has_a_deadline_like_any_effect(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("bounded", seconds=0.3)
    start = await executor.start_of("work")
    await eventually(lambda: executor.cancels, message="no cancel")
    await executor.settle(start, **CANCELLED)
    assert await at.value(run_id) == ["timed out", "TIMEOUT_TOTAL"]


@pytest.mark.parametrize(("how", "ends"), [("wait", "COMPLETED"), ("cancel", "CANCELLED"), ("detach", "RUNNING")])
async def test_on_run_end_is_for_children_too(at: World, how: str, ends: str) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("leaves", how=how)
    kid = await child_of(at, run_id)
    work = await executor.start_of("work")
    await executor.settle(await executor.start_of("first"))
    if how == "wait":
        await at.row(run_id, "RUN_CLOSING")
        await executor.settle(work, "x")
    elif how == "cancel":
        await eventually(lambda: executor.cancels, message="no cancel")
        await executor.settle(work, **CANCELLED)
    assert await at.value(run_id) == "left"
    assert (await run_of(at, kid)).state == STATE.Value(f"RUN_STATE_{ends}")
    if how == "detach":
        await executor.settle(work, "x")
        await at.row(run_id, "EFFECT_RESOLVED", "kid")


@pytest.mark.invariant("I6", "I8")
async def test_parent_and_child_go_on_after_a_restart(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("family", names=["a", "b"])
    first, second = await executor.start_of("work"), None
    await eventually(lambda: len(executor.starts) == 2, message="no second start")
    [second] = [start for start in executor.starts if start.run_id != first.run_id]
    await at.restart(child_processes.ALL)
    executor.channel = at.channel
    await executor.connect(executor.starts)
    await executor.settle(second, "late")
    await executor.settle(first, "late")
    assert await at.value(run_id) == ["a: late", "b: late"]
    assert len(executor.starts) == 2, "nothing is started again"


@pytest.mark.invariant("I6", "I14")
@pytest.mark.parametrize("process", ["one-child", "counting-parent"])
@pytest.mark.parametrize("repeated", [True, False])
async def test_a_run_begins_whose_creation_was_committed_and_not_answered(
    at: World, monkeypatch: pytest.MonkeyPatch, process: str, repeated: bool
) -> None:
    """It has its owner's epoch: nobody else would ever adopt it."""
    append, lost = at.engine.journal.append, set[str]()

    async def loses_its_answer(item: Append) -> AppendOutcome:
        outcome = await append(item)
        makes = [row.get("x", {}).get("child", {}).get("run_id") or row["data"].get("new_run_id") for row in item.rows]
        makes = [run_id for run_id in makes if run_id]
        if outcome.outcome != "ok" or not makes:
            return outcome
        lost.update(makes)
        if repeated:
            return await append(item)
        raise JournalUnavailable("the connection is gone")

    monkeypatch.setattr(at.engine.journal, "append", loses_its_answer)
    executor = at.executor(answer=lambda start: SUCCEEDED | {"value": "ok"})
    await executor.connect()
    run_id = await at.create(process)
    kid = await child_of(at, run_id)
    if process == "counting-parent":
        for n in range(3):
            await signal(at, kid, n)
            await at.row(kid, "SIGNAL_RECEIVED")
            if n < 2:
                kid = str((await at.row(kid, "RUN_CONTINUED")).data["new_run_id"])
    assert await at.value(run_id) == ([0, 1, 2] if process == "counting-parent" else "a: ok")
    assert len(lost) == (3 if process == "counting-parent" else 1)


async def test_a_parked_child_is_said_to_be_parked(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("one-child")
    kid = await child_of(at, run_id)
    await at.client.HaltRun(pb.HaltRunRequest(run_id=kid, reason="look"), timeout=60)
    effect = await effect_of(at, run_id)
    assert effect.waiting_on.message == f"child run {kid} is halted: ResumeRun lets it go on"
    await at.cancel(kid)
    await executor.settle(await executor.start_of("work"), **CANCELLED)
    assert (await at.value(run_id))[0] == "cancelled"


@pytest.mark.invariant("I6", "I8")
async def test_a_run_goes_on_as_new_ones_and_its_parent_waits_for_the_last(at: World) -> None:
    run_id = await at.create("counting-parent")
    kid = await child_of(at, run_id)
    await signal(at, kid, "one")
    await at.row(kid, "RUN_CONTINUED")
    second = (await run_of(at, kid)).next_run_id
    await signal(at, second, "two")
    await at.row(second, "RUN_CONTINUED")
    third = (await run_of(at, second)).next_run_id
    with pytest.raises(grpc.aio.AioRpcError, match=f"has ended as CONTINUED: it goes on as run {third}"):
        await signal(at, second, "late")
    await signal(at, third, "three")
    assert await at.value(run_id) == ["one", "two", "three"]
    chain = [kid, second, third]
    states = [(await run_of(at, one)).state for one in chain]
    assert states == [STATE.RUN_STATE_CONTINUED, STATE.RUN_STATE_CONTINUED, STATE.RUN_STATE_COMPLETED]
    assert (await run_of(at, chain[2])).previous_run_id == second
    effect = await effect_of(at, run_id)
    assert effect.child_run_id == chain[2]


@pytest.mark.invariant("I6", "I11")
async def test_untaken_signals_of_any_size_go_on_with_the_run(at: World) -> None:
    """More of them than one message could carry: the row that ends the old run names them by seq."""
    run_id = await at.create("carries", left=80)
    for n in range(80):
        await signal(at, run_id, "x" * 65_000 + str(n), name="bulk")
    await signal(at, run_id, None, name="go")
    await at.row(run_id, "RUN_CONTINUED")
    page = await at.client.ReadJournal(pb.ReadJournalRequest(run_id=run_id, after_seq=81, page_size=100), timeout=60)
    assert len(page.events[-1].run_continued.signal_seqs) == 80
    assert await at.value((await run_of(at, run_id)).next_run_id) == 80


async def test_a_key_follows_the_chain(at: World) -> None:
    request = pb.CreateRunRequest(process="counts", key="eternal")
    json_format.ParseDict({"left": 1, "heard": []}, request.input)
    first = (await at.client.CreateRun(request, timeout=60)).run.run_id
    await signal(at, first, 1)
    await at.row(first, "RUN_CONTINUED")
    again = await at.client.CreateRun(request, timeout=60)
    assert not again.created
    assert again.run.previous_run_id == first
    by_key = (await at.client.GetRun(pb.GetRunRequest(key="eternal"), timeout=60)).run
    assert by_key.run_id == again.run.run_id
    await signal(at, by_key.run_id, 2)
    assert await at.value(by_key.run_id) == [1, 2]


async def test_going_on_with_an_open_foreground_effect_is_refused_at_the_line(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("too-early")
    run = await at.result(run_id)
    assert run.state == STATE.RUN_STATE_PROCESS_ERROR
    assert "continue_as_new: foreground effects are open; await or cancel them first" in run.error.traceback
