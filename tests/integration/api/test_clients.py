"""Client-driven runs over the wire: what CreateRun, RequestEffects and WaitEffects answer."""

import uuid

import grpc
import pytest

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api import limits
from tests.integration.api.scene import NOWHERE, Scene, refused
from tests.support.client_program import ClientProgram, external, fresh_key, spec


@pytest.mark.invariant("I14")
async def test_a_repetition_with_its_request_id_is_the_same_start(at: Scene) -> None:
    for key in (fresh_key(), ""):
        ids = [f"00000000-0000-4000-8000-{n:012d}" for n in range(2)]
        if not key:
            ids = [ids[0].replace("8000", "9000")]
        starts = [await ClientProgram.start(at.client, key, request_id=name) for name in ids for _ in range(3)]
        assert [(start.epoch, start.created) for start in starts[:3]] == [(1, True), (1, False), (1, False)]
        assert {start.epoch for start in starts[3:]} <= {2}
        assert len({start.run_id for start in starts}) == 1


async def test_a_run_of_a_client_says_that_it_is_one(at: Scene) -> None:
    program = await ClientProgram.start(at.client, idle_s=90.0, labels={"team": "web"})
    run = await program.run()
    assert (run.client_driven, run.process, run.labels["team"]) == (True, "", "web")
    assert run.waiting_on[0].cause == pb.WaitingOn.CAUSE_CLIENT
    [created] = await program.events()
    assert created.run_created.client_driven
    assert created.run_created.idle_timeout.seconds == 90


async def test_a_key_is_either_a_clients_or_a_processes(at: Scene) -> None:
    key = fresh_key()
    await at.create(key=key)
    await refused(ClientProgram.start(at.client, key), grpc.StatusCode.ALREADY_EXISTS, "RUN_KEY_CONFLICT")


async def test_only_a_run_of_the_namespace_is_reused(at: Scene) -> None:
    elsewhere = await at.create(namespace="one")
    for run_id in (NOWHERE, elsewhere):
        for call in (
            ClientProgram.start(at.client, reuse_from=run_id),
            at.client.CreateRun(pb.CreateRunRequest(process="p", reuse_from=run_id)),
        ):
            await refused(call, grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")


async def test_what_succeeded_in_an_earlier_run_comes_with_the_answer(at: Scene) -> None:
    old = await ClientProgram.start(at.client)
    await old.request({"ask": external("yes", "no"), "other": external("yes")})
    await old.resolve("ask")
    new = await ClientProgram.start(at.client, reuse_from=old.run_id)
    ask, other = await new.request({"ask": external("yes", "no"), "other": external("yes")})
    assert (ask.state, ask.result.choice) == (journal_pb2.EFFECT_STATE_SUCCEEDED, "yes")
    assert other.state == journal_pb2.EFFECT_STATE_WAITING
    [reused] = await new.events("EFFECT_REUSED")
    assert (reused.effect_reused.from_run_id, reused.effect_reused.from_effect_id) == (old.run_id, old_id(old, "ask"))
    watched = at.client.WatchEffect(pb.WatchEffectRequest(effect=pb.EffectName(effect_id=ask.effect_id), after_seq=0))
    frames = [frame.WhichOneof("frame") async for frame in watched]
    assert frames == ["event", "event", "end"]


def old_id(program: ClientProgram, key: str) -> str:
    return str(uuid.uuid5(uuid.UUID(program.run_id), key))


@pytest.mark.invariant("I11")
async def test_an_answer_names_every_effect_however_large_they_are(at: Scene) -> None:
    program = await ClientProgram.start(at.client)
    keys = [f"k{n}" for n in range(6)]
    for key in keys:
        await program.request({key: spec(external={"prompt": "?", "data": {"text": "x" * 600_000}})})
    for key in keys:
        request = pb.ResolveEffectRequest(effect=pb.EffectName(run_id=program.run_id, key=key))
        request.succeeded.value.string_value = "y" * 900_000
        await at.client.ResolveEffect(request)
    answer = await at.client.WaitEffects(pb.WaitEffectsRequest(run_id=program.run_id, keys=keys[::-1]))
    assert answer.ByteSize() <= limits.ANSWER_BYTES_MAX
    assert [effect.key for effect in answer.effects] == keys[::-1]
    assert {effect.state for effect in answer.effects} == {journal_pb2.EFFECT_STATE_SUCCEEDED}
    assert answer.effects[0].HasField("result")
    name = pb.EffectName(run_id=program.run_id, key=keys[0])
    one = (await at.client.GetEffect(pb.GetEffectRequest(effect=name))).effect
    assert one.HasField("result")
    assert one.HasField("spec")
