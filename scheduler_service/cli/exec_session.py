"""One effect of a client-driven run, from its request to the run's end: what `backburner exec` does."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import click
import grpc
import grpc.aio
from google.protobuf import struct_pb2

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.client import CALL_SECONDS, Client, patiently
from scheduler_service.cli.errors import UsageProblem, from_rpc, reason_of
from scheduler_service.cli.outcome import describe_effect_error

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LAST_SECONDS: Final = 5.0


@dataclass(frozen=True)
class ClientRun:
    """A client-driven run that this command may request effects of. `created`: nobody else knows it yet."""

    client: Client
    run_id: str
    epoch: int
    created: bool

    @classmethod
    async def open(cls, client: Client, key: str, labels: dict[str, str]) -> ClientRun:
        """The run with this key, or a new one."""
        request = pb.CreateRunRequest(namespace=client.namespace, key=key, labels=labels)
        request.client.SetInParent()
        if not key:
            request.request_id = str(uuid.uuid4())
        answer = await client.runs.CreateRun(request, timeout=CALL_SECONDS)
        return cls(client, answer.run.run_id, answer.client_epoch, answer.created)

    async def request(self, key: str, spec: journal.EffectSpec) -> pb.Effect:
        """The effect with this key: as it is recorded, or requested now."""
        request = pb.RequestEffectsRequest(
            run_id=self.run_id, namespace=self.client.namespace, client_epoch=self.epoch,
            effects=[pb.EffectRequest(key=key, spec=spec)],
        )  # fmt: skip
        try:
            answer = await patiently(lambda: self.client.runs.RequestEffects(request, timeout=CALL_SECONDS))
        except grpc.aio.AioRpcError as error:
            if reason_of(error) != "RUN_CLOSED":
                raise
            return await self._recorded(key, spec, error)
        return answer.effects[0]

    async def _recorded(self, key: str, spec: journal.EffectSpec, closed: grpc.aio.AioRpcError) -> pb.Effect:
        # A run that has ended takes no requests, and answers for those it had: the same command again is no error.
        try:
            effect = await self.client.get_effect(pb.EffectName(run_id=self.run_id, key=key))
        except grpc.aio.AioRpcError as error:
            raise closed if error.code() == grpc.StatusCode.NOT_FOUND else error from None
        asked, was = (getattr(one, one.WhichOneof("work") or "shell") for one in (spec, effect.spec))
        if asked != was:
            raise UsageProblem(f"effect {key} of run {self.run_id} was recorded with other work", "give another --key")
        return effect

    async def finish(self, effect: pb.Effect) -> None:
        """End the run as its effect ended."""
        request = self._finish_request()
        if effect.state == journal.EFFECT_STATE_SUCCEEDED:
            request.succeeded.CopyFrom(_value(effect.result))
        else:
            kind = f"EFFECT_{text.effect_state(effect.state)}"
            error = journal.RunError(kind=kind, message=describe_effect_error(effect), effect_key=effect.key)
            request.failed.CopyFrom(error)
        await self._finish(request)

    async def finish_by_itself(self) -> None:
        """Let the run end when its effects have settled, whoever is there then."""
        request = self._finish_request()
        request.succeeded.null_value = struct_pb2.NULL_VALUE
        await self._finish(request)

    def _finish_request(self) -> pb.FinishRunRequest:
        return pb.FinishRunRequest(
            run_id=self.run_id, namespace=self.client.namespace, client_epoch=self.epoch, wait=True
        )

    async def _finish(self, request: pb.FinishRunRequest) -> None:
        try:
            await patiently(lambda: self.client.runs.FinishRun(request, timeout=CALL_SECONDS))
        except grpc.aio.AioRpcError as error:
            if reason_of(error) == "RUN_CLOSED":
                return
            # The work is done and recorded: its exit code counts, not that of the book-keeping.
            said = from_rpc(error, self.client.target.address, self.client.target.source)
            click.echo(f"run {self.run_id} could not be finished: {said}", err=True)

    async def cancel(self, effect: pb.Effect, reason: str) -> None:
        """Cancel the effect; with it the run when it is all that the run is for. Durable once it returns."""
        try:
            await patiently(lambda: self._cancel(effect, reason))
        except grpc.aio.AioRpcError as error:
            if reason_of(error) not in ("RUN_CLOSED", "EFFECT_SETTLED"):
                raise

    async def _cancel(self, effect: pb.Effect, reason: str) -> None:
        runs, namespace = self.client.runs, self.client.namespace
        if self.created:
            run = pb.CancelRunRequest(run_id=self.run_id, namespace=namespace, reason=reason)
            await runs.CancelRun(run, timeout=CALL_SECONDS)
            return
        name = pb.EffectName(effect_id=effect.effect_id)
        one = pb.CancelEffectRequest(effect=name, namespace=namespace, reason=reason)
        await runs.CancelEffect(one, timeout=CALL_SECONDS)


class Interruptions:
    """Ctrl-C and its kin while an effect is followed: the first sets `first`, the second aborts the command."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self._task = asyncio.current_task()
        self._second = False

    def __enter__(self) -> Interruptions:
        for number in _STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self.interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _where: TracebackType | None) -> None:
        for number in _STOP_SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)
        if self._second and kind is asyncio.CancelledError:
            raise click.Abort

    def interrupt(self) -> None:
        """Take one interruption."""
        if self.first.is_set() and self._task is not None:
            self._second = True
            self._task.cancel()
        self.first.set()


async def until_interrupted(
    work: asyncio.Task[None], first: asyncio.Event, then: Callable[[], Awaitable[None]]
) -> None:
    """Wait for the work; at an interruption do `then` beside it, and go on waiting.

    Who is cancelled while `then` is under way still gives it a moment: it was announced.
    """
    interrupted, acting = asyncio.ensure_future(first.wait()), set[asyncio.Future[None]]()
    try:
        await asyncio.wait({work, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            acting.add(asyncio.ensure_future(then()))
            await asyncio.shield(*acting)
        await work
    finally:
        if acting:
            await asyncio.wait(acting, timeout=_LAST_SECONDS)
        left: list[asyncio.Future[Any]] = [work, interrupted, *acting]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _value(result: journal.EffectResult) -> struct_pb2.Value:
    if result.value.WhichOneof("source") == "value":
        return result.value.value
    value = struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
    if result.HasField("exit_code"):
        value.struct_value.update({"exit_code": result.exit_code})
    return value
