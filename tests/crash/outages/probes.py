"""Clients that notice a gap: each asks for a run of one effect, waits for its value, and begins again."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import json_format

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from backburner.scheduler.v1 import scheduler_service_pb2_grpc as pb_grpc
from tests.crash.chaos.clients import CHANNEL_OPTIONS

#: What a client may be told while a replica goes: it asks again. Whatever else comes is an offence.
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_CALL_SECONDS = 60.0


@dataclass
class Probes:
    """What the clients have seen so far."""

    folder: str
    done: int = 0
    #: Longest time that a call took with all its repetitions, and that a run took from its request to its value.
    call_gap_s: float = 0.0
    run_gap_s: float = 0.0
    #: Errors that were answered, by code.
    errors: Counter[str] = field(default_factory=Counter)
    runs: set[str] = field(default_factory=set)
    offences: list[str] = field(default_factory=list)
    stopping: bool = False

    def forget(self) -> None:
        """Gaps count from now on."""
        self.call_gap_s = self.run_gap_s = 0.0

    async def client(self, stub: pb_grpc.SchedulerServiceStub, number: int) -> None:
        """One client."""
        made = 0
        while not self.stopping:
            begun = time.monotonic()
            request = pb.CreateRunRequest(process="marks-many", key=f"probe/{number}/{made}")
            json_format.ParseDict({"folder": self.folder, "count": 1}, request.input)
            run_id = (await self._call(stub.CreateRun, request)).run.run_id
            while (answer := await self._call(stub.WaitRun, _wait(run_id), idle_s=1.0)).timed_out:
                continue
            if answer.run.state != journal_pb2.RUN_STATE_COMPLETED:
                self.offences.append(f"run {run_id} of a probe is {journal_pb2.RunState.Name(answer.run.state)}")
            self.runs.add(run_id)
            self.done += 1
            made += 1
            self.run_gap_s = max(self.run_gap_s, time.monotonic() - begun)

    async def _call(self, method: Callable[..., Awaitable[Any]], request: Any, idle_s: float = 0.0) -> Any:
        """The answer, however often it takes; `idle_s` of it are asked for and no gap."""
        begun = time.monotonic()
        while True:
            try:
                answer = await method(request, timeout=_CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                self.errors[error.code().name] += 1
                if error.code() not in _AGAIN:
                    self.offences.append(f"a client was answered {error.code().name}: {error.details()}")
                await asyncio.sleep(0.02)
                continue
            self.call_gap_s = max(self.call_gap_s, time.monotonic() - begun - idle_s)
            return answer


def _wait(run_id: str) -> pb.WaitRunRequest:
    request = pb.WaitRunRequest(run_id=run_id)
    request.max_wait.FromSeconds(1)
    return request


@asynccontextmanager
async def probing(addresses: list[str], folder: str, clients: int) -> AsyncIterator[Probes]:
    """Clients at work, half of which dial the first replica first; at the end each has seen its last run end."""
    probes = Probes(folder)
    dials = ["ipv4:" + ",".join(order) for order in (addresses, addresses[::-1])]
    channels = [grpc.aio.insecure_channel(dial, options=CHANNEL_OPTIONS) for dial in dials]
    stubs = [pb_grpc.SchedulerServiceStub(channel) for channel in channels]
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(probes.client(stubs[number % 2], number))
        try:
            yield probes
        finally:
            probes.stopping = True
    for channel in channels:
        await channel.close()
