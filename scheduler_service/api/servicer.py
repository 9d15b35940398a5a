"""SchedulerService: each method parses its request, makes one call and answers. Errors fly to the interceptor."""

# ruff: noqa: D102  # what an rpc does stands in the proto

from collections.abc import AsyncIterator
from typing import Any

import grpc

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from backburner.scheduler.v1 import scheduler_service_pb2_grpc as pb_grpc
from scheduler_service.api import client_requests, effect_requests, run_requests, usage
from scheduler_service.api.blobs import Blobs, blob_query
from scheduler_service.api.clients import Clients
from scheduler_service.api.control import Control
from scheduler_service.api.effects import Effects
from scheduler_service.api.info import ServerInfo
from scheduler_service.api.output import Outputs
from scheduler_service.api.runs import Runs
from scheduler_service.api.usage import UsageReport
from scheduler_service.api.waits import wait_seconds
from scheduler_service.api.watching import Watching

Context = grpc.aio.ServicerContext[Any, Any]


class SchedulerServicer(pb_grpc.SchedulerServiceServicer):
    """What clients call."""

    def __init__(
        self,
        *,
        runs: Runs,
        control: Control,
        clients: Clients,
        effects: Effects,
        watching: Watching,
        outputs: Outputs,
        blobs: Blobs,
        info: ServerInfo,
        usage: UsageReport,
    ) -> None:
        self._runs = runs
        self._control = control
        self._clients = clients
        self._effects = effects
        self._watching = watching
        self._outputs = outputs
        self._blobs = blobs
        self._info = info
        self._usage = usage

    async def CreateRun(self, request: pb.CreateRunRequest, context: Context) -> pb.CreateRunResponse:
        return await self._runs.create(run_requests.new_run(request))

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        ref, full = run_requests.run_query(request)
        return await self._runs.get(ref, full=full)

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        return await self._runs.page(run_requests.run_list(request))

    async def WaitRun(self, request: pb.WaitRunRequest, context: Context) -> pb.WaitRunResponse:
        ref, max_wait_s = run_requests.run_wait(request)
        return await self._runs.wait(ref, wait_seconds(max_wait_s, context))

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> AsyncIterator[pb.WatchRunResponse]:
        async for frame in self._watching.run(run_requests.run_watch(request)):
            yield frame

    async def ReadJournal(self, request: pb.ReadJournalRequest, context: Context) -> pb.ReadJournalResponse:
        ref, after_seq, page_size = run_requests.journal_page(request)
        return await self._runs.journal(ref, after_seq, page_size)

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.CancelRunResponse:
        ref, reason = run_requests.run_reason(request)
        return await self._runs.cancel(ref, reason)

    async def HaltRun(self, request: pb.HaltRunRequest, context: Context) -> pb.HaltRunResponse:
        ref, reason = run_requests.run_reason(request)
        return await self._control.halt(ref, reason)

    async def ResumeRun(self, request: pb.ResumeRunRequest, context: Context) -> pb.ResumeRunResponse:
        ref, reason = run_requests.run_reason(request)
        return await self._control.resume(ref, reason)

    async def SignalRun(self, request: pb.SignalRunRequest, context: Context) -> pb.SignalRunResponse:
        return await self._control.signal(run_requests.signal(request))

    async def GetEffect(self, request: pb.GetEffectRequest, context: Context) -> pb.GetEffectResponse:
        return await self._effects.get(effect_requests.effect_query(request))

    async def ListEffects(self, request: pb.ListEffectsRequest, context: Context) -> pb.ListEffectsResponse:
        return await self._effects.page(effect_requests.effect_list(request))

    async def WaitEffects(self, request: pb.WaitEffectsRequest, context: Context) -> pb.WaitEffectsResponse:
        asked = effect_requests.effects_wait(request)
        return await self._effects.wait(asked, wait_seconds(asked.max_wait_s, context))

    async def WatchEffect(
        self, request: pb.WatchEffectRequest, context: Context
    ) -> AsyncIterator[pb.WatchEffectResponse]:
        async for frame in self._watching.effect(effect_requests.effect_watch(request)):
            yield frame

    async def CancelEffect(self, request: pb.CancelEffectRequest, context: Context) -> pb.CancelEffectResponse:
        ref, reason = effect_requests.effect_cancel(request)
        return await self._effects.cancel(ref, reason)

    async def ResolveEffect(self, request: pb.ResolveEffectRequest, context: Context) -> pb.ResolveEffectResponse:
        return await self._effects.resolve(effect_requests.resolution(request))

    async def StreamOutput(
        self, request: pb.StreamOutputRequest, context: Context
    ) -> AsyncIterator[pb.StreamOutputResponse]:
        async for frame in self._outputs.stream(effect_requests.output_query(request)):
            yield frame

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        return await self._info.get()

    async def FinishRun(self, request: pb.FinishRunRequest, context: Context) -> pb.FinishRunResponse:
        return await self._clients.finish(client_requests.finish(request))

    async def RequestEffects(self, request: pb.RequestEffectsRequest, context: Context) -> pb.RequestEffectsResponse:
        return await self._clients.request(client_requests.effects_asked(request))

    async def ReadBlob(self, request: pb.ReadBlobRequest, context: Context) -> AsyncIterator[pb.ReadBlobResponse]:
        async for frame in self._blobs.stream(blob_query(request)):
            yield frame

    async def ListUsage(self, request: pb.ListUsageRequest, context: Context) -> pb.ListUsageResponse:
        return await self._usage.list(usage.parse(request))
