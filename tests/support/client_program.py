"""A client of client-driven runs, as a developer writes it who has the generated stubs and nothing else."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from google.protobuf import json_format

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from backburner.scheduler.v1 import scheduler_service_pb2_grpc as pb_grpc

_SECONDS = 20.0
STATE = journal_pb2.EffectState
RUN_STATE = journal_pb2.RunState


def spec(**fields: Any) -> journal_pb2.EffectSpec:
    """An EffectSpec from its JSON fields."""
    return json_format.ParseDict(fields, journal_pb2.EffectSpec())


def function(name: str = "probe", *args: Any, **fields: Any) -> journal_pb2.EffectSpec:
    """A call of a function of the executors."""
    return spec(function={"function": name, "args": list(args)}, **fields)


def external(*choices: str, **fields: Any) -> journal_pb2.EffectSpec:
    """A question to somebody."""
    return spec(external={"prompt": "Deploy?", "choices": list(choices)}, **fields)


@dataclass(frozen=True, slots=True)
class ClientProgram:
    """One start of a client program: it holds a run and an epoch."""

    stub: pb_grpc.SchedulerServiceStub
    run_id: str
    epoch: int
    created: bool
    head_seq: int

    @classmethod
    async def start(
        cls,
        stub: pb_grpc.SchedulerServiceStub,
        key: str = "",
        *,
        idle_s: float | None = None,
        request_id: str = "",
        **fields: Any,
    ) -> Self:
        """CreateRun: the run with this key, or a new one."""
        request = pb.CreateRunRequest(key=key, request_id=request_id, **fields)
        request.client.SetInParent()
        if idle_s is not None:
            request.client.idle_timeout.FromMilliseconds(round(idle_s * 1000))
        answer = await stub.CreateRun(request, timeout=_SECONDS)
        return cls(stub, answer.run.run_id, answer.client_epoch, answer.created, answer.run.head_seq)

    async def request(
        self, effects: Mapping[str, journal_pb2.EffectSpec], *, use_recorded: bool = False
    ) -> Sequence[pb.Effect]:
        """RequestEffects: a batch, by key."""
        conflict = pb.EffectRequest.ON_CONFLICT_USE_RECORDED if use_recorded else pb.EffectRequest.ON_CONFLICT_FAIL
        asked = [pb.EffectRequest(key=key, spec=one, on_conflict=conflict) for key, one in effects.items()]
        request = pb.RequestEffectsRequest(run_id=self.run_id, client_epoch=self.epoch, effects=asked)
        return (await self.stub.RequestEffects(request, timeout=_SECONDS)).effects

    async def wait(
        self, *keys: str, any_of_them: bool = False, max_wait_s: float | None = None, as_client: bool = False
    ) -> Sequence[pb.Effect]:
        """WaitEffects, again and again until they have settled, or once with `max_wait_s`."""
        mode = pb.WaitEffectsRequest.MODE_ANY if any_of_them else pb.WaitEffectsRequest.MODE_ALL
        request = pb.WaitEffectsRequest(
            run_id=self.run_id, keys=keys, mode=mode, client_epoch=self.epoch if as_client else 0
        )
        if max_wait_s is not None:
            request.max_wait.FromMilliseconds(round(max_wait_s * 1000))
        while True:
            answer = await self.stub.WaitEffects(request, timeout=_SECONDS)
            if max_wait_s is not None or not answer.timed_out:
                return answer.effects

    async def finish(self, value: Any = None, *, error: str = "", wait: bool = False) -> pb.Run:
        """FinishRun."""
        request = pb.FinishRunRequest(run_id=self.run_id, client_epoch=self.epoch, wait=wait)
        if error:
            request.failed.message = error
        else:
            json_format.ParseDict(value, request.succeeded)
        return (await self.stub.FinishRun(request, timeout=_SECONDS)).run

    async def run(self) -> pb.Run:
        """GetRun."""
        return (await self.stub.GetRun(pb.GetRunRequest(run_id=self.run_id), timeout=_SECONDS)).run

    async def ended(self) -> pb.Run:
        """WaitRun, until it has ended or is parked."""
        while True:
            answer = await self.stub.WaitRun(pb.WaitRunRequest(run_id=self.run_id), timeout=60)
            if not answer.timed_out:
                return answer.run

    async def cancel(self) -> pb.Run:
        """CancelRun."""
        return (await self.stub.CancelRun(pb.CancelRunRequest(run_id=self.run_id, reason="enough"))).run

    async def resolve(self, key: str, choice: str = "yes") -> pb.Effect:
        """ResolveEffect, as whoever was asked does."""
        request = pb.ResolveEffectRequest(effect=pb.EffectName(run_id=self.run_id, key=key), actor="ann")
        request.succeeded.choice = choice
        return (await self.stub.ResolveEffect(request, timeout=_SECONDS)).effect

    async def events(self, *types: str) -> list[journal_pb2.JournalEvent]:
        """ReadJournal, all of it, or the rows of these types."""
        read = pb.ReadJournalRequest(run_id=self.run_id, page_size=1000)
        events = (await self.stub.ReadJournal(read, timeout=_SECONDS)).events
        named = [(journal_pb2.EventType.Name(event.type).removeprefix("EVENT_TYPE_"), event) for event in events]
        return [event for name, event in named if not types or name in types]


def fresh_key() -> str:
    """A key that no other test has."""
    return f"test/{uuid.uuid4().hex}"
