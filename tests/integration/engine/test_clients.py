"""Client-driven runs over a real scheduler: what clients ask for is done, whoever dies, and their owner keeps time.

The clients are written with the generated stubs alone (tests/support/client_program.py).
"""

import asyncio
import datetime as dt
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import orjson
import pytest
from google.protobuf.duration_pb2 import Duration

import backburner as bb
from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.journal import shard_of
from tests.integration.api.scene import refused
from tests.integration.engine import child_processes
from tests.integration.engine.executor import FAILED, SUCCEEDED
from tests.integration.engine.world import World, world
from tests.support.client_program import RUN_STATE, STATE, ClientProgram, external, fresh_key, function, spec
from tests.support.eventually import eventually

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
async def at(database_url: str) -> AsyncIterator[World]:
    """A scheduler with a short grace: for as long, it takes no client for silent that could not call it before."""
    async with world(database_url, grace_seconds=1.0) as made:
        yield made


async def started(at: World, key: str = "", **fields: Any) -> ClientProgram:
    program = await ClientProgram.start(at.client, key or fresh_key(), **fields)
    at.runs.append(program.run_id)
    return program


def states(effects: Sequence[pb.Effect]) -> list[str]:
    return [STATE.Name(effect.state).removeprefix("EFFECT_STATE_") for effect in effects]


async def types(program: ClientProgram) -> list[str]:
    return [journal_pb2.EventType.Name(e.type).removeprefix("EVENT_TYPE_") for e in await program.events()]


async def test_a_client_asks_waits_and_finishes(at: World) -> None:
    executor = at.executor(answer=lambda start: SUCCEEDED | {"value": start.effect_key})
    await executor.connect()
    program = await started(at)
    assert (program.created, program.epoch, program.head_seq) == (True, 1, 1)
    await program.request({"tests": function(background=True), "lint": function()})
    both = await program.wait("tests", "lint")
    assert [(e.key, e.result.value.value.string_value) for e in both] == [("tests", "tests"), ("lint", "lint")]
    run = await program.finish({"ok": True})
    assert (run.state, run.client_driven, run.process) == (RUN_STATE.RUN_STATE_COMPLETED, True, "")
    assert run.result.value.struct_value.fields["ok"].bool_value


async def test_a_request_that_has_room_is_dispatched_in_its_own_commit(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    await eventually(lambda: not any(session.queued for session in at.engine.sessions), message="not claimed for yet")
    program = await started(at)
    [effect] = await program.request({"a": function()})
    assert states([effect]) == ["DISPATCHED"]
    requested, dispatched = (await at.rows(program.run_id))[1:3]
    assert requested.recorded_at == dispatched.recorded_at, "one commit"
    await executor.settle(await executor.start_of("a"))
    await program.wait("a")


@pytest.mark.invariant("I6")
async def test_the_same_program_again_is_answered_from_the_journal_and_its_zombie_is_fenced(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    first = await started(at)
    work = {"a": function("probe", 1), "b": function("probe", 2)}
    await first.request(work)
    await executor.settle(await executor.start_of("a"), value="once")
    await first.wait("a")
    second = await started(at, key=(await first.run()).key)
    assert (second.run_id, second.created, second.epoch) == (first.run_id, False, 2)
    a, b = await second.request(work)
    assert states([a, b]) == ["SUCCEEDED", "DISPATCHED"]
    assert a.result.value.value.string_value == "once"
    for call in (first.request({"c": function()}), first.finish()):
        info = await refused(call, PRECONDITION, "CLIENT_SUPERSEDED")
        assert (info.metadata["client_epoch"], info.metadata["newest_epoch"]) == ("1", "2")
    await executor.settle(await executor.start_of("b"))
    await second.wait("a", "b")
    await second.finish()
    assert [start.effect_key for start in executor.starts] == ["a", "b"], "nothing was run again"


async def test_a_finished_run_answers_the_program_that_runs_again(at: World) -> None:
    executor = at.executor(answer=lambda start: SUCCEEDED)
    await executor.connect()
    first = await started(at)
    await first.request({"a": function()})
    await first.wait("a")
    await first.finish([1])
    again = await started(at, key=(await first.run()).key)
    assert states(await again.request({"a": function()})) == ["SUCCEEDED"]
    assert (await again.finish([1])).state == RUN_STATE.RUN_STATE_COMPLETED
    await refused(again.finish([2]), PRECONDITION, "RUN_CLOSED")
    await refused(again.finish(error="no"), PRECONDITION, "RUN_CLOSED")
    await refused(again.request({"b": function()}), PRECONDITION, "RUN_CLOSED")


async def test_a_failed_attempt_is_retried_without_anybody_asking(at: World) -> None:
    executor = at.executor(answer=lambda start: FAILED if start.attempt == 1 else SUCCEEDED)
    await executor.connect()
    program = await started(at)
    await program.request({"a": function(retry={"max_attempts": 2, "initial": "0s"})})
    assert states(await program.wait("a")) == ["SUCCEEDED"]
    assert [start.attempt for start in executor.starts] == [1, 2]


async def test_finishing_waits_for_what_it_was_told_to_wait_for(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    program = await started(at)
    await program.request({
        "waited": function(background=True), "cancelled": function(background=True, on_run_end="ON_RUN_END_CANCEL"),
        "left": function(background=True, on_run_end="ON_RUN_END_DETACH"),
    })  # fmt: skip
    info = await refused(program.finish(7), PRECONDITION, "EFFECTS_OPEN")
    assert (info.metadata["keys"], info.metadata["count"]) == ("waited", "1")
    run = await program.finish(7, wait=True)
    assert run.state == RUN_STATE.RUN_STATE_CLOSING
    assert (await program.finish(7)).state == RUN_STATE.RUN_STATE_CLOSING, "the same again is no error"
    await refused(program.finish(8, wait=True), PRECONDITION, "RUN_CLOSED")
    await refused(program.request({"more": function()}), PRECONDITION, "RUN_CLOSED")
    await eventually(lambda: executor.cancels, message="no cancel")
    await executor.settle(await executor.start_of("cancelled"), outcome="cancelled", reason="EFFECT_REASON_RUN_ENDED")
    await executor.settle(await executor.start_of("waited"))
    run = await program.ended()
    assert (run.state, run.result.value.number_value) == (RUN_STATE.RUN_STATE_COMPLETED, 7)
    await executor.settle(await executor.start_of("left"))
    assert states(await program.wait("left")) == ["SUCCEEDED"], "what was detached goes on after the end"


async def test_a_failure_cancels_what_is_open(at: World) -> None:
    program = await started(at)
    await program.request({"queued": function(), "asked": external("yes")})
    run = await program.finish(error="disk full")
    assert (run.state, run.error.kind, run.error.message) == (RUN_STATE.RUN_STATE_FAILED, "FAIL", "disk full")
    assert states(await program.wait("queued", "asked")) == ["CANCELLED", "CANCELLED"]


async def test_a_cancel_ends_the_run_at_once(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    program = await started(at)
    await program.request({"a": function(), "asked": external("yes")})
    await program.cancel()
    await refused(program.request({"b": function()}), PRECONDITION, "RUN_CLOSED")
    await eventually(lambda: executor.cancels, message="no cancel")
    await executor.settle(await executor.start_of("a"), outcome="cancelled", reason="EFFECT_REASON_RUN_CANCELLED")
    assert (await program.ended()).state == RUN_STATE.RUN_STATE_CANCELLED
    await refused(program.finish(), PRECONDITION, "RUN_CLOSED")


async def test_a_closing_run_can_be_cancelled(at: World) -> None:
    program = await started(at)
    await program.request({"asked": external("yes", background=True)})
    await program.finish(wait=True)
    await program.cancel()
    run = await program.ended()
    assert (run.state, run.cancel_reason) == (RUN_STATE.RUN_STATE_CANCELLED, "enough")


async def test_a_halted_run_is_cancelled_with_what_it_has_open(at: World) -> None:
    program = await started(at)
    await program.request({"asked": external("yes"), "queued": function()})
    await at.client.HaltRun(pb.HaltRunRequest(run_id=program.run_id))
    await program.cancel()
    await eventually(lambda: at.rows(program.run_id, "RUN_CANCELLED"), message="it stays halted")
    assert states(await program.wait("asked", "queued")) == ["CANCELLED", "CANCELLED"]


async def test_a_halted_run_that_closes_ends_once_it_is_resumed(at: World) -> None:
    program = await started(at)
    await program.request({"asked": external("yes", background=True)})
    await program.finish(7, wait=True)
    await at.client.HaltRun(pb.HaltRunRequest(run_id=program.run_id))
    await program.resolve("asked")
    assert (await program.run()).state == RUN_STATE.RUN_STATE_HALTED
    await at.client.ResumeRun(pb.ResumeRunRequest(run_id=program.run_id))
    await eventually(lambda: at.rows(program.run_id, "RUN_COMPLETED"), message="it does not end")


async def test_a_timer_settles_when_it_is_due_also_after_a_restart(at: World) -> None:
    program = await started(at)
    due = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1.5)
    [effect] = await program.request({"nap": spec(timer={"fire_at": due.isoformat().replace("+00:00", "Z")})})
    assert effect.waiting_on.cause == pb.WaitingOn.CAUSE_TIMER
    assert effect.waiting_on.until.ToDatetime(dt.UTC) == due
    await at.restart()
    program = ClientProgram(at.client, program.run_id, program.epoch, program.created, program.head_seq)
    [nap] = await program.wait("nap")
    assert states([nap]) == ["SUCCEEDED"]
    assert nap.settle_time.ToDatetime(dt.UTC) >= due


async def test_an_answer_that_does_not_come_in_time_is_a_timeout(at: World) -> None:
    program = await started(at)
    await program.request({"asked": external("yes", timeouts={"start_to_close": "0.2s", "total": "600s"})})
    [asked] = await program.wait("asked")
    assert (states([asked]), asked.error.reason) == (["TIMED_OUT"], journal_pb2.EFFECT_REASON_TIMEOUT_TOTAL)


async def test_a_time_at_the_end_of_time_poisons_nobodys_lists(at: World) -> None:
    program = await started(at)
    end = spec(timer={"fire_at": "9999-12-28T23:59:59.999999999Z"})
    await program.request({"end": end})
    assert (await program.run()).waiting_on[0].until.ToDatetime(dt.UTC).year == 9999
    listed = await at.client.ListEffects(pb.ListEffectsRequest(run_id=program.run_id))
    assert [effect.key for effect in listed.effects] == ["end"]


async def test_waits_are_answered_when_their_replica_goes_away(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[str] = []

    def noting(name: str) -> Callable[..., Awaitable[Any]]:
        wait = getattr(at.engine, name)

        async def noted(*given: Any) -> Any:
            waiting.append(name)
            return await wait(*given)

        return noted

    for name in ("wait_head", "wait_stopped"):
        monkeypatch.setattr(at.engine, name, noting(name))
    program = await started(at)
    await program.request({"asked": external("yes")})
    effects = pb.WaitEffectsRequest(run_id=program.run_id, keys=["asked"], max_wait=Duration(seconds=50))
    wait_effects = at.client.WaitEffects(effects)
    wait_run = at.client.WaitRun(pb.WaitRunRequest(run_id=program.run_id, max_wait=Duration(seconds=50)))
    await eventually(lambda: {*waiting} == {"wait_head", "wait_stopped"}, message="they do not wait")
    at.engine.begin_drain()
    assert (await asyncio.wait_for(wait_effects, 30)).timed_out
    assert (await asyncio.wait_for(wait_run, 30)).timed_out
    await refused(at.client.WaitEffects(effects), grpc.StatusCode.UNAVAILABLE, "DRAINING")


async def test_timers_outlive_a_run_that_ends_without_them(at: World) -> None:
    program = await started(at)
    due = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)
    timer = spec(timer={"fire_at": due.isoformat().replace("+00:00", "Z")}, on_run_end="ON_RUN_END_DETACH")
    await program.request({"nap": timer})
    assert (await program.finish()).state == RUN_STATE.RUN_STATE_COMPLETED
    await at.restart()
    program = ClientProgram(at.client, program.run_id, program.epoch, program.created, program.head_seq)
    [nap] = await program.wait("nap")
    assert states([nap]) == ["SUCCEEDED"]
    assert nap.settle_time.ToDatetime(dt.UTC) >= due


async def test_an_owner_that_comes_later_ends_what_was_closing(at: World) -> None:
    program = await started(at)
    await program.request({"asked": external("yes", background=True)})
    await program.finish({"by": "itself"}, wait=True)
    await at.restart()
    program = ClientProgram(at.client, program.run_id, program.epoch, program.created, program.head_seq)
    await program.resolve("asked")
    run = await program.ended()
    assert run.state == RUN_STATE.RUN_STATE_COMPLETED
    assert run.result.value.struct_value.fields["by"].string_value == "itself"
    assert (await at.query("SELECT strikes FROM backburner.run_heads WHERE run_id = %s", program.run_id)) == [(0,)]


async def test_a_silent_client_has_its_run_halted_and_its_next_start_brings_it_back(at: World) -> None:
    program = await started(at, idle_s=1.0)
    run = await program.ended()
    assert run.state == RUN_STATE.RUN_STATE_HALTED
    assert "CLIENT_IDLE" in run.waiting_on[0].message
    again = await started(at, key=run.key, idle_s=600)
    assert (again.epoch, (await again.run()).state) == (2, RUN_STATE.RUN_STATE_RUNNING)
    assert await types(program) == ["RUN_CREATED", "RUN_HALTED", "RUN_RESUMED"]
    [halted] = await program.events("RUN_HALTED")
    assert halted.run_halted == journal_pb2.RunHalted(reason="CLIENT_IDLE", client_idle=True)


def as_client(program: ClientProgram, call: str) -> Awaitable[Any]:
    """A call about effect `a` that carries the client's epoch: a read of the effect, or the first frame of a watch."""
    name, epoch = pb.EffectName(run_id=program.run_id, key="a"), program.epoch
    match call:
        case "wait":
            return program.wait("a", max_wait_s=0, as_client=True)
        case "get":
            return program.stub.GetEffect(pb.GetEffectRequest(effect=name, client_epoch=epoch))
        case "watch":
            return program.stub.WatchRun(pb.WatchRunRequest(run_id=program.run_id, client_epoch=epoch)).read()
        case _:
            return program.stub.WatchEffect(pb.WatchEffectRequest(effect=name, client_epoch=epoch)).read()


CALLS = ("wait", "get", "watch", "watch effect")


@pytest.mark.parametrize("call", CALLS)
async def test_a_client_that_only_waits_brings_its_run_back(at: World, call: str) -> None:
    program = await started(at, idle_s=1.0)
    await program.request({"a": function()})
    assert (await program.ended()).client_idle
    await program.wait("a", max_wait_s=0)  # who does not say that it is the client only looks
    await program.stub.GetEffect(pb.GetEffectRequest(effect=pb.EffectName(run_id=program.run_id, key="a")))
    assert (await program.run()).state == RUN_STATE.RUN_STATE_HALTED
    await as_client(program, call)
    run = await program.run()
    assert (run.state, run.client_idle) == (RUN_STATE.RUN_STATE_RUNNING, False)


@pytest.mark.parametrize("call", CALLS)
async def test_a_zombie_learns_of_its_successor_while_it_waits(at: World, call: str) -> None:
    first = await started(at)
    await first.request({"a": function()})
    await started(at, key=(await first.run()).key)
    info = await refused(as_client(first, call), PRECONDITION, "CLIENT_SUPERSEDED")
    assert (info.metadata["client_epoch"], info.metadata["newest_epoch"]) == ("1", "2")


async def test_asking_for_what_is_recorded_brings_a_run_back(at: World) -> None:
    program = await started(at, idle_s=1.0)
    await program.request({"a": function()})
    await program.ended()
    await program.request({"a": function()})
    assert (await program.run()).state == RUN_STATE.RUN_STATE_RUNNING
    await program.ended()
    conflict = program.request({"a": function("other")})
    await refused(conflict, grpc.StatusCode.ALREADY_EXISTS, "EFFECT_KEY_CONFLICT")
    assert (await program.run()).state == RUN_STATE.RUN_STATE_RUNNING, "its client is there, whatever it asks for"


async def test_an_operator_takes_over_the_halt_of_a_silent_clients_run(at: World) -> None:
    executor = at.executor(answer=lambda start: SUCCEEDED)
    await executor.connect()
    program = await started(at, idle_s=1.0)
    await program.ended()
    run = (await at.client.HaltRun(pb.HaltRunRequest(run_id=program.run_id, reason="look"))).run
    assert (run.state, run.client_idle) == (RUN_STATE.RUN_STATE_HALTED, False)
    assert "look" in run.waiting_on[0].message
    await at.client.HaltRun(pb.HaltRunRequest(run_id=program.run_id, reason="again"))  # halted already
    assert states(await program.request({"a": function()})) == ["QUEUED"]
    await program.wait("a", max_wait_s=0, as_client=True)
    again = await started(at, key=run.key)
    await refused(again.finish(), PRECONDITION, "RUN_HALTED")
    assert (await again.run()).state == RUN_STATE.RUN_STATE_HALTED
    await at.client.ResumeRun(pb.ResumeRunRequest(run_id=program.run_id))
    assert states(await again.wait("a")) == ["SUCCEEDED"]
    halts = [(event.run_halted.reason, event.run_halted.client_idle) for event in await program.events("RUN_HALTED")]
    assert halts == [("CLIENT_IDLE", True), ("look", False)]


async def test_an_operator_who_says_client_idle_is_an_operator(at: World) -> None:
    program = await started(at)
    await at.client.HaltRun(pb.HaltRunRequest(run_id=program.run_id, reason="CLIENT_IDLE"))
    await program.request({"a": function()})
    run = await (await started(at, key=(await program.run()).key)).run()
    assert (run.state, run.client_idle) == (RUN_STATE.RUN_STATE_HALTED, False)


async def test_a_client_that_could_not_call_is_not_held_to_be_silent(at: World) -> None:
    """The scheduler was away for longer than the idle timeout, and the client calls when it is back."""
    program = await started(at)
    await at.stop()
    await at.query("UPDATE backburner.client_runs SET idle_at = now() WHERE run_id = %s RETURNING 1", program.run_id)
    await at.start(grace_seconds=600.0)
    program = ClientProgram(at.client, program.run_id, program.epoch, program.created, program.head_seq)
    polled = at.engine.journal.idle_clients
    assert await polled(range(16)) == [program.run_id], "by the clock it is"
    await at.engine.clients.halt_idle(at.engine.shards.epochs, shard_of)
    assert (await program.run()).state == RUN_STATE.RUN_STATE_RUNNING
    await eventually(lambda: nobody(polled), message="its call has put off the time")


async def nobody(polled: Callable[[Sequence[int]], Awaitable[list[str]]]) -> bool:
    return await polled(range(16)) == []


async def test_what_a_silent_client_asks_for_brings_its_run_back(at: World) -> None:
    executor = at.executor(answer=lambda start: SUCCEEDED)
    await executor.connect()
    program = await started(at, idle_s=1.0)
    await program.ended()
    await program.request({"a": function()})
    assert states(await program.wait("a")) == ["SUCCEEDED"]
    assert (await types(program))[1:4] == ["RUN_HALTED", "RUN_RESUMED", "EFFECT_REQUESTED"]


async def test_resuming_a_halted_run_gives_its_client_time_again(at: World) -> None:
    program = await started(at, idle_s=1.0)
    await program.ended()
    await at.client.ResumeRun(pb.ResumeRunRequest(run_id=program.run_id))
    assert (await at.row(program.run_id, "RUN_RESUMED")).data["state"] == "RUN_STATE_RUNNING"
    await eventually(lambda: at.rows(program.run_id, "RUN_HALTED"), message="the client is still silent")


async def test_a_client_that_waits_is_not_silent(at: World) -> None:
    program = await started(at, idle_s=4.0)
    await program.request({"asked": external("yes")})
    for _ in range(12):
        await program.wait("asked", max_wait_s=0.5)
    assert (await program.run()).state == RUN_STATE.RUN_STATE_RUNNING
    assert "RUN_HALTED" not in await types(program)


async def test_an_operator_halts_a_run_that_its_client_cannot_bring_back(at: World) -> None:
    executor = at.executor(answer=lambda start: SUCCEEDED)
    await executor.connect()
    program = await started(at)
    await at.client.HaltRun(pb.HaltRunRequest(run_id=program.run_id, reason="look"))
    assert states(await program.request({"a": function()})) == ["QUEUED"]
    again = await started(at, key=(await program.run()).key)
    assert (await again.run()).state == RUN_STATE.RUN_STATE_HALTED
    await refused(again.finish(), PRECONDITION, "RUN_HALTED")
    await at.client.ResumeRun(pb.ResumeRunRequest(run_id=program.run_id))
    assert states(await again.wait("a")) == ["SUCCEEDED"]


async def test_a_client_has_child_runs(at: World) -> None:
    await at.restart(child_processes.ALL)
    executor = at.executor(answer=lambda start: SUCCEEDED | {"value": "done"})
    await executor.connect()
    program = await started(at)
    given = {"item": {"name": "a", "size": 1}}
    await program.request({
        "kid": spec(run={"process": "child", "input": given}),
        "failing": spec(run={"process": "child", "input": given | {"fail": "no"}}),
        "nobody": spec(run={"process": "nobody"}),
    })  # fmt: skip
    kid, failing, nobody = await program.wait("kid", "failing", "nobody")
    assert kid.result.value.value.string_value == "a: done"
    assert failing.error.reason == journal_pb2.EFFECT_REASON_CHILD_RUN_FAILED
    assert "nobody" in nobody.error.message
    at.runs += [row.data["child_run_id"] for row in await at.rows(program.run_id, "CHILD_RUN_STARTED")]


async def test_a_failure_ends_the_child_runs_of_a_client(at: World) -> None:
    await at.restart(child_processes.ALL)
    program = await started(at)
    await program.request({"kid": spec(run={"process": "child", "input": {"item": {"name": "a", "size": 1}}})})
    await program.finish(error="no")
    assert (await program.ended()).state == RUN_STATE.RUN_STATE_FAILED
    assert states(await program.wait("kid")) == ["CANCELLED"]


async def test_two_batches_at_a_time_of_many_runs(at: World) -> None:
    executor = at.executor(answer=lambda start: SUCCEEDED)
    await executor.connect()
    programs = [await started(at) for _ in range(4)]
    keys = [f"k{n}" for n in range(60)]
    batch = {key: function() for key in keys}
    await asyncio.gather(*(program.request(batch) for program in programs for _ in range(2)))
    for program in programs:
        assert states(await program.wait(*keys)) == ["SUCCEEDED"] * len(keys)
    assert len(executor.starts) == len(programs) * len(keys), "each once"


async def test_a_group_is_declared_alike_by_all_requests_of_a_run(at: World) -> None:
    program = await started(at)
    grouped = {"id": "g", "max_concurrency": 2, "strategy": "GROUP_STRATEGY_ADAPTIVE"}
    await program.request({"a": function(group=grouped)})
    await program.request({"b": function(group=grouped), "c": function(group={**grouped, "id": "h"})})
    for other in ({**grouped, "max_concurrency": 3}, {"id": "g", "max_concurrency": 2}):
        again = program.request({"d": function(group=other)})
        info = await refused(again, grpc.StatusCode.ALREADY_EXISTS, "GROUP_CONFLICT")
        assert (info.metadata["key"], info.metadata["declared"]) == ("d", "ADAPTIVE up to 2")
    await program.request({"a": function(group={**grouped, "max_concurrency": 9})})  # recorded: answered from there
    mixed = {"e": function(group={"id": "i", "max_concurrency": 1}), "f": function(group={"id": "i"})}
    await refused(program.request(mixed), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    unbounded = {"e": function(group={"id": "i", "strategy": "GROUP_STRATEGY_ADAPTIVE"})}
    await refused(program.request(unbounded), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_the_session_of_an_earlier_effect_is_taken_from_its_result(at: World) -> None:
    session = {"harness": "codex", "session_id": "s-1", "executor_id": "x"}
    executor = at.executor(harnesses=["codex"], pools={"agents": (4, 4)})
    await executor.connect()
    program = await started(at)
    agent = {"harness": "codex", "prompt": "do"}
    [first] = await program.request({"first": spec(agent=agent)})
    second = {"second": spec(agent=agent, continue_from=first.effect_id)}
    await refused(program.request(second), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")  # not settled
    await executor.settle(await executor.start_of("first"), result={"session": session}, **FAILED)
    await program.wait("first")
    await program.request(second)
    assert orjson.loads((await executor.start_of("second")).spec_json)["continue_session"] == session
    nowhere = {"third": spec(agent=agent, continue_from=str(uuid.uuid4()))}
    await refused(program.request(nowhere), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_a_client_may_call_any_replica(at: World, database_url: str) -> None:
    """The standby holds an executor and no run: it dispatches, and the owner ends what closes."""
    async with world(database_url, scheduler_id="standby") as standby:
        executor = standby.executor("at-standby")
        await executor.connect()
        program = await ClientProgram.start(standby.client)
        at.runs.append(program.run_id)
        await program.request({"a": function(), "asked": external("yes")})
        await executor.settle(await executor.start_of("a"), value=1)
        assert states(await program.wait("a")) == ["SUCCEEDED"]
        due = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=0.2)
        await program.request({"nap": spec(timer={"fire_at": due.isoformat().replace("+00:00", "Z")})})
        assert states(await program.wait("nap")) == ["SUCCEEDED"]
        assert (await program.finish(wait=True)).state == RUN_STATE.RUN_STATE_CLOSING
        await program.resolve("asked")
        assert (await program.ended()).state == RUN_STATE.RUN_STATE_COMPLETED
        await eventually(lambda: at.engine.loop.runs.get(program.run_id) is None, message="its owner holds on to it")


@bb.process("clients/steps")
async def steps(ctx: bb.Context) -> list[Any]:
    """What a run that reuses another one asks for: some of it again, some of it new."""
    first = await ctx.run(bb.function("probe", 1), key="first")
    told = await ctx.run(bb.external("?"), key="told")
    return [first, told, await ctx.run(bb.function("probe", 2), key="second")]


@pytest.mark.invariant("I8")
async def test_a_process_takes_over_what_succeeded_and_replays_it(at: World) -> None:
    known = {steps.name: steps}
    await at.restart(known)
    executor = at.executor(answer=lambda start: SUCCEEDED | {"value": start.run_id})
    await executor.connect()
    old = await at.create(steps.name)
    await at.row(old, "EFFECT_REQUESTED", "told")
    await at.cancel(old)
    await at.result(old)
    answer = await at.client.CreateRun(pb.CreateRunRequest(process=steps.name, reuse_from=old))
    run_id = answer.run.run_id
    at.runs.append(run_id)
    await at.row(run_id, "EFFECT_REQUESTED", "told")
    await at.restart(known)  # replayed: the reused result is fed in its place again
    executor = at.executor("y", answer=lambda start: SUCCEEDED | {"value": start.run_id})
    await executor.connect()
    request = pb.ResolveEffectRequest(effect=pb.EffectName(run_id=run_id, key="told"))
    request.succeeded.value.string_value = "go"
    await at.client.ResolveEffect(request)
    assert await at.value(run_id) == [old, "go", run_id]
    assert [start.effect_key for start in executor.starts] == ["second"]
    rows = await at.rows(run_id)
    assert [row.type for row in rows if row.key == "first"] == ["EFFECT_REQUESTED", "EFFECT_REUSED"]
