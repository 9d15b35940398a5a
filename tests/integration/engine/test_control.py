"""Halt, resume and signal: from outside and by the process, live, after a restart, and through another replica."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.iteration.runs import Phase
from scheduler_service.journal import ControlRequest, open_journal
from tests.integration.engine import control_processes
from tests.integration.engine.executor import CANCELLED, SUCCEEDED
from tests.integration.engine.world import World, world
from tests.support.eventually import eventually

STATE = journal_pb2.RunState.Name


@pytest.fixture
async def at(database_url: str) -> AsyncIterator[World]:
    control_processes.BUGS.clear()
    async with world(database_url, control_processes.ALL, grace_seconds=600.0) as made:
        yield made
    control_processes.BUGS.clear()


async def halt(at: World, run_id: str) -> pb.Run:
    return (await at.client.HaltRun(pb.HaltRunRequest(run_id=run_id, reason="look"), timeout=60)).run


async def resume(at: World, run_id: str) -> pb.Run:
    return (await at.client.ResumeRun(pb.ResumeRunRequest(run_id=run_id, reason="go on"), timeout=60)).run


async def signal(at: World, run_id: str, value: Any, name: str = "say") -> int:
    request = pb.SignalRunRequest(run_id=run_id, name=name, request_id=str(uuid.uuid4()))
    json_format.ParseDict(value, request.value)
    return int((await at.client.SignalRun(request, timeout=60)).seq)


async def parked_here(at: World, run_id: str) -> None:
    def look() -> bool:
        run = at.engine.loop.runs.get(run_id)
        return run is not None and run.phase is Phase.PARKED and run.execution is None

    await eventually(look, message=lambda: f"not parked: {at.engine.loop.runs.get(run_id)}")


@pytest.mark.invariant("I1", "I8")
async def test_a_halted_run_asks_for_nothing_until_it_is_resumed(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("steps", count=3)
    running = await executor.start_of("step/0")
    run = await halt(at, run_id)
    assert STATE(run.state) == "RUN_STATE_HALTED"
    assert [(w.cause, "look" in w.message) for w in run.waiting_on[:1]] == [(pb.WaitingOn.CAUSE_HALTED, True)]
    assert (await at.result(run_id)).state == run.state, "who waits for the run is told"
    await executor.settle(running, value=0)
    await parked_here(at, run_id)
    await eventually(lambda: at.rows(run_id, "EFFECT_RESOLVED", key="step/0"))
    assert len(executor.starts) == 1
    executor.answer = lambda start: SUCCEEDED | {"value": 1}
    assert STATE((await resume(at, run_id)).state) == "RUN_STATE_RUNNING"
    assert await at.value(run_id) == [0, 1, 1]
    halted, resumed = await at.row(run_id, "RUN_HALTED"), await at.row(run_id, "RUN_RESUMED")
    asked = await at.rows(run_id, "EFFECT_REQUESTED")
    assert not [row for row in asked if halted.seq < row.seq < resumed.seq]


@pytest.mark.invariant("I5", "I8")
async def test_halts_and_resumptions_that_race_the_iterations_lose_nothing(at: World) -> None:
    """Results, halts and resumptions come as they like; the run ends with every step done once and in order."""
    executor = at.executor()
    executor.answer = lambda start: SUCCEEDED | {"value": int(start.effect_key.removeprefix("step/"))}
    await executor.connect()
    run_ids = [await at.create("steps", count=12) for _ in range(4)]

    async def meddle(run_id: str) -> None:
        for _ in range(6):
            with contextlib.suppress(grpc.aio.AioRpcError):  # it has ended
                await halt(at, run_id)
                await resume(at, run_id)

    await asyncio.gather(*(meddle(run_id) for run_id in run_ids))
    for run_id in run_ids:
        assert await at.value(run_id) == list(range(12))
        assert not await at.rows(run_id, "PROCESS_RUNTIME_ERROR")
        assert len(await at.rows(run_id, "EFFECT_REQUESTED")) == 12


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_process_that_halts_is_resumed(at: World, restarted: bool) -> None:
    executor = at.executor()
    executor.answer = lambda start: SUCCEEDED | {"value": start.effect_key}
    await executor.connect()
    run_id = await at.create("pauses")
    run = await at.result(run_id)
    assert (STATE(run.state), run.waiting_on[0].cause) == ("RUN_STATE_HALTED", pb.WaitingOn.CAUSE_HALTED)
    assert "look at it" in run.waiting_on[0].message
    assert executor.starts == [], "what it asked for in the same step waits too"
    assert [w.cause for w in run.waiting_on if w.effect_key == "beside"] == [pb.WaitingOn.CAUSE_HALTED]
    if restarted:
        await at.restart(control_processes.ALL)
        executor.channel = at.channel
        await executor.connect()
    await resume(at, run_id)
    assert await at.value(run_id) == ["beside", "after"]


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_run_that_went_wrong_goes_on_with_the_code_of_today(at: World, restarted: bool) -> None:
    executor = at.executor()
    executor.answer = lambda start: SUCCEEDED | {"value": start.effect_key}
    await executor.connect()
    control_processes.BUGS.append(ValueError("a bug"))
    run_id = await at.create("fragile")
    assert STATE((await at.result(run_id)).state) == "RUN_STATE_PROCESS_ERROR"
    if restarted:
        await at.restart(control_processes.ALL)
        executor.channel = at.channel
        await executor.connect()
    await resume(at, run_id)
    await eventually(lambda: _count(at, run_id, "PROCESS_RUNTIME_ERROR", 2), message="it is parked again by its error")
    control_processes.BUGS.clear()
    assert not (await resume(at, run_id)).HasField("error")
    assert await at.value(run_id) == ["first", "second"]


async def _count(at: World, run_id: str, kind: str, number: int) -> bool:
    return len(await at.rows(run_id, kind)) == number


async def test_only_what_is_parked_can_be_resumed(at: World) -> None:
    run_id = await at.create("listens")
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await resume(at, run_id)
    assert (refusal.value.code(), "RUNNING" in str(refusal.value.details())) == (
        grpc.StatusCode.FAILED_PRECONDITION, True,
    )  # fmt: skip


@pytest.mark.invariant("I6")
async def test_signals_are_heard_in_order_and_by_a_halted_run_once_it_goes_on(at: World) -> None:
    run_id = await at.create("listens")
    await signal(at, run_id, {"n": 1})
    await signal(at, run_id, "not for it", name="other")
    await halt(at, run_id)
    await signal(at, run_id, [2])
    await parked_here(at, run_id)
    await resume(at, run_id)
    await signal(at, run_id, None)
    await signal(at, run_id, "stop")
    assert await at.value(run_id) == [{"n": 1}, [2], None]


@pytest.mark.invariant("I6")
async def test_a_cancel_ends_a_halted_run_without_its_process(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("tidies")
    work = await executor.start_of("work")
    await halt(at, run_id)
    await parked_here(at, run_id)
    await at.cancel(run_id)
    await eventually(lambda: executor.cancels)
    await executor.settle(work, **CANCELLED)
    await at.row(run_id, "RUN_CANCELLED")
    assert not await at.rows(run_id, "EFFECT_REQUESTED", key="cleanup")


async def test_a_cleanup_that_goes_wrong_is_parked_and_mended(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    control_processes.BUGS.append(ValueError("a bug in cleanup"))
    run_id = await at.create("tidies")
    work = await executor.start_of("work")
    await at.cancel(run_id)
    await eventually(lambda: executor.cancels)
    await executor.settle(work, **CANCELLED)
    await at.row(run_id, "PROCESS_RUNTIME_ERROR")
    control_processes.BUGS.clear()
    assert STATE((await resume(at, run_id)).state) == "RUN_STATE_CANCELLING"
    await executor.settle(await executor.start_of("cleanup"))
    await at.row(run_id, "RUN_CANCELLED")


async def test_time_goes_on_for_a_halted_run(at: World) -> None:
    """What came due meanwhile takes effect once it is resumed, and not before."""
    run_id = await at.create("ticks", seconds=0.3)
    await at.row(run_id, "TIMER_SET")
    await halt(at, run_id)
    await parked_here(at, run_id)
    passed = "SELECT clock_timestamp() > min(fire_at) + interval '0.3 s' FROM backburner.timers WHERE run_id = %s"
    await eventually(lambda: _first(at, passed, run_id), message="the timer has not come due")
    assert not await at.rows(run_id, "TIMER_FIRED", "EFFECT_RESOLVED")
    await resume(at, run_id)
    assert await at.value(run_id) == ["slept", "TIMEOUT_TOTAL"]
    assert len(await at.rows(run_id, "TIMER_FIRED")) == 1


async def _first(at: World, statement: str, *parameters: Any) -> bool:
    return bool((await at.query(statement, *parameters))[0][0])


@pytest.mark.invariant("I6")
async def test_another_replica_halts_and_resumes(at: World) -> None:
    """It writes the rows; the owner hears of them by its poll."""
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("steps", count=2)
    running = await executor.start_of("step/0")
    async with open_journal(at.dsn, scheduler_id="other") as other:
        request = ControlRequest(run_id=run_id, reason="", actor="client")
        assert (await other.controls.halt(request)).outcome == "ok"
        await parked_here(at, run_id)
        await executor.settle(running, value=0)
        executor.answer = lambda start: SUCCEEDED | {"value": 1}
        assert (await other.controls.resume(request)).outcome == "ok"
    assert await at.value(run_id) == [0, 1]


@pytest.mark.invariant("I5", "I6")
async def test_a_run_that_is_halted_and_resumed_while_nobody_owns_it(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("steps", count=2)
    running = await executor.start_of("step/0")
    await at.stop()
    async with open_journal(at.dsn, scheduler_id="other") as other:
        request = ControlRequest(run_id=run_id, reason="", actor="client")
        assert (await other.controls.halt(request)).outcome == "ok"
        await at.start(control_processes.ALL)
        await parked_here(at, run_id)
        executor.channel = at.channel
        await executor.connect([running])
        await executor.settle(running, value=0)
        assert (await other.controls.resume(request)).outcome == "ok"
        await executor.settle(await executor.start_of("step/1"), value=1)
    assert await at.value(run_id) == [0, 1]


@pytest.mark.invariant("I8")
async def test_an_evicted_run_is_halted_and_resumed(database_url: str) -> None:
    async with world(database_url, control_processes.ALL, cache_runs_max=0, poll_seconds=0.05) as at:
        executor = at.executor()
        await executor.connect()
        run_id = await at.create("steps", count=2)
        running = await executor.start_of("step/0")
        await eventually(lambda: (run := at.engine.loop.runs.get(run_id)) and run.execution is None)
        await halt(at, run_id)
        await parked_here(at, run_id)
        await executor.settle(running, value=0)
        await resume(at, run_id)
        await executor.settle(await executor.start_of("step/1"), value=1)
        assert await at.value(run_id) == [0, 1]
