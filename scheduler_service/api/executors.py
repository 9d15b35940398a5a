"""Executors: listing them, draining them, and declaring them dead."""

from collections.abc import Sequence
from typing import Final

from backburner.scheduler.v1 import operator_service_pb2 as pb
from scheduler_service.api import limits, pages
from scheduler_service.api.checks import checked
from scheduler_service.api.convert import executor_message
from scheduler_service.api.engine import EngineApi
from scheduler_service.api.holds import OPERATOR
from scheduler_service.api.sizes import page_of
from scheduler_service.errors import ExecutorNotFound, ExecutorRestarted
from scheduler_service.journal import DrainOrder, ExpireOrder
from scheduler_service.journal.client_reads import ClientReads

_NOT_LOST: Final = ("CONNECTED", "DISCONNECTED", "DRAINING")


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

    async def drain(self, order: DrainOrder) -> pb.DrainExecutorResponse:
        """Lets one take nothing new, or ends that."""
        if await self._engine.operations.drain(order) == "not_found":
            raise ExecutorNotFound(order.executor_id)
        rows = await self._reads.executors(after=None, states=None, limit=1, executor_id=order.executor_id)
        messages = [executor_message(row) for row in rows]
        self._add_slots(messages)
        return pb.DrainExecutorResponse(executor=messages[0] if messages else None)

    async def expire(self, order: ExpireOrder) -> pb.ExpireExecutorResponse:
        """Declares an incarnation dead."""
        outcome = await self._engine.operations.expire(order)
        if outcome.outcome == "not_found":
            raise ExecutorNotFound(order.executor_id)
        if outcome.outcome == "other_incarnation":
            raise ExecutorRestarted(order.executor_id, order.incarnation, outcome.incarnation)
        return pb.ExpireExecutorResponse(attempts_lost=outcome.attempts)

    def _add_slots(self, messages: Sequence[pb.Executor]) -> None:
        connected = {executor.executor_id: executor for executor in self._engine.connected()}
        for message in messages:
            here = connected.get(message.executor_id)
            if here is not None and here.incarnation == message.incarnation:
                for name, pool in here.pools.items():
                    message.slots_taken[name] = pool.foreground_taken + pool.background_taken


def parse_page(request: pb.ListExecutorsRequest) -> tuple[Sequence[str], str | None, int]:
    """Parses ListExecutors: states, the name after which the page begins, its size."""
    with checked() as check:
        states = check.enums("states", request.states, pb.Executor.State, "STATE_")
        position = pages.decode_token(check, request.page_token, sorted(states))
        page_size = check.page_size(request.page_size)
    return states, position[0] if position else None, page_size


def parse_drain(request: pb.DrainExecutorRequest) -> DrainOrder:
    """Parses DrainExecutor."""
    with checked() as check:
        return DrainOrder(
            executor_id=check.required("executor_id", request.executor_id, limits.NAME_BYTES_MAX),
            drain=request.drain,
            reason=check.text("reason", request.reason, limits.REASON_BYTES_MAX),
            actor=check.text("actor", request.actor, limits.ACTOR_BYTES_MAX) or OPERATOR,
        )


def parse_expiry(request: pb.ExpireExecutorRequest) -> ExpireOrder:
    """Parses ExpireExecutor."""
    with checked() as check:
        return ExpireOrder(
            executor_id=check.required("executor_id", request.executor_id, limits.NAME_BYTES_MAX),
            incarnation=check.required("incarnation", request.incarnation, limits.NAME_BYTES_MAX),
            reason=check.text("reason", request.reason, limits.REASON_BYTES_MAX),
            actor=check.text("actor", request.actor, limits.ACTOR_BYTES_MAX) or OPERATOR,
        )
