"""Effects over the wire: listed, waited for, cancelled, answered; each says why it does not go on."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Value

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import operator_service_pb2 as operator_pb
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.integration.api.scene import INCARNATION, Row, Scene, effect_id_of, external, refused, shell
from tests.support.eventually import eventually

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


def named(effect_id: str) -> pb.EffectName:
    return pb.EffectName(effect_id=effect_id)


async def get(at: Scene, effect_id: str) -> pb.Effect:
    return (await at.client.GetEffect(pb.GetEffectRequest(effect=named(effect_id)))).effect


async def test_an_effect_is_found_by_id_and_by_key_with_its_spec_and_result(at: Scene) -> None:
    await at.connect_executor()
    run_id = await at.create()
    effect_id = await at.request(run_id, "build", shell("make", labels={"a": "b"}), dispatch=True)
    await at.executor_call("attempts_started_v1", run_id, effect_id, pid=7)
    effect = await get(at, effect_id)
    assert (effect.key, effect.state, effect.attempt) == ("build", journal_pb2.EFFECT_STATE_RUNNING, 1)
    assert (effect.executor_id, effect.harness, effect.labels["a"]) == ("x", "shell", "b")
    assert effect.spec.shell.command_line == "make"
    assert effect.waiting_on.cause == pb.WaitingOn.CAUSE_RUNNING
    assert effect.poll_after.seconds == 5
    settled = await at.executor_call(
        "attempts_settle_v1", run_id, effect_id, executor_id="x", outcome="succeeded", elapsed_s=1.5,
        result={"exit_code": 0, "stdout": {"total_bytes": 2, "tail": "ok"}}, death="DEATH_PROVEN", final=False,
    )  # fmt: skip
    by_key = pb.GetEffectRequest(effect=pb.EffectName(run_id=run_id, key="build"))
    effect = (await at.client.GetEffect(by_key)).effect
    assert (effect.state, effect.settle_seq) == (journal_pb2.EFFECT_STATE_SUCCEEDED, settled["seq"])
    assert (effect.result.stdout.tail, effect.death) == ("ok", journal_pb2.DEATH_PROVEN)
    assert effect.elapsed.ToMilliseconds() == 1500
    assert not effect.HasField("waiting_on")
    basic = (await at.client.GetEffect(pb.GetEffectRequest(effect=named(effect_id), view=pb.VIEW_BASIC))).effect
    assert not basic.HasField("result")
    assert not basic.HasField("spec")


async def test_an_eta_makes_the_poll_hint_shorter(at: Scene) -> None:
    await at.connect_executor()
    run_id = await at.create()
    effect_id = await at.request(run_id, "e", shell(), dispatch=True)
    await at.executor_call(
        "attempts_progress_v1", run_id, effect_id, ordinal=1, durable=True, progress={"ordinal": 1, "eta": "2s"}
    )
    effect = await get(at, effect_id)
    assert 0 < effect.poll_after.ToTimedelta().total_seconds() <= 2
    assert effect.progress.ordinal == 1


async def test_an_eta_comes_from_the_past_until_the_child_says_one(at: Scene) -> None:
    await at.connect_executor()
    run_id = await at.create()
    effect_id = await at.request(run_id, "e", shell(), dispatch=True)
    assert not (await get(at, effect_id)).progress.HasField("eta"), "without history there is no basis"
    at.engine.expected["default", (await get(at, effect_id)).name] = 6000.0
    progress = (await get(at, effect_id)).progress
    assert (progress.eta_estimated, 5000 < progress.eta.ToTimedelta().total_seconds() <= 6000) == (True, True)
    told = {"ordinal": 1, "eta": "3000s", "percent": 10}
    await at.executor_call("attempts_progress_v1", run_id, effect_id, ordinal=1, durable=True, progress=told)
    progress = (await get(at, effect_id)).progress
    assert (progress.eta_estimated, 2000 < progress.eta.ToTimedelta().total_seconds() < 3000) == (False, True)
    [listed] = (await at.client.ListEffects(pb.ListEffectsRequest(run_id=run_id))).effects
    assert 2000 < listed.progress.eta.ToTimedelta().total_seconds() < 3000


@pytest.mark.parametrize(
    ("spec", "dispatch", "cause"),
    [
        (external(), False, pb.WaitingOn.CAUSE_EXTERNAL),
        ({"name": "f", "function": {"function": "a.b"}}, False, pb.WaitingOn.CAUSE_NO_EXECUTOR),
        (shell(), False, pb.WaitingOn.CAUSE_SLOTS_FULL),
        (shell(executor_labels={"gpu": "1"}), False, pb.WaitingOn.CAUSE_NO_EXECUTOR),
        (shell(sleep_until="2099-01-01T00:00:00Z"), False, pb.WaitingOn.CAUSE_NOT_BEFORE),
        ({"name": "r", "run": {"process": "p"}}, False, pb.WaitingOn.CAUSE_CHILD_RUN),
        ({"name": "t", "timer": {"fire_at": "2099-01-01T00:00:00Z"}}, False, pb.WaitingOn.CAUSE_TIMER),
        (shell(), True, pb.WaitingOn.CAUSE_RUNNING),
    ],
)
async def test_why_an_effect_does_not_go_on(
    at: Scene, spec: Row, dispatch: bool, cause: pb.WaitingOn.Cause.ValueType
) -> None:
    await at.connect_executor()
    run_id = await at.create()
    effect_id = await at.request(run_id, "e", spec, dispatch=dispatch)
    waiting = (await get(at, effect_id)).waiting_on
    assert pb.WaitingOn.Cause.Name(waiting.cause) == pb.WaitingOn.Cause.Name(cause)
    assert waiting.message


async def test_a_full_group_and_an_absent_executor_are_named(at: Scene) -> None:
    await at.connect_executor()
    run_id = await at.create()
    grouped = shell(group={"id": "g", "max_concurrency": 1})
    first = await at.request(run_id, "one", grouped, dispatch=True)
    second = await at.request(run_id, "two", grouped, dispatch=True)
    assert (await get(at, second)).waiting_on.cause == pb.WaitingOn.CAUSE_GROUP_LIMIT
    await at.engine.journal.executor_gone("x", at.session_no)

    async def away() -> bool:
        return (await get(at, first)).waiting_on.cause == pb.WaitingOn.CAUSE_EXECUTOR_AWAY

    await eventually(away)  # what is known of executors may be half a second old


async def test_pages_of_effects_show_each_once_newest_first(at: Scene) -> None:
    run_id = await at.create()
    made = [await at.request(run_id, f"e{n}", shell() if n % 2 else external()) for n in range(7)]
    seen: list[str] = []
    token = ""
    while True:
        page = await at.client.ListEffects(pb.ListEffectsRequest(run_id=run_id, page_size=2, page_token=token))
        seen += [effect.effect_id for effect in page.effects]
        if not (token := page.next_page_token):
            break
    assert seen == made[::-1]
    waiting = await at.client.ListEffects(
        pb.ListEffectsRequest(kinds=[journal_pb2.EFFECT_KIND_EXTERNAL], states=[journal_pb2.EFFECT_STATE_WAITING])
    )
    assert {effect.key for effect in waiting.effects} == {"e0", "e2", "e4", "e6"}


async def test_waiting_for_any_and_for_all(at: Scene) -> None:
    run_id = await at.create()
    first = await at.request(run_id, "a", external())
    second = await at.request(run_id, "b", external())

    async def wait(mode: pb.WaitEffectsRequest.Mode.ValueType) -> pb.WaitEffectsResponse:
        return await at.client.WaitEffects(pb.WaitEffectsRequest(run_id=run_id, keys=["b", "a"], mode=mode))

    any_of_them = asyncio.create_task(wait(pb.WaitEffectsRequest.MODE_ANY))
    all_of_them = asyncio.create_task(wait(pb.WaitEffectsRequest.MODE_ALL))
    await asyncio.sleep(0.1)
    assert not any_of_them.done()
    await at.client.ResolveEffect(
        pb.ResolveEffectRequest(effect=named(first), succeeded=pb.ExternalSuccess(value=Value(number_value=1)))
    )
    answer = await asyncio.wait_for(any_of_them, 30)
    assert [effect.key for effect in answer.effects] == ["b", "a"]
    assert answer.effects[1].result.value.value.number_value == 1
    assert not all_of_them.done()
    await at.client.ResolveEffect(pb.ResolveEffectRequest(effect=named(second), failed=pb.ExternalFailure()))
    assert not (await asyncio.wait_for(all_of_them, 30)).timed_out
    short = pb.WaitEffectsRequest(run_id=run_id, keys=["a", "nope", "no"], max_wait=Duration(seconds=1))
    info = await refused(at.client.WaitEffects(short), grpc.StatusCode.NOT_FOUND, "EFFECT_NOT_FOUND")
    assert (info.metadata["run_id"], info.metadata["key"], info.metadata["count"]) == (run_id, "nope", "2")


@pytest.mark.invariant("I14")
async def test_an_answer_may_be_repeated_and_not_changed(at: Scene) -> None:
    run_id = await at.create()
    effect_id = await at.request(run_id, "ask", external("yes", "no"))

    def answer(choice: str, actor: str = "ann") -> Any:
        success = pb.ExternalSuccess(choice=choice)
        return at.client.ResolveEffect(pb.ResolveEffectRequest(effect=named(effect_id), succeeded=success, actor=actor))

    await refused(answer("maybe"), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    for actor in ("ann", "ann", "bob"):
        effect = (await answer("yes", actor)).effect
        assert (effect.state, effect.result.choice) == (journal_pb2.EFFECT_STATE_SUCCEEDED, "yes")
    await refused(answer("no"), PRECONDITION, "EFFECT_SETTLED")
    failed = pb.ResolveEffectRequest(effect=named(effect_id), failed=pb.ExternalFailure(message="no"))
    await refused(at.client.ResolveEffect(failed), PRECONDITION, "EFFECT_SETTLED")
    events = (await at.client.ReadJournal(pb.ReadJournalRequest(run_id=run_id))).events
    resolved = [event for event in events if event.HasField("effect_resolved")]
    assert [event.effect_resolved.resolved_by for event in resolved] == ["ann"]


async def test_an_executors_effect_is_not_answered_from_outside(at: Scene) -> None:
    run_id = await at.create()
    effect_id = await at.request(run_id, "sh", shell())
    call = at.client.ResolveEffect(pb.ResolveEffectRequest(effect=named(effect_id), succeeded=pb.ExternalSuccess()))
    await refused(call, PRECONDITION, "EFFECT_HAS_EXECUTOR")


@pytest.mark.invariant("I6", "I14")
async def test_a_cancel_is_durable_and_may_be_repeated(at: Scene) -> None:
    await at.connect_executor()
    run_id = await at.create()
    queued = await at.request(run_id, "queued", shell())
    running = await at.request(run_id, "running", shell(), dispatch=True)
    for effect_id, state in ((queued, "CANCELLED"), (running, "CANCELLING")):
        for _ in range(3):
            request = pb.CancelEffectRequest(effect=named(effect_id), reason="enough")
            effect = (await at.client.CancelEffect(request)).effect
            assert journal_pb2.EffectState.Name(effect.state) == f"EFFECT_STATE_{state}"
            assert effect.cancel_reason == journal_pb2.EFFECT_REASON_CANCELLED_BY_USER
    events = (await at.client.ReadJournal(pb.ReadJournalRequest(run_id=run_id))).events
    assert sum(event.HasField("effect_cancel_requested") for event in events) == 2
    assert sum(event.HasField("effect_cancelled") for event in events) == 1


async def test_a_settled_effect_cannot_be_cancelled(at: Scene) -> None:
    run_id = await at.create()
    effect_id = await at.request(run_id, "ask", external())
    await at.client.ResolveEffect(pb.ResolveEffectRequest(effect=named(effect_id), succeeded=pb.ExternalSuccess()))
    call = at.client.CancelEffect(pb.CancelEffectRequest(effect=named(effect_id)))
    await refused(call, PRECONDITION, "EFFECT_SETTLED")


async def test_effects_are_listed_by_when_they_were_asked_for(at: Scene) -> None:
    run_id = await at.create()
    for key in ("a", "b", "c"):
        await at.request(run_id, key, external())
    listed = (await at.client.ListEffects(pb.ListEffectsRequest(run_id=run_id))).effects
    times = {effect.key: effect.request_time for effect in listed}
    between = pb.ListEffectsRequest(run_id=run_id, requested_after=times["b"], requested_before=times["c"])
    assert [effect.key for effect in (await at.client.ListEffects(between)).effects] == ["b"]
    after = pb.ListEffectsRequest(run_id=run_id, requested_after=times["b"], page_size=1)
    page = await at.client.ListEffects(after)
    after.page_token = page.next_page_token
    assert [e.key for e in (*page.effects, *(await at.client.ListEffects(after)).effects)] == ["c", "b"]
    after.ClearField("requested_after")
    await refused(at.client.ListEffects(after), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_executors_are_listed_with_what_they_can_do(at: Scene) -> None:
    await at.connect_executor(capabilities=["shell", "function/a.b", "agent/codex"])
    (executor,) = (await at.operator.ListExecutors(operator_pb.ListExecutorsRequest())).executors
    assert (executor.executor_id, executor.incarnation, executor.holder) == ("x", INCARNATION, "stub")
    assert executor.state == operator_pb.Executor.STATE_CONNECTED
    assert [item.name for item in executor.harnesses] == ["codex", "function", "shell"]
    assert (list(executor.functions), executor.pools[0].slots) == (["a.b"], 2)
    lost = operator_pb.ListExecutorsRequest(states=[operator_pb.Executor.STATE_LOST])
    assert not (await at.operator.ListExecutors(lost)).executors


async def test_a_namespace_does_not_see_the_effects_of_another(at: Scene) -> None:
    run_id = await at.create(namespace="one")
    effect_id = await at.request(run_id, "e", external())
    assert effect_id == effect_id_of(run_id, "e")
    await refused(
        at.client.GetEffect(pb.GetEffectRequest(effect=named(effect_id))), grpc.StatusCode.NOT_FOUND, "EFFECT_NOT_FOUND"
    )
    assert not (await at.client.ListEffects(pb.ListEffectsRequest())).effects
