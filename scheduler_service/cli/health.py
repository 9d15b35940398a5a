"""Waits until the services answer: gRPC health of the scheduler, then an executor that is connected to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from backburner.scheduler.v1 import (
    operator_service_pb2 as op,
)
from backburner.scheduler.v1 import (
    operator_service_pb2_grpc,
    scheduler_service_pb2_grpc,
)
from backburner.scheduler.v1 import (
    scheduler_service_pb2 as pb,
)
from scheduler_service.cli.errors import CliError

T = TypeVar("T")

START_SECONDS: Final = 30.0
_CALL_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.1
_NOT_YET: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.NOT_FOUND)


@dataclass(frozen=True)
class Readiness:
    """What became ready."""

    processes: tuple[str, ...] = ()
    executor_address: str = ""
    functions: tuple[str, ...] = ()


def wait_until_serving(address: str, check: Callable[[], None]) -> None:
    """Wait until the scheduler serves; `check` is called between tries and raises when waiting is pointless."""

    async def wait() -> None:
        async with _dial(address) as channel:
            await _until(lambda: _serves(channel), "scheduler", check)

    asyncio.run(wait())


def wait_until_connected(address: str, executor_id: str, check: Callable[[], None]) -> Readiness:
    """Wait until the executor is connected to the scheduler; gives what both have."""

    async def wait() -> Readiness:
        async with _dial(address) as channel:
            executor = await _until(lambda: _connected(channel, executor_id), "executor", check)
            stub = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
            info = await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=_CALL_SECONDS)
        return Readiness(tuple(info.processes), executor.address, tuple(executor.functions))

    return asyncio.run(wait())


def _dial(address: str) -> grpc.aio.Channel:
    # A channel that was refused pauses before it dials again; services that start now should be seen at once.
    options = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200))
    return grpc.aio.insecure_channel(address, options=options)


async def _until(ask: Callable[[], Awaitable[T | None]], name: str, check: Callable[[], None]) -> T:
    deadline = time.monotonic() + START_SECONDS
    while True:
        check()
        try:
            if (answer := await ask()) is not None:
                return answer
        except grpc.aio.AioRpcError as error:
            if error.code() not in _NOT_YET:
                raise CliError(f"the {name} answers {error.code().name}: {error.details()}") from error
        if time.monotonic() > deadline:
            raise CliError(f"the {name} was not ready within {START_SECONDS:.0f} s", "its log says why")
        await asyncio.sleep(_POLL_SECONDS)


async def _serves(channel: grpc.aio.Channel) -> bool | None:
    # By hand, because the published type stubs of the generated stub know no methods.
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    answer = await check(health_pb2.HealthCheckRequest(), timeout=_CALL_SECONDS)
    return True if answer.status == health_pb2.HealthCheckResponse.SERVING else None


async def _connected(channel: grpc.aio.Channel, executor_id: str) -> op.Executor | None:
    stub = operator_service_pb2_grpc.OperatorServiceStub(channel)
    answer = await stub.ListExecutors(op.ListExecutorsRequest(page_size=1000), timeout=_CALL_SECONDS)
    wanted = (op.Executor.STATE_CONNECTED, executor_id)
    return next((item for item in answer.executors if (item.state, item.executor_id) == wanted), None)
