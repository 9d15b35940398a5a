"""The control stream: admission, cancels, sessions that break and come back, and what Postgres' absence does."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service import intake
from executor_service.server import ExecutorServer
from tests.integration.executor import functions
from tests.integration.executor.conftest import StartExecutor
from tests.support.eventually import eventually
from tests.support.fake_scheduler import Dispatch, FakeScheduler, as_json

REJECTED = pb.RejectedAttempt


def echo(value: object) -> dict[str, Any]:
    return {"function": {"function": "exec.echo", "args": [value]}}


def counted(name: str) -> dict[str, Any]:
    return {"function": {"function": "exec.count", "args": [name]}}


def forever(name: str) -> dict[str, Any]:
    functions.BEGAN[name] = threading.Event()
    return {"function": {"function": "exec.forever", "args": [name]}}


async def begun(name: str) -> None:
    await eventually(functions.BEGAN[name].is_set)


async def test_hello_presents_the_executor(scheduler: FakeScheduler, start_executor: StartExecutor) -> None:
    await start_executor(labels=("gpu=no",), slots_shell=3, slots_agents=1, background_share=0.5)
    hello = (await scheduler.session()).hello
    assert hello.executor_id == "executor-under-test"
    assert hello.contract == 1
    assert {p.name: (p.slots, p.background_slots) for p in hello.pools} == {
        "functions": (256, 128),
        "shell": (3, 1),
        "agents": (1, 1),
    }
    assert {h.name: h.pool for h in hello.harnesses} == {"shell": "shell", "function": "functions"}
    assert "exec.echo" in hello.functions
    assert dict(hello.labels) == {"gpu": "no"}
    assert not hello.attempts
    assert not hello.draining


@pytest.mark.usefixtures("executor")
async def test_notice_is_the_committed_row(scheduler: FakeScheduler) -> None:
    dispatch = await scheduler.one(**echo("x"))
    settled = await scheduler.settled(dispatch)
    session = scheduler.sessions[-1]
    [event] = await eventually(lambda: session.events_of(dispatch))
    assert (event.seq, event.type, event.frees_slot) == (settled.seq, "EFFECT_RESOLVED", True)
    query = "SELECT (extract(epoch FROM recorded_at) * 1000000)::bigint, data::text FROM backburner.journal"
    [(at, data)] = await scheduler.query(f"{query} WHERE run_id = %s AND seq = %s", dispatch.run_id, settled.seq)
    assert (event.recorded_at_us, event.data_json.decode()) == (at, data)


@pytest.mark.usefixtures("executor")
@pytest.mark.invariant("I3")
async def test_repeated_start_runs_once(scheduler: FakeScheduler) -> None:
    dispatch = await scheduler.one(**counted("repeated"))
    session = scheduler.sessions[-1]
    session.start(dispatch)
    await scheduler.settled(dispatch)
    told = await eventually(lambda: session.events_of(dispatch))
    session.start(dispatch, dispatch)
    again = await eventually(lambda: session.events_of(dispatch)[len(told) :])
    assert again[0] == told[0], "the notice of its end is sent again"
    assert session.was_rejected(dispatch) == []
    assert functions.CALLS.count("repeated") == 1


@pytest.mark.usefixtures("executor")
@pytest.mark.invariant("I3")
async def test_repeated_start_whose_notice_is_forgotten_is_refused(
    scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executor_service.memory.NOTICES_MAX", 0)
    dispatch = await scheduler.one(**counted("forgotten notice"))
    session = scheduler.sessions[-1]
    await eventually(lambda: session.events_of(dispatch))
    session.start(dispatch)
    [refused] = await eventually(lambda: session.was_rejected(dispatch))
    assert refused.reason == REJECTED.REASON_DUPLICATE
    assert functions.CALLS.count("forgotten notice") == 1


@pytest.mark.usefixtures("executor")
@pytest.mark.invariant("I3")
async def test_older_attempt_is_refused_after_a_newer_one(scheduler: FakeScheduler) -> None:
    dispatch = await scheduler.one(send=False, **counted("older"))
    session = scheduler.sessions[-1]
    dispatch.start.attempt = 2
    session.start(dispatch)
    await eventually(lambda: functions.CALLS.count("older") == 1)
    dispatch.start.attempt = 1
    session.start(dispatch)
    [refused] = await eventually(lambda: session.was_rejected(dispatch))
    assert refused.reason == REJECTED.REASON_DUPLICATE
    assert functions.CALLS.count("older") == 1


@pytest.mark.usefixtures("executor")
@pytest.mark.invariant("I3")
async def test_start_beyond_the_bound_of_memory_is_fenced_by_its_session(
    scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executor_service.memory.EFFECTS_MAX", 1)
    monkeypatch.setattr("executor_service.memory.NOTICES_MAX", 0)
    dispatch = await scheduler.one(**counted("beyond"))
    await scheduler.settled(dispatch)
    await scheduler.run(**echo("pushes it out"))
    scheduler.sessions[-1].hang_up()
    session = await scheduler.session(1)
    session.start(dispatch, session_no=session.session_no - 1)
    [refused] = await eventually(lambda: session.was_rejected(dispatch))
    assert refused.reason == REJECTED.REASON_STALE_SESSION
    assert functions.CALLS.count("beyond") == 1


@pytest.mark.usefixtures("executor")
@pytest.mark.invariant("I3")
async def test_repeated_start_of_a_running_attempt_is_accepted_and_not_started_again(scheduler: FakeScheduler) -> None:
    dispatch = await scheduler.one(**forever("running"))
    await begun("running")
    session = scheduler.sessions[-1]
    functions.BEGAN["running"].clear()
    session.start(dispatch)
    await eventually(lambda: session.accepted.count((dispatch.effect_id, 1)) >= 2)
    assert not functions.BEGAN["running"].is_set()
    assert session.was_rejected(dispatch) == []


@pytest.mark.usefixtures("executor")
async def test_start_of_another_session_is_refused(scheduler: FakeScheduler) -> None:
    dispatch = await scheduler.one(send=False, **counted("stale"))
    session = scheduler.sessions[-1]
    session.start(dispatch, session_no=session.session_no - 1)
    [refused] = await eventually(lambda: session.was_rejected(dispatch))
    assert refused.reason == REJECTED.REASON_STALE_SESSION
    assert "stale" not in functions.CALLS


@pytest.mark.usefixtures("executor")
async def test_running_attempt_is_never_refused_as_stale(scheduler: FakeScheduler) -> None:
    """A refusal says that the attempt never started: the scheduler would start another one beside it."""
    dispatch = await scheduler.one(**forever("old start"))
    await begun("old start")
    session = scheduler.sessions[-1]
    session.start(dispatch, session_no=session.session_no - 1)
    await eventually(lambda: (dispatch.effect_id, 1) in session.accepted)
    assert session.was_rejected(dispatch) == []


async def test_refusal_is_followed_by_a_whole_report(scheduler: FakeScheduler, start_executor: StartExecutor) -> None:
    scheduler.heartbeat_s = 30.0
    executor: ExecutorServer = await start_executor(slots_functions=1)
    running = await scheduler.one(**forever("only"))
    await begun("only")
    session = scheduler.sessions[-1]
    await eventually(lambda: session.heartbeats)
    session.heartbeats.clear()  # the next one of its own accord is far away
    late = await scheduler.one(**echo("late"))
    await eventually(lambda: session.was_rejected(late))
    reports = await eventually(lambda: [b for b in session.heartbeats if b.report and b.attempts])
    assert [a.ref for a in reports[-1].attempts] == [running.ref]
    assert executor.attempts.pools["functions"].taken == 1, "a refused start frees nothing"


async def test_start_without_a_free_slot_is_refused(scheduler: FakeScheduler, start_executor: StartExecutor) -> None:
    await start_executor(slots_functions=2, background_share=0.5)
    await scheduler.session()
    background = [await scheduler.one(background=True, **forever(f"b{n}")) for n in range(2)]
    session = scheduler.sessions[-1]
    [refused] = await eventually(lambda: session.was_rejected(background[1]))
    assert refused.reason == REJECTED.REASON_NO_SLOT
    foreground = [await scheduler.one(**forever(f"f{n}")) for n in range(2)]
    await eventually(lambda: session.was_rejected(foreground[1]))
    session.cancel(foreground[0])
    await scheduler.settled(foreground[0])
    assert (await scheduler.run(**echo("again"))).value == "again"


@pytest.mark.usefixtures("executor")
async def test_attempt_that_lives_longer_is_accepted_and_started(scheduler: FakeScheduler) -> None:
    dispatch = await scheduler.one(**forever("long"))
    session = scheduler.sessions[-1]
    await eventually(lambda: (dispatch.effect_id, 1) in session.accepted)
    await eventually(lambda: [e.type for e in session.events_of(dispatch)] == ["EFFECT_STARTED"])
    assert [row.type for row in await scheduler.rows(dispatch, "EFFECT_STARTED")] == ["EFFECT_STARTED"]


@pytest.mark.usefixtures("executor")
async def test_short_attempt_has_no_started_row(scheduler: FakeScheduler) -> None:
    dispatch = await scheduler.one(**echo(1))
    await scheduler.settled(dispatch)
    assert await scheduler.rows(dispatch, "EFFECT_STARTED") == []


@pytest.mark.usefixtures("executor")
async def test_cancel_before_start_settles_when_the_token_is_known(scheduler: FakeScheduler) -> None:
    dispatch = await scheduler.one(send=False, **counted("never"))
    session = scheduler.sessions[-1]
    session.cancel(dispatch, "RUN_CANCELLED")
    settled = await scheduler.settled(dispatch)
    assert (settled.type, settled.reason) == ("EFFECT_CANCELLED", "RUN_CANCELLED")
    assert "death" not in settled.data
    told = len(await eventually(lambda: session.events_of(dispatch)))
    session.start(dispatch)
    await eventually(lambda: len(session.events_of(dispatch)) > told, message="the notice of its end is sent again")
    assert "never" not in functions.CALLS


@pytest.mark.usefixtures("executor")
async def test_cancel_before_start_leaves_a_tombstone(scheduler: FakeScheduler) -> None:
    dispatch = await scheduler.one(send=False, **counted("buried"))
    session = scheduler.sessions[-1]
    session.cancel(dispatch, "CANCELLED_BY_PROCESS", token=False)
    assert (await scheduler.run(**echo(1))).value == 1, "frames are taken in order"
    session.start(dispatch)
    settled = await scheduler.settled(dispatch)
    assert (settled.type, settled.reason) == ("EFFECT_CANCELLED", "CANCELLED_BY_PROCESS")
    assert "buried" not in functions.CALLS


@pytest.mark.usefixtures("executor")
async def test_cancel_after_the_end_changes_nothing(scheduler: FakeScheduler) -> None:
    dispatch = await scheduler.one(**echo("kept"))
    await scheduler.settled(dispatch)
    scheduler.sessions[-1].cancel(dispatch)
    assert (await scheduler.run(**echo(1))).value == 1
    assert (await scheduler.settled(dispatch)).value == "kept"
    assert await scheduler.rows(dispatch, "EFFECT_SUPERSEDED") == []


@pytest.mark.usefixtures("executor")
@pytest.mark.invariant("I3", "I13")
async def test_broken_stream_does_not_touch_running_work(scheduler: FakeScheduler, tmp_path: Path) -> None:
    ran, end = tmp_path / "ran", tmp_path / "end"
    line = f"echo ran >> {ran}; while [ ! -e {end} ]; do sleep 0.02; done"
    dispatch = await scheduler.one(shell={"command_line": line})
    await eventually(ran.exists)
    scheduler.sessions[-1].hang_up()
    session = await scheduler.session(1)
    [reported] = session.hello.attempts
    assert (reported.ref, reported.state) == (dispatch.ref, executor_pb.Attempt.STATE_RUNNING)
    assert (reported.session_no, reported.pool, reported.run_id) == (1, "shell", dispatch.run_id)
    session.start(dispatch)  # a start of the new session for what already runs
    end.touch()
    assert (await scheduler.settled(dispatch)).data["state"] == "EFFECT_STATE_SUCCEEDED"
    assert ran.read_text() == "ran\n"


@pytest.mark.usefixtures("executor")
async def test_work_that_ends_while_the_scheduler_is_away_is_journaled_and_told_later(scheduler: FakeScheduler) -> None:
    dispatch = await scheduler.one(function={"function": "exec.steps", "args": [["a", "b"], 0.3]})
    await eventually(lambda: (dispatch.effect_id, 1) in scheduler.sessions[-1].accepted)
    await scheduler.stop()
    assert (await scheduler.settled(dispatch)).value == 2
    await scheduler.start()
    session = await scheduler.session(1)
    assert list(session.hello.attempts) == []
    await eventually(lambda: any(e.frees_slot for e in session.events_of(dispatch)))


@pytest.mark.usefixtures("executor")
async def test_silent_stream_is_dropped_and_dialled_again(scheduler: FakeScheduler) -> None:
    await scheduler.session()
    scheduler.beats = False
    await scheduler.session(1)


@pytest.mark.usefixtures("executor")
async def test_heartbeats_carry_snapshots_and_whole_reports(scheduler: FakeScheduler) -> None:
    dispatch = await scheduler.one(function={"function": "exec.steps", "args": [["one", "two", "three"], 0.3]})
    session = scheduler.sessions[-1]

    def seen() -> bool:
        steps = {a.progress.step for beat in session.heartbeats for a in beat.changed}
        reports = [beat for beat in session.heartbeats if beat.report]
        return {"one", "two"} <= steps and any(a.ref == dispatch.ref for beat in reports for a in beat.attempts)

    await eventually(seen)


@pytest.mark.usefixtures("executor")
async def test_refusal_is_survived(scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executor_service.intake._REFUSED_SECONDS", 0.1)
    session = await scheduler.session()
    scheduler.refuse_with = grpc.StatusCode.FAILED_PRECONDITION
    session.hang_up()
    await asyncio.sleep(0)
    await eventually(lambda: session.closed)
    scheduler.refuse_with = None
    await scheduler.session(1)


@pytest.mark.usefixtures("executor")
async def test_attempt_declared_stale_at_the_welcome_is_ended(scheduler: FakeScheduler) -> None:
    dispatch = await scheduler.one(**forever("gone"))
    await begun("gone")
    scheduler.stale = [dispatch.ref]
    scheduler.sessions[-1].hang_up()
    assert (await scheduler.settled(dispatch)).reason == "EXECUTOR_LOST"


@pytest.mark.invariant("I2")
@pytest.mark.usefixtures("executor")
async def test_attempt_that_was_lost_meanwhile_is_ended_at_the_first_stale_answer(scheduler: FakeScheduler) -> None:
    dispatch = await scheduler.one(send=False, max_attempts=2, **forever("lost"))
    item = [{
        "run_id": dispatch.run_id, "epoch": 0, "effect_id": dispatch.effect_id, "attempt": 1, "never_started": False,
        "reason": "EFFECT_REASON_EXECUTOR_LOST", "message": "test", "actor": "test",
    }]  # fmt: skip
    await scheduler.query("SELECT * FROM backburner.attempts_lost_v1(%s::jsonb)", as_json(item))
    scheduler.sessions[-1].start(dispatch)
    await eventually(lambda: _superseded(scheduler, dispatch))
    assert await scheduler.rows(dispatch, "EFFECT_RESOLVED") == []


async def _superseded(scheduler: FakeScheduler, dispatch: Dispatch) -> bool:
    return bool(await scheduler.rows(dispatch, "EFFECT_SUPERSEDED"))


@pytest.mark.usefixtures("executor")
async def test_cancel_flag_turns_a_failure_into_a_cancel(scheduler: FakeScheduler) -> None:
    dispatch = await scheduler.one(send=False, max_attempts=3, function={"function": "exec.raises", "args": ["x"]})
    await scheduler.request_cancel(dispatch, "RUN_ENDED")
    scheduler.sessions[-1].start(dispatch)
    settled = await scheduler.settled(dispatch)
    assert (settled.type, settled.reason) == ("EFFECT_CANCELLED", "RUN_ENDED")


async def test_drain_finishes_what_runs_and_refuses_the_rest(
    scheduler: FakeScheduler, start_executor: StartExecutor
) -> None:
    executor: ExecutorServer = await start_executor()
    running = await scheduler.one(function={"function": "exec.steps", "args": [["a"], 0.4]})
    session = scheduler.sessions[-1]
    await eventually(lambda: (running.effect_id, 1) in session.accepted)
    stopping = asyncio.create_task(executor.stop(10.0))
    await eventually(lambda: session.draining)
    late = await scheduler.one(**counted("late"))
    [refused] = await eventually(lambda: session.was_rejected(late))
    assert refused.reason == REJECTED.REASON_DRAINING
    assert (await scheduler.settled(running)).value == 1
    await stopping
    assert any(e.frees_slot for e in session.events_of(running)), "the notice went out before the end"


async def test_an_order_to_drain_that_is_taken_back_between_two_sessions_is_over(
    scheduler: FakeScheduler, start_executor: StartExecutor
) -> None:
    """Nobody tells the executor so: each session is told anew of what is still ordered."""
    executor: ExecutorServer = await start_executor()
    session = await scheduler.session()
    session.send(pb.ConnectResponse(drain=pb.DrainCommand(drain=True, reason="kernel")))
    await eventually(lambda: executor.attempts.draining == "kernel")
    session.hang_up()
    assert not (await scheduler.session(after=len(scheduler.sessions))).hello.draining
    assert (await scheduler.settled(await scheduler.one(**echo("works again")))).value == "works again"


async def test_progress_goes_on_while_an_executor_drains(
    scheduler: FakeScheduler, start_executor: StartExecutor
) -> None:
    executor: ExecutorServer = await start_executor()
    running = await scheduler.one(function={"function": "exec.steps", "args": [["a", "b", "c", "last"], 0.4]})
    session = scheduler.sessions[-1]
    await eventually(lambda: (running.effect_id, 1) in session.accepted)
    stopping = asyncio.create_task(executor.stop(10.0))
    await eventually(lambda: session.draining)
    session.heartbeats.clear()
    await eventually(lambda: any(a.progress.step == "last" for beat in session.heartbeats for a in beat.changed))
    assert (await scheduler.settled(running)).value == 4
    await stopping
    assert await scheduler.rows(running, "EFFECT_PROGRESS")


@pytest.mark.usefixtures("executor")
async def test_hello_of_our_own_that_came_late_is_no_other_executor(scheduler: FakeScheduler) -> None:
    """It has ended our newer session: we dial again, and take work as before."""
    session = await scheduler.session()
    session.supersede(session.hello.incarnation)
    await scheduler.session(1)
    assert (await scheduler.run(**echo("again"))).value == "again"


@pytest.mark.usefixtures("executor")
async def test_executor_whose_name_was_taken_over_finishes_what_it_runs_and_never_dials_again(
    scheduler: FakeScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    dispatch = await scheduler.one(function={"function": "exec.steps", "args": [["a"], 0.4]})
    session = scheduler.sessions[-1]
    await eventually(lambda: (dispatch.effect_id, 1) in session.accepted)
    session.supersede("another")
    await eventually(lambda: "another executor has the id of this one" in caplog.text)
    assert (await scheduler.settled(dispatch)).value == 1
    assert len(scheduler.sessions) == 1


async def test_executor_that_stood_still_keeps_its_session(
    scheduler: FakeScheduler, start_executor: StartExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen under load: whoever was late found the scheduler silent, whose frames it had not read yet."""
    monkeypatch.setattr(intake, "_LOOK_AGAIN_SECONDS", 5.0)  # for a machine that is slow too
    await start_executor()
    session = await scheduler.session()
    for _ in range(3):
        beats = len(session.heartbeats)
        time.sleep(scheduler.heartbeat_s * (intake.SILENT_HEARTBEATS + 1))  # noqa: ASYNC251 - this is the standstill
        await eventually(lambda beats=beats: len(session.heartbeats) > beats + 1)  # type: ignore[misc]
    assert scheduler.sessions == [session]


async def test_only_an_executor_that_is_asked_to_kills_when_it_is_cut_off(
    scheduler: FakeScheduler, start_executor: StartExecutor, tmp_path: Path
) -> None:
    scheduler.grace_s = 1.0
    await start_executor(executor_id="kills", kill_when_cut_off=True)
    ended = await scheduler.one(max_attempts=2, **forever("ended"))
    await begun("ended")
    await start_executor(executor_id="keeps", state_dir=str(tmp_path / "keeps"))
    await scheduler.session(1)
    kept = await scheduler.one(**forever("kept"))
    await begun("kept")
    await scheduler.stop()
    settled = await scheduler.settled(ended)
    assert (settled.type, settled.reason) == ("EFFECT_ATTEMPT_FAILED", "EXECUTOR_LOST")
    await scheduler.start()
    [again, *_] = await eventually(lambda: [s for s in scheduler.sessions[2:] if s.hello.executor_id != "kills"])
    running = executor_pb.Attempt.STATE_RUNNING
    assert [(item.ref, item.state) for item in again.hello.attempts] == [(kept.ref, running)]


async def test_drain_hands_back_what_does_not_finish(scheduler: FakeScheduler, start_executor: StartExecutor) -> None:
    executor: ExecutorServer = await start_executor()
    dispatch = await scheduler.one(max_attempts=2, **forever("drained"))
    await begun("drained")
    await executor.stop(0.1)
    settled = await scheduler.settled(dispatch)
    assert (settled.type, settled.reason) == ("EFFECT_ATTEMPT_FAILED", "DRAINED")
