"""OperatorService: what operators see and do. In this release they see executors."""

# ruff: noqa: D102  # what an rpc does stands in the proto

from collections.abc import Sequence
from typing import Any, NoReturn

import grpc

from backburner.scheduler.v1 import operator_service_pb2 as pb
from backburner.scheduler.v1 import operator_service_pb2_grpc as pb_grpc
from scheduler_service.api import pages
from scheduler_service.api.checks import checked
from scheduler_service.api.convert import executor_message
from scheduler_service.api.engine import EngineApi
from scheduler_service.api.sizes import page_of
from scheduler_service.errors import NotImplementedYet
from scheduler_service.journal.client_reads import ClientReads

Context = grpc.aio.ServicerContext[Any, Any]

_NOT_LOST = ("CONNECTED", "DISCONNECTED", "DRAINING")


class Executors:
    """Executors, connected or not."""

    def __init__(self, engine: EngineApi, reads: ClientReads) -> None:
        self._engine = engine
        self._reads = reads

    async def page(self, states: Sequence[str], after: str | None, page_size: int) -> pb.ListExecutorsResponse:
        """A page of executors by name."""
        rows = await self._reads.executors(after=after, states=states or _NOT_LOST, limit=page_size + 1)
        messages = page_of([executor_message(row) for row in rows[:page_size]])
        self._add_slots(messages)
        answer = pb.ListExecutorsResponse(executors=messages)
        if len(rows) > len(messages):
            answer.next_page_token = pages.encode_token([messages[-1].executor_id], sorted(states))
        return answer

    def _add_slots(self, messages: Sequence[pb.Executor]) -> None:
        connected = {executor.executor_id: executor for executor in self._engine.connected()}
        for message in messages:
            here = connected.get(message.executor_id)
            if here is not None and here.incarnation == message.incarnation:
                for name, pool in here.pools.items():
                    message.slots_taken[name] = pool.foreground_taken + pool.background_taken


def _parse(request: pb.ListExecutorsRequest) -> tuple[Sequence[str], str | None, int]:
    with checked() as check:
        states = check.enums("states", request.states, pb.Executor.State, "STATE_")
        position = pages.decode_token(check, request.page_token, sorted(states))
        page_size = check.page_size(request.page_size)
    return states, position[0] if position else None, page_size


class OperatorServicer(pb_grpc.OperatorServiceServicer):
    """What operators call."""

    def __init__(self, executors: Executors) -> None:
        self._executors = executors

    async def ListExecutors(self, request: pb.ListExecutorsRequest, context: Context) -> pb.ListExecutorsResponse:
        return await self._executors.page(*_parse(request))

    async def DrainExecutor(self, request: pb.DrainExecutorRequest, context: Context) -> NoReturn:
        raise NotImplementedYet("DrainExecutor")

    async def ExpireExecutor(self, request: pb.ExpireExecutorRequest, context: Context) -> NoReturn:
        raise NotImplementedYet("ExpireExecutor")

    async def SetHold(self, request: pb.SetHoldRequest, context: Context) -> NoReturn:
        raise NotImplementedYet("SetHold")

    async def ListHolds(self, request: pb.ListHoldsRequest, context: Context) -> NoReturn:
        raise NotImplementedYet("ListHolds")

    async def BulkAction(self, request: pb.BulkActionRequest, context: Context) -> NoReturn:
        raise NotImplementedYet("BulkAction")

    async def Diagnose(self, request: pb.DiagnoseRequest, context: Context) -> NoReturn:
        raise NotImplementedYet("Diagnose")
