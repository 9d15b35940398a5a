"""Clients under chaos: they call any scheduler through a bad network, repeat what was not answered, and sometimes what
was; and they write down what was acknowledged.
"""

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import grpc

from backburner.scheduler.v1 import operator_service_pb2_grpc as operator_grpc
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from backburner.scheduler.v1 import scheduler_service_pb2_grpc as pb_grpc
from tests.crash.client_steps import reason_of

T = TypeVar("T")
Stub = pb_grpc.SchedulerServiceStub

CHANNEL_OPTIONS: Final = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 300),
    ("grpc.use_local_subchannel_pool", 1),
]
_AGAIN: Final = (
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,  # gRPC's own answer to what comes in as a server closes: nobody has heard it
)  # fmt: skip
_CALL_SECONDS: Final = 6.0


@dataclass
class Acknowledged:
    """What the services said that they have made durable."""

    runs: set[str] = field(default_factory=set)
    #: (run, key of the effect)
    requests: set[tuple[str, str]] = field(default_factory=set)
    effect_cancels: set[tuple[str, str]] = field(default_factory=set)
    run_cancels: set[str] = field(default_factory=set)
    #: (run, seq, value)
    signals: set[tuple[str, int, str]] = field(default_factory=set)
    #: (run, key, choice)
    answers: set[tuple[str, str, str]] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)


class Refused(Exception):
    """An answer that no repetition changes. `reason` is that of the ErrorInfo."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class Caller:
    """Calls any of the schedulers until one answers."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._stubs: list[tuple[Stub, operator_grpc.OperatorServiceStub]] = []
        self.calls: Counter[str] = Counter()
        self.acknowledged = Acknowledged()
        #: What must never be said or seen.
        self.offences: list[str] = []

    async def open(self, addresses: Sequence[str], stack: AsyncExitStack) -> None:
        """Connects to every scheduler."""
        for address in addresses:
            channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
            await stack.enter_async_context(channel)
            self._stubs.append((Stub(channel), operator_grpc.OperatorServiceStub(channel)))

    async def call(self, name: str, request: Any) -> Any:
        """The answer to a request. Raises Refused. One in ten is sent twice at once, to any two schedulers."""
        first, *others = [self._until_answered(name, request) for _ in range(2 if self._draw.random() < 0.1 else 1)]
        if not others:
            return await first
        answers = await asyncio.gather(first, *others, return_exceptions=True)
        good = [answer for answer in answers if not isinstance(answer, BaseException)]
        if not good:
            raise answers[0]
        return good[0]

    async def _until_answered(self, name: str, request: Any) -> Any:
        while True:
            self.calls["sent"] += 1
            stub = next(stub for stub in self._draw.choice(self._stubs) if hasattr(stub, name))
            method: Callable[..., Awaitable[Any]] = getattr(stub, name)
            try:
                return await method(request, timeout=_CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _AGAIN:
                    raise self._refusal(name, error) from error
                self.calls[error.code().name] += 1
            await asyncio.sleep(self._draw.uniform(0.05, 0.3))

    def _refusal(self, name: str, error: grpc.aio.AioRpcError) -> Refused:
        self.calls[error.code().name] += 1
        if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
            self.offences.append(f"{name} is answered with {error.code().name}: {error.details()}")
        return Refused(reason_of(error), str(error.details()))

    # -- calls that are acknowledged ---------------------------------------------------------------------------

    async def create(self, **fields: Any) -> pb.CreateRunResponse:
        """CreateRun with a request id; however often it is sent, it makes one run."""
        request = pb.CreateRunRequest(request_id=str(uuid.uuid4()), **fields)
        times = 2 if self._draw.random() < 0.2 else 1
        answers: list[pb.CreateRunResponse] = [await self.call("CreateRun", request) for _ in range(times)]
        ids = {answer.run.run_id for answer in answers}
        if len(ids) != 1:
            self.offences.append(f"one CreateRun made the runs {ids}")
        self.acknowledged.runs |= ids
        return answers[-1]

    async def cancel_run(self, run_id: str) -> None:
        """CancelRun."""
        await self.call("CancelRun", pb.CancelRunRequest(run_id=run_id, reason="chaos"))
        self.acknowledged.run_cancels.add(run_id)

    async def cancel_effect(self, run_id: str, key: str) -> None:
        """CancelEffect."""
        name = pb.EffectName(run_id=run_id, key=key)
        await self.call("CancelEffect", pb.CancelEffectRequest(effect=name, reason="chaos"))
        self.acknowledged.effect_cancels.add((run_id, key))

    async def signal(self, run_id: str) -> None:
        """SignalRun with a value that is told apart."""
        request = pb.SignalRunRequest(run_id=run_id, name="go", request_id=str(uuid.uuid4()))
        request.value.string_value = request.request_id
        answers = [await self.call("SignalRun", request) for _ in range(2 if self._draw.random() < 0.2 else 1)]
        for answer in answers:
            self.acknowledged.signals.add((run_id, answer.seq, request.request_id))

    async def answer(self, run_id: str, key: str, choice: str) -> None:
        """ResolveEffect."""
        request = pb.ResolveEffectRequest(effect=pb.EffectName(run_id=run_id, key=key), actor="chaos")
        request.succeeded.choice = choice
        await self.call("ResolveEffect", request)
        self.acknowledged.answers.add((run_id, key, choice))

    async def ended(self, run_id: str, max_wait_s: float = 5.0) -> pb.Run | None:
        """The run when it has ended or is parked; None when it has not within some seconds."""
        request = pb.WaitRunRequest(run_id=run_id)
        request.max_wait.FromMilliseconds(int(max_wait_s * 1000))
        answer = await self.call("WaitRun", request)
        return None if answer.timed_out else answer.run
