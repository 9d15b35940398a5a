"""Calls to the scheduler: one channel, the two stubs, and names as people give them turned into ids."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
import grpc.aio

from backburner.scheduler.v1 import operator_service_pb2_grpc, scheduler_service_pb2_grpc
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli.address import Target
from scheduler_service.cli.dial_target import dial_target
from scheduler_service.cli.errors import CliError, UsageProblem, from_rpc
from scheduler_service.cli.exit_codes import ExitCode
from scheduler_service.cli.names import KEY_PREFIX, effect_candidates, is_prefix, is_uuid
from scheduler_service.cli.suggest import did_you_mean, near_effects, near_runs

CALL_SECONDS: Final = 30.0
PATIENCE_SECONDS: Final = 60.0
#: What says that the service is away. CANCELLED, when nobody cancelled here, is gRPC's own, of a server that closes.
AWAY: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
_SEARCH_PAGES: Final = 5
_PAGE: Final = 1000

_CHANNEL_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.enable_retries", 0),  # what may be repeated is decided here, call by call
)

Answer = TypeVar("Answer")


class NotThere(UsageProblem):
    """No run or effect has this name; the remedy has those that are near."""


@dataclass(frozen=True)
class Client:
    """The scheduler, for the time of one command."""

    target: Target
    runs: scheduler_service_pb2_grpc.SchedulerServiceStub
    operators: operator_service_pb2_grpc.OperatorServiceStub

    @property
    def namespace(self) -> str:
        """Namespace of every call."""
        return self.target.namespace

    async def get_run(self, run_id: str = "", *, key: str = "", view: pb.View.ValueType = pb.VIEW_FULL) -> pb.Run:
        """The run by id or by key, with input and result unless `view` says less."""
        request = pb.GetRunRequest(run_id=run_id, key=key, namespace=self.namespace, view=view)
        return (await self.runs.GetRun(request, timeout=CALL_SECONDS)).run

    async def get_effect(self, name: pb.EffectName) -> pb.Effect:
        """The effect with spec and result."""
        request = pb.GetEffectRequest(effect=name, namespace=self.namespace, view=pb.VIEW_FULL)
        return (await self.runs.GetEffect(request, timeout=CALL_SECONDS)).effect

    async def find_run(self, name: str) -> pb.Run:
        """The run that `name` means: an id, the beginning or end of one, or `key:KEY`."""
        if name.startswith(KEY_PREFIX):
            return await self._run_named(key=name.removeprefix(KEY_PREFIX))
        if is_uuid(name):
            return await self._run_named(run_id=name)
        if not is_prefix(name):
            raise UsageProblem(
                f"{name!r} names no run", "give a run id, 6 or more characters of its beginning or end, or key:KEY"
            )
        return await self.get_run(await self._unique_id(name.lower()))

    async def _run_named(self, *, run_id: str = "", key: str = "") -> pb.Run:
        try:
            return await self.get_run(run_id, key=key)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            raise self._not_there(error, await near_runs(self, run_id, key)) from error

    async def _effect_named(self, run_id: str, key: str) -> pb.Effect:
        try:
            return await self.get_effect(pb.EffectName(run_id=run_id, key=key))
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            raise self._not_there(error, await near_effects(self, run_id, key)) from error

    def _not_there(self, error: grpc.aio.AioRpcError, names: Iterable[str]) -> NotThere:
        said = from_rpc(error, self.target.address, self.target.source)
        remedy = " ".join(part for part in (did_you_mean(names), said.remedy) if part)
        return NotThere(said.message, remedy)

    async def _unique_id(self, part: str) -> str:
        newest = self.list_runs(pb.ListRunsRequest(page_size=_PAGE), limit=_SEARCH_PAGES * _PAGE)
        found = [run.run_id async for run in newest if run.run_id.startswith(part) or run.run_id.endswith(part)]
        if len(found) == 1:
            return found[0]
        if found:
            some = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
            raise UsageProblem(f"{part!r} names {len(found)} runs: {some}", "give more characters")
        raise UsageProblem(
            f"none of the newest {_SEARCH_PAGES * _PAGE:,} runs has an id that begins or ends with {part!r}",
            "`backburner ps` lists the runs; check --namespace",
        )

    async def list_runs(self, request: pb.ListRunsRequest, limit: int) -> AsyncIterator[pb.Run]:
        """At most `limit` runs, page by page."""
        request.namespace = self.namespace
        while limit > 0:
            answer = await self.runs.ListRuns(request, timeout=CALL_SECONDS)
            for run in answer.runs[:limit]:
                yield run
            limit -= len(answer.runs)
            request.page_token = answer.next_page_token
            if not answer.next_page_token:
                return

    async def list_effects(self, request: pb.ListEffectsRequest, limit: int) -> AsyncIterator[pb.Effect]:
        """At most `limit` effects, page by page."""
        request.namespace = self.namespace
        while limit > 0:
            answer = await self.runs.ListEffects(request, timeout=CALL_SECONDS)
            for effect in answer.effects[:limit]:
                yield effect
            limit -= len(answer.effects)
            request.page_token = answer.next_page_token
            if not answer.next_page_token:
                return

    async def find_effect(self, name: str) -> pb.Effect:
        """The effect that `name` means: an id, or RUN/KEY."""
        if is_uuid(name):
            return await self.get_effect(pb.EffectName(effect_id=name))
        candidates = effect_candidates(name)
        if not candidates:
            raise UsageProblem(f"{name!r} names no effect", "give an effect id, or RUN/KEY")
        for run_name, key in candidates[:-1]:
            run = await self._run_or_none(run_name)
            if run is not None:
                return await self._effect_named(run.run_id, key)
        run_name, key = candidates[-1]
        return await self._effect_named((await self.find_run(run_name)).run_id, key)

    async def find(self, name: str) -> pb.Run | pb.Effect:
        """The run or the effect that `name` means."""
        if is_uuid(name):
            # Run ids are UUIDv7, effect ids UUIDv5: the version digit tells them apart.
            return await (self.find_effect(name) if name[14] == "5" else self.find_run(name))
        if "/" in name:
            run = await self._run_or_none(name) if name.startswith(KEY_PREFIX) else None
            return run if run is not None else await self.find_effect(name)
        return await self.find_run(name)

    async def _run_or_none(self, name: str) -> pb.Run | None:
        try:
            return await self.find_run(name)
        except NotThere:
            return None


async def patiently(call: Callable[[], Awaitable[Answer]], seconds: float = PATIENCE_SECONDS) -> Answer:
    """The answer of a call that may be repeated: again and again while the service is away, for so long."""
    deadline, pause = time.monotonic() + seconds, 0.1
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() not in AWAY or time.monotonic() + pause > deadline:
                raise
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(pause * 2, 2.0)


@asynccontextmanager
async def connect(target: Target) -> AsyncIterator[Client]:
    """A client; errors of calls that nobody handled become messages for people."""
    async with grpc.aio.insecure_channel(dial_target(target.address), options=_CHANNEL_OPTIONS) as channel:
        try:
            yield Client(
                target,
                scheduler_service_pb2_grpc.SchedulerServiceStub(channel),
                operator_service_pb2_grpc.OperatorServiceStub(channel),
            )
        except grpc.RpcError as error:
            raise from_rpc(error, target.address, target.source) from error
        except TimeoutError as error:
            raise CliError("timed out waiting", "it goes on; ask again", ExitCode.TIMED_OUT) from error
