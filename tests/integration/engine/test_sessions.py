"""Sessions and attempts: what a hello, a refusal, an absence and a return each mean for the attempts in question."""

import asyncio
import gc
import logging
import time
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from scheduler_service.api import dispatch as servicer
from scheduler_service.dispatch.sessions import Session
from scheduler_service.journal import JournalUnavailable, OpenAttempt
from tests.integration.engine.executor import CANCELLED, SUCCEEDED, ScriptedExecutor, Stream
from tests.integration.engine.world import World
from tests.support.eventually import eventually

REJECTED = pb.RejectedAttempt


async def refusal(stream: Stream) -> tuple[grpc.StatusCode, set[str], str]:
    """Code, field paths and reason of a session that was refused."""
    await asyncio.wait_for(stream.ended.wait(), 30)
    assert stream.error is not None
    status = rpc_status.from_call(stream.error)  # type: ignore[arg-type]
    assert status is not None
    bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
    for detail in status.details:
        detail.Unpack(bad)
        detail.Unpack(info)
    return stream.error.code(), {violation.field for violation in bad.field_violations}, info.reason


async def held(
    executor: ScriptedExecutor, at: World, process: str = "one", **given: Any
) -> tuple[str, pb.StartAttempt]:
    """A run whose effect runs on the executor."""
    await executor.connect()
    run_id = await at.create(process, **given)
    start = await executor.start_of("it")
    await executor.started(start)
    return run_id, start


@pytest.mark.invariant("I1", "I3", "I13")
async def test_a_start_that_never_arrived_is_queued_again_and_not_counted(
    at: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session is gone between the commit and the sending; max_attempts=1 must not fail what never ran."""
    executor = at.executor()
    await executor.connect()
    monkeypatch.setattr(Session, "send_start", lambda session, ref, start: None)
    run_id = await at.create("one")
    await at.row(run_id, "EFFECT_DISPATCHED", "it")
    monkeypatch.undo()
    await executor.hang_up()
    await executor.connect()
    again = await executor.start_of("it", attempt=2)
    assert [start.attempt for start in executor.starts] == [2]
    await executor.settle(again, value="done")
    assert await at.value(run_id) == "done"
    lost = await at.row(run_id, "EFFECT_ATTEMPT_LOST", "it")
    assert lost.data["never_started"] is True


@pytest.mark.invariant("I3")
async def test_what_is_dispatched_while_a_hello_is_reconciled_is_not_taken_for_lost(at: World) -> None:
    """It is in no report yet, for it was dispatched after the report: to declare it lost would start it twice."""
    executor = at.executor()
    await executor.connect()
    await executor.hang_up()
    entered, go_on = asyncio.Event(), asyncio.Event()
    open_attempts = at.engine.journal.open_attempts

    async def slow(executor_id: str) -> list[OpenAttempt]:
        entered.set()
        await go_on.wait()
        return await open_attempts(executor_id)

    at.engine.journal.open_attempts = slow  # type: ignore[method-assign]
    connecting = asyncio.create_task(executor.connect())
    await entered.wait()
    run_ids = [await at.create("one") for _ in range(3)]
    for run_id in run_ids:
        await at.row(run_id, "EFFECT_REQUESTED", "it")
    executor.answer = lambda start: SUCCEEDED
    go_on.set()
    await connecting
    for run_id in run_ids:
        await at.value(run_id)
        assert not await at.rows(run_id, "EFFECT_ATTEMPT_LOST")
    assert sorted(start.run_id for start in executor.starts) == sorted(run_ids)


@pytest.mark.invariant("I3")
@pytest.mark.parametrize("reason", [REJECTED.REASON_NO_SLOT, REJECTED.REASON_NO_SPOOL, REJECTED.REASON_DRAINING])
async def test_a_rejected_attempt_is_queued_again_and_not_counted(
    at: World, reason: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler_service.iteration.executor_news._FULL_SECONDS", 0.0)
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("one")
    await executor.reject(await executor.start_of("it"), reason)  # type: ignore[arg-type]
    await executor.settle(await executor.start_of("it", attempt=2), value=2)
    assert await at.value(run_id) == 2
    lost = await at.row(run_id, "EFFECT_ATTEMPT_LOST", "it")
    assert (lost.data["reason"], lost.data["never_started"]) == ("EFFECT_REASON_REJECTED", True)


async def test_what_an_executor_has_no_room_for_goes_elsewhere(at: World) -> None:
    """Even though the full one has more free slots, and is asked no more until it may have room again."""
    full, other = at.executor("full"), at.executor("other", pools={"functions": (1, 1)})
    await full.connect()
    run_id = await at.create("one")
    start = await full.start_of("it")
    await other.connect()
    await full.reject(start, REJECTED.REASON_NO_SPOOL)
    await other.settle(await other.start_of("it", attempt=2), value="elsewhere")
    assert await at.value(run_id) == "elsewhere"
    session = at.engine.sessions.get("full")
    assert session is not None
    assert not session.takes
    assert len(full.starts) == 1


@pytest.mark.invariant("I3")
async def test_a_refused_duplicate_leaves_the_attempt_and_its_slot_alone(at: World) -> None:
    executor = at.executor(pools={"functions": (1, 1)})
    run_id, start = await held(executor, at)
    await executor.reject(start, REJECTED.REASON_DUPLICATE)
    other = await at.create("one")
    await at.row(other, "EFFECT_REQUESTED", "it")
    session = at.engine.sessions.get("x")
    assert session is not None
    await executor.beat(start)
    await eventually(lambda: session.report)
    assert session.pools["functions"].free(background=False) == 0
    assert len(executor.starts) == 1, "the slot of a running attempt was given away"
    await executor.settle(start, value=1)
    assert await at.value(run_id) == 1
    await executor.settle(await _second(executor))
    await at.value(other)


async def _second(executor: ScriptedExecutor) -> pb.StartAttempt:
    await eventually(lambda: len(executor.starts) == 2)
    return executor.starts[1]


async def test_a_refusal_for_a_stale_session_changes_nothing_on_the_new_one(at: World) -> None:
    executor = at.executor()
    run_id, start = await held(executor, at)
    await executor.hang_up()
    await executor.connect([start])
    await executor.reject(start, REJECTED.REASON_DUPLICATE)
    await executor.settle(start, value="ok")
    assert await at.value(run_id) == "ok"
    assert not await at.rows(run_id, "EFFECT_ATTEMPT_LOST")


@pytest.mark.invariant("I13")
async def test_inside_the_grace_a_running_attempt_is_adopted(at: World) -> None:
    executor = at.executor()
    run_id, start = await held(executor, at)
    await executor.hang_up()
    stream = await executor.connect([start])
    assert not stream.welcome.stale
    [(session_no,)] = await at.query("SELECT session_no FROM backburner.effects WHERE effect_id = %s", start.effect_id)
    assert session_no == stream.welcome.session_no == 2
    await executor.settle(start, value="kept")
    assert await at.value(run_id) == "kept"
    assert len(executor.starts) == 1
    assert not await at.rows(run_id, "EFFECT_ATTEMPT_LOST")


@pytest.mark.invariant("I13")
async def test_beyond_the_grace_the_attempt_is_lost(at: World) -> None:
    """At most once with one attempt: failed, and the settlement says that nobody can know what became of it."""
    await at.restart(grace_seconds=1.0)
    executor = at.executor()
    run_id, start = await held(executor, at)
    await executor.hang_up()
    assert await at.value(run_id) == ["EXECUTOR_LOST", 1]
    resolved = await at.row(run_id, "EFFECT_RESOLVED", "it")
    assert resolved.data["death"] == "DEATH_UNPROVEN"
    stream = await executor.connect([start])
    assert [ref.effect_id for ref in stream.welcome.stale] == [start.effect_id]
    executor.notices = False
    assert await executor.settle(start, value="late") == "stale"
    assert len(await at.rows(run_id, "EFFECT_SUPERSEDED", key="it")) <= 1


@pytest.mark.invariant("I13")
async def test_a_lost_attempt_is_retried_by_policy_elsewhere(at: World) -> None:
    await at.restart(grace_seconds=1.0)
    executor = at.executor()
    run_id, _ = await held(executor, at, attempts=2)
    await executor.hang_up()
    other = at.executor("y")
    await other.connect()
    await other.settle(await other.start_of("it", attempt=2), value="there")
    assert await at.value(run_id) == "there"


@pytest.mark.invariant("I13")
async def test_a_restarted_executor_that_succeeds_its_old_self_ends_the_wait_at_once(database_url: str) -> None:
    from tests.integration.engine.world import world

    async with world(database_url, grace_seconds=600) as at:
        executor = at.executor()
        run_id, _ = await held(executor, at)
        await executor.hang_up()
        reborn = at.executor("x")
        await reborn.connect(succeeds=[executor.incarnation])
        assert await at.value(run_id) == ["EXECUTOR_LOST", 1]


@pytest.mark.invariant("I13")
async def test_a_restarted_executor_that_proves_nothing_leaves_the_old_attempt_to_the_grace(at: World) -> None:
    await at.restart(grace_seconds=1.0)
    executor = at.executor()
    run_id, _ = await held(executor, at)
    await executor.hang_up()
    reborn = at.executor("x")
    await reborn.connect()
    assert await at.value(run_id) == ["EXECUTOR_LOST", 1]
    lost = await at.row(run_id, "EFFECT_ATTEMPT_LOST", "it")
    assert lost.data["message"] == "its executor x went away and was not back within 1 s", "lost for another reason"


@pytest.mark.invariant("I6")
async def test_a_cancel_reaches_a_connected_executor_without_a_poll(at: World) -> None:
    await at.restart(poll_seconds=600.0)
    executor = at.executor()
    run_id, start = await held(executor, at)
    await at.cancel(run_id)
    await eventually(lambda: executor.cancels)
    assert executor.cancels[0].token == start.token
    await executor.settle(start, **CANCELLED)
    await at.row(run_id, "RUN_CANCELLED")


@pytest.mark.invariant("I6")
async def test_a_cancel_for_an_absent_executor_is_delivered_at_its_next_hello(at: World) -> None:
    await at.restart(poll_seconds=600.0)
    executor = at.executor()
    run_id, start = await held(executor, at)
    await executor.hang_up()
    await at.cancel(run_id)
    await at.row(run_id, "EFFECT_CANCEL_REQUESTED", "it")
    stream = await executor.connect([start])
    await eventually(lambda: stream.cancels)
    await executor.settle(start, **CANCELLED)
    await at.row(run_id, "RUN_CANCELLED")


async def test_a_malformed_hello_is_refused_with_the_paths_of_its_fields(at: World) -> None:
    executor = at.executor("bad\0id", incarnation="", pools={"functions": (-1, 0), "shell": (2, 3)}, labels={"a": "\0"})
    code, paths, _ = await refusal(await executor.open(pb.ConnectRequest(hello=executor.hello())))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert {"hello.executor_id", "hello.incarnation", "hello.labels['a']"} <= paths
    assert {"hello.pools[0].slots", "hello.pools[1].background_slots"} <= paths | {
        path.replace("[1]", "[2]").replace("[0]", "[1]").replace("[2]", "[0]") for path in paths
    }
    assert await at.query("SELECT * FROM backburner.executors") == []


async def test_what_an_executor_says_of_harnesses_is_bounded(at: World) -> None:
    executor = at.executor()
    hello = executor.hello()
    hello.harness_checks.add(remedy="x" * 5_000)
    hello.harness_checks.add(name="codex", version="v" * 2_000, path="\0")
    code, paths, _ = await refusal(await executor.open(pb.ConnectRequest(hello=hello)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert paths == {
        "hello.harness_checks[0].name", "hello.harness_checks[0].remedy",
        "hello.harness_checks[1].version", "hello.harness_checks[1].path",
    }  # fmt: skip
    hello.ClearField("harness_checks")
    hello.harness_checks.extend(pb.HarnessCheck(name=f"h{n}") for n in range(201))
    _, paths, _ = await refusal(await executor.open(pb.ConnectRequest(hello=hello)))
    assert paths == {"hello.harness_checks"}


async def test_an_unknown_contract_is_refused(at: World) -> None:
    executor = at.executor()
    hello = executor.hello()
    hello.contract = 99
    code, _, reason = await refusal(await executor.open(pb.ConnectRequest(hello=hello)))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CONTRACT_UNSUPPORTED")


async def test_a_first_frame_that_is_no_hello_is_refused(at: World) -> None:
    executor = at.executor()
    code, paths, _ = await refusal(await executor.open(pb.ConnectRequest(heartbeat=pb.ExecutorHeartbeat())))
    assert (code, paths) == (grpc.StatusCode.INVALID_ARGUMENT, {"hello"})


@pytest.mark.invariant("I11")
async def test_a_stream_that_says_nothing_is_ended(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicer, "_HELLO_SECONDS", 0.1)
    executor = at.executor()
    stream = await executor.open(pb.ConnectRequest())
    assert (await refusal(stream))[0] is grpc.StatusCode.INVALID_ARGUMENT
    from backburner.scheduler.v1 import dispatch_service_pb2_grpc as pb_grpc

    call = pb_grpc.DispatchServiceStub(at.channel).Connect()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asyncio.wait_for(call.read(), 30)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_newer_session_supersedes_the_older(at: World) -> None:
    executor = at.executor()
    run_id, start = await held(executor, at)
    older = executor.stream
    newer = await executor.connect([start])
    assert newer.welcome.session_no == older.welcome.session_no + 1
    code, _, reason = await refusal(older)
    assert (code, reason) == (grpc.StatusCode.ABORTED, "SESSION_SUPERSEDED")
    [(state,)] = await at.query("SELECT state FROM backburner.executors")
    assert state == "CONNECTED", "the end of the older session was taken for the executor's"
    await executor.settle(start, value=1)
    assert await at.value(run_id) == 1


async def test_a_session_with_another_replica_supersedes_the_older_here(at: World) -> None:
    """Of another incarnation: that one is told whose it is, and will not dial again."""
    older = at.executor()
    await older.connect()
    there = World(at.dsn)
    await there.start()
    try:
        newer = there.executor()
        await newer.connect()
        assert (await refusal(older.stream))[2] == "SESSION_SUPERSEDED"
        assert newer.incarnation in str(older.stream.error)
        assert not newer.stream.ended.is_set()
    finally:
        await there.close()


@pytest.mark.invariant("I3")
async def test_a_hello_that_was_slow_does_not_speak_for_the_newer_session(at: World) -> None:
    """What the newer was given is in no report of the older: by that alone it would be started a second time."""
    executor = at.executor()
    entered, go_on = asyncio.Event(), asyncio.Event()
    open_attempts = at.engine.journal.open_attempts

    async def slow(executor_id: str) -> list[OpenAttempt]:
        if not entered.is_set():
            entered.set()
            await go_on.wait()
        return await open_attempts(executor_id)

    at.engine.journal.open_attempts = slow  # type: ignore[method-assign]
    older = await executor.open(pb.ConnectRequest(hello=executor.hello()))
    await entered.wait()
    await executor.connect()
    run_id = await at.create("one")
    start = await executor.start_of("it")
    go_on.set()
    assert (await refusal(older))[2] == "SESSION_SUPERSEDED"
    await executor.settle(start, value="once")
    assert await at.value(run_id) == "once"
    assert not await at.rows(run_id, "EFFECT_ATTEMPT_LOST")


async def test_a_silent_session_is_ended(at: World) -> None:
    executor = at.executor(beat_s=0)
    stream = await executor.connect()
    await asyncio.wait_for(stream.ended.wait(), 30)
    assert stream.moved == "no frames"
    await eventually(lambda: len(at.engine.sessions) == 0)


@pytest.mark.invariant("I13")
async def test_a_replica_that_stood_still_ends_no_session_before_it_has_read_what_came_meanwhile(at: World) -> None:
    """Seen under load: a loop that was late found everybody silent, and sent healthy executors away."""
    await at.restart(poll_seconds=600.0)
    executor = at.executor(beat_s=0)
    await executor.connect()
    [session] = at.engine.sessions
    for _ in range(3):
        session.last_frame = late = time.monotonic() - 100
        at.engine._polls._drop_silent()
        assert not session.closed, "nobody has looked whether a frame waits"
        await executor.beat()
        await eventually(lambda late=late: session.last_frame > late)  # type: ignore[misc]
    session.last_frame -= 100
    at.engine._polls._drop_silent()
    assert not session.closed, "it was heard since the turn before"
    at.engine._polls._drop_silent()
    assert at.engine.sessions.get("x") is session
    assert str(session.closed) == "no frames"


async def test_an_executor_that_goes_while_postgres_is_away_is_a_warning(
    at: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Found by chaos: the error met a stream that was closed already, and nobody took it."""
    executor = at.executor()
    await executor.connect()

    async def away(*_: object) -> None:
        raise JournalUnavailable("restarted")

    with monkeypatch.context() as patched:
        patched.setattr(at.engine.journal, "executor_gone", away)
        await executor.hang_up()
        await eventually(lambda: "is gone is not noted" in caplog.text)
    await executor.connect()
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
