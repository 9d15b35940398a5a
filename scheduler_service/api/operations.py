"""OperatorService: each method parses its request, makes one call and answers. Errors fly to the interceptor."""

# ruff: noqa: D102  # what an rpc does stands in the proto

from typing import Any

import grpc

from backburner.scheduler.v1 import operator_service_pb2 as pb
from backburner.scheduler.v1 import operator_service_pb2_grpc as pb_grpc
from scheduler_service.api import audit, breakers, budgets, bulk, executors, holds, retention, settlements
from scheduler_service.api.audit import Audit
from scheduler_service.api.breakers import Breakers
from scheduler_service.api.budgets import Budgets
from scheduler_service.api.bulk import BulkActions
from scheduler_service.api.diagnosis import diagnose
from scheduler_service.api.engine import EngineApi
from scheduler_service.api.executors import Executors
from scheduler_service.api.holds import Holds
from scheduler_service.api.settlements import Settlements
from scheduler_service.journal.diagnosis import DiagnosisReads

Context = grpc.aio.ServicerContext[Any, Any]


class OperatorServicer(pb_grpc.OperatorServiceServicer):
    """What operators call."""

    def __init__(
        self,
        *,
        executors: Executors,
        settlements: Settlements,
        holds: Holds,
        breakers: Breakers,
        budgets: Budgets,
        bulk: BulkActions,
        audit: Audit,
        diagnosis: DiagnosisReads,
        engine: EngineApi,
    ) -> None:
        self._executors = executors
        self._settlements = settlements
        self._holds = holds
        self._breakers = breakers
        self._budgets = budgets
        self._bulk = bulk
        self._audit = audit
        self._diagnosis = diagnosis
        self._engine = engine

    async def ListExecutors(self, request: pb.ListExecutorsRequest, context: Context) -> pb.ListExecutorsResponse:
        return await self._executors.page(*executors.parse_page(request))

    async def DrainExecutor(self, request: pb.DrainExecutorRequest, context: Context) -> pb.DrainExecutorResponse:
        return await self._executors.drain(executors.parse_drain(request))

    async def ExpireExecutor(self, request: pb.ExpireExecutorRequest, context: Context) -> pb.ExpireExecutorResponse:
        return await self._executors.expire(executors.parse_expiry(request))

    async def SettleEffect(self, request: pb.SettleEffectRequest, context: Context) -> pb.SettleEffectResponse:
        return await self._settlements.settle(settlements.parse(request))

    async def SetHold(self, request: pb.SetHoldRequest, context: Context) -> pb.SetHoldResponse:
        return await self._holds.set(holds.parse(request))

    async def ListHolds(self, request: pb.ListHoldsRequest, context: Context) -> pb.ListHoldsResponse:
        return await self._holds.list()

    async def ListBreakers(self, request: pb.ListBreakersRequest, context: Context) -> pb.ListBreakersResponse:
        return await self._breakers.list()

    async def ResetBreakers(self, request: pb.ResetBreakersRequest, context: Context) -> pb.ResetBreakersResponse:
        return await self._breakers.reset(breakers.parse(request))

    async def SetBudget(self, request: pb.SetBudgetRequest, context: Context) -> pb.SetBudgetResponse:
        return await self._budgets.set(budgets.parse_set(request))

    async def ListBudgets(self, request: pb.ListBudgetsRequest, context: Context) -> pb.ListBudgetsResponse:
        return await self._budgets.list(*budgets.parse_list(request))

    async def ClearBudget(self, request: pb.ClearBudgetRequest, context: Context) -> pb.ClearBudgetResponse:
        return await self._budgets.clear(budgets.parse_clear(request))

    async def RaiseBudget(self, request: pb.RaiseBudgetRequest, context: Context) -> pb.RaiseBudgetResponse:
        return await self._budgets.raise_(budgets.parse_raise(request))

    async def ListAudit(self, request: pb.ListAuditRequest, context: Context) -> pb.ListAuditResponse:
        return await self._audit.page(audit.parse(request))

    async def BulkAction(self, request: pb.BulkActionRequest, context: Context) -> pb.BulkActionResponse:
        return await self._bulk.step(bulk.parse(request))

    async def PruneRuns(self, request: pb.PruneRunsRequest, context: Context) -> pb.PruneRunsResponse:
        return await retention.prune(self._engine, retention.parse(request))

    async def Diagnose(self, request: pb.DiagnoseRequest, context: Context) -> pb.DiagnoseResponse:
        return pb.DiagnoseResponse(findings=await diagnose(self._diagnosis))
