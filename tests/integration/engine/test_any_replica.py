"""Any replica answers any client: every rpc goes to one that does not own the run, and takes effect all the same."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import json_format

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import dispatch_service_pb2 as dispatch_pb
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.journal import shard_of
from tests.integration.engine import control_processes
from tests.integration.engine.executor import CANCELLED, ScriptedExecutor
from tests.integration.engine.pairs import two
from tests.integration.engine.world import World
from tests.support.client_program import ClientProgram, external, function
from tests.support.eventually import eventually
from tests.support.services import result_value

pytestmark = pytest.mark.timeout(300)

STATE = journal_pb2.RunState
_RPCS = {method.name for method in pb.DESCRIPTOR.services_by_name["SchedulerService"].methods}
_LARGE = "x" * 100_000


class Elsewhere:
    """Client calls of the replica that owns nothing of what is asked for; it notes which ones were made."""

    def __init__(self, owner: World, other: World) -> None:
        self.owner = owner
        self.other = other
        self.called: set[str] = set()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        self.called.add(name)
        method: Callable[..., Any] = getattr(self.other.client, name)
        return lambda request, **options: method(request, **({"timeout": 30} | options))

    def owns(self, run_id: str) -> bool:
        return shard_of(run_id) in self.owner.engine.shards.epochs

    async def create(self, process: str, **given: Any) -> str:
        """A run that the other one creates and the owner owns."""
        while True:
            request = pb.CreateRunRequest(process=process)
            json_format.ParseDict(given, request.input)
            run_id = str((await self.CreateRun(request)).run.run_id)
            if self.owns(run_id):
                return run_id
            await self.other.cancel(run_id)

    async def program(self) -> ClientProgram:
        """A client-driven run, likewise; all its calls go to the other one."""
        while True:
            made = await ClientProgram.start(self)  # type: ignore[arg-type]  # calls as the stub does
            if self.owns(made.run_id):
                return made
            await made.finish("not this one")

    async def ended(self, run_id: str) -> pb.Run:
        while (answer := await self.WaitRun(pb.WaitRunRequest(run_id=run_id))).timed_out:
            continue
        return answer.run  # type: ignore[no-any-return]


@pytest.mark.invariant("I6", "I9")
async def test_every_rpc_of_clients_takes_effect_through_a_replica_that_does_not_own_the_run(database_url: str) -> None:
    known = control_processes.ALL
    async with two(database_url, known=known, poll_seconds=0.3) as (owner, other):
        at = Elsewhere(owner, other)
        executor = owner.executor()
        await executor.connect()
        for scenario in (_watched, _controlled, _cancelled, _driven, _read):
            await scenario(at, executor)
        assert at.called == _RPCS, "an rpc that is new wants a scenario here"


async def _start(executor: ScriptedExecutor, run_id: str, key: str) -> dispatch_pb.StartAttempt:
    def look() -> list[dispatch_pb.StartAttempt]:
        return [start for start in executor.starts if (start.run_id, start.effect_key) == (run_id, key)]

    return (await eventually(look, timeout=30, message=f"no start of {key}"))[0]


async def _watched(at: Elsewhere, executor: ScriptedExecutor) -> None:
    """A run and its effect are followed live, and read once it has ended."""
    run_id = await at.create("steps", count=1)
    start = await _start(executor, run_id, "step/0")
    name = pb.EffectName(run_id=run_id, key="step/0")
    run_frames = aiter(at.WatchRun(pb.WatchRunRequest(run_id=run_id)))
    effect_frames = aiter(at.WatchEffect(pb.WatchEffectRequest(effect=name)))
    assert (await anext(run_frames)).snapshot.run.run_id == run_id
    assert (await anext(effect_frames)).snapshot.effect_id == start.effect_id
    assert await executor.settle(start, value="settled") == "ok"
    types = [frame.event.type async for frame in run_frames if frame.HasField("event")]
    assert types[-1] == journal_pb2.EVENT_TYPE_RUN_COMPLETED
    assert [frame async for frame in effect_frames][-1].end.reason == pb.WatchEnd.REASON_EFFECT_SETTLED
    run = await at.ended(run_id)
    assert result_value(run) == ["settled"]
    assert (await at.GetRun(pb.GetRunRequest(run_id=run_id))).run.state == STATE.RUN_STATE_COMPLETED
    assert run_id in {listed.run_id for listed in (await at.ListRuns(pb.ListRunsRequest())).runs}
    assert (await at.GetEffect(pb.GetEffectRequest(effect=name))).effect.settle_seq
    assert [e.key for e in (await at.ListEffects(pb.ListEffectsRequest(run_id=run_id))).effects] == ["step/0"]
    journal = await at.ReadJournal(pb.ReadJournalRequest(run_id=run_id, page_size=1000))
    assert journal.head_seq == run.head_seq == len(journal.events)


async def _controlled(at: Elsewhere, _: ScriptedExecutor) -> None:
    """A run is told something, halted, resumed, and told to stop."""
    run_id = await at.create("listens")
    await at.SignalRun(_said(run_id, "before"))
    await at.HaltRun(pb.HaltRunRequest(run_id=run_id, reason="look"))
    assert (await at.ended(run_id)).state == STATE.RUN_STATE_HALTED
    await at.ResumeRun(pb.ResumeRunRequest(run_id=run_id))
    await at.SignalRun(_said(run_id, "stop"))
    run = await at.ended(run_id)
    assert run.state == STATE.RUN_STATE_COMPLETED, run
    assert result_value(run) == ["before"]


def _said(run_id: str, text: str) -> pb.SignalRunRequest:
    request = pb.SignalRunRequest(run_id=run_id, name="say", request_id=str(uuid.uuid4()))
    request.value.string_value = text
    return request


async def _cancelled(at: Elsewhere, executor: ScriptedExecutor) -> None:
    """The cancel of a run reaches what runs for it."""
    run_id = await at.create("one")
    start = await _start(executor, run_id, "it")
    await at.CancelRun(pb.CancelRunRequest(run_id=run_id, reason="enough"))
    await _cancel_of(executor, start)
    await executor.settle(start, **CANCELLED)
    assert (await at.ended(run_id)).state == STATE.RUN_STATE_CANCELLED


async def _cancel_of(executor: ScriptedExecutor, start: dispatch_pb.StartAttempt) -> None:
    await eventually(
        lambda: [cancel for cancel in executor.cancels if cancel.ref.effect_id == start.effect_id],
        timeout=30,
        message="no cancel has come",
    )


async def _driven(at: Elsewhere, executor: ScriptedExecutor) -> None:
    """A client's run: effects asked for, cancelled, answered by somebody, waited for; then it is finished."""
    client = await at.program()
    await client.request({"call": function(), "late": function(), "ask": external("yes", "no")})
    start = await _start(executor, client.run_id, "call")
    late = await _start(executor, client.run_id, "late")
    await at.CancelEffect(pb.CancelEffectRequest(effect=pb.EffectName(run_id=client.run_id, key="late")))
    await _cancel_of(executor, late)
    await executor.settle(late, **CANCELLED)
    await client.resolve("ask", "yes")
    assert await executor.settle(start, value=1) == "ok"
    settled = await client.wait("call", "late", "ask")
    states = [journal_pb2.EffectState.Name(effect.state).removeprefix("EFFECT_STATE_") for effect in settled]
    assert states == ["SUCCEEDED", "CANCELLED", "SUCCEEDED"]
    await client.finish("done")
    assert (await at.ended(client.run_id)).state == STATE.RUN_STATE_COMPLETED


async def _read(at: Elsewhere, executor: ScriptedExecutor) -> None:
    """What is large is streamed; and who answers says who it is."""
    run_id = await at.create("one")
    start = await _start(executor, run_id, "it")
    assert await executor.settle(start, blob_text=f'"{_LARGE}"') == "ok"
    run = await at.ended(run_id)
    blob = at.ReadBlob(pb.ReadBlobRequest(run_id=run_id, digest=run.result.blob.digest))
    assert b"".join([frame.data async for frame in blob]) == f'"{_LARGE}"'.encode()
    name = pb.EffectName(run_id=run_id, key="it")
    output = [
        frame
        async for frame in at.StreamOutput(
            pb.StreamOutputRequest(effect=name, attempt=1, stream=executor_pb.OUTPUT_STREAM_STDOUT)
        )
    ]
    assert output[-1].HasField("end"), output
    total = (await at.ListUsage(pb.ListUsageRequest(run_id=run_id))).total
    assert total.open_attempts == 0
    info = await at.GetServerInfo(pb.GetServerInfoRequest())
    assert info.scheduler_id == at.other.engine.scheduler_id
