"""Puts the servicers of clients and operators together and on a server."""

from dataclasses import dataclass

import grpc

from backburner.scheduler.v1 import operator_service_pb2_grpc, scheduler_service_pb2_grpc
from scheduler_service.api.audit import Audit
from scheduler_service.api.blobs import Blobs
from scheduler_service.api.breakers import Breakers
from scheduler_service.api.budgets import Budgets
from scheduler_service.api.bulk import BulkActions
from scheduler_service.api.callers import Callers
from scheduler_service.api.clients import Clients
from scheduler_service.api.control import Control
from scheduler_service.api.effects import Effects
from scheduler_service.api.engine import EngineApi
from scheduler_service.api.executors import Executors
from scheduler_service.api.holds import Holds
from scheduler_service.api.info import ServerInfo
from scheduler_service.api.operations import OperatorServicer
from scheduler_service.api.output import Outputs
from scheduler_service.api.presence import Presence
from scheduler_service.api.runs import Runs
from scheduler_service.api.servicer import SchedulerServicer
from scheduler_service.api.settlements import Settlements
from scheduler_service.api.usage import UsageReport
from scheduler_service.api.waiting import Situations
from scheduler_service.api.watchers import Pace, Watchers
from scheduler_service.api.watching import Watching
from scheduler_service.dispatch.progress import ProgressHub
from scheduler_service.journal.diagnosis import DiagnosisReads


@dataclass(frozen=True, slots=True)
class ClientApi:
    """The servicers, and what has to be closed after the server has stopped."""

    scheduler: SchedulerServicer
    operator: OperatorServicer
    hub: ProgressHub
    watchers: Watchers
    presence: Presence

    def add_to(self, server: grpc.aio.Server) -> None:
        """Adds both services to a server."""
        scheduler_service_pb2_grpc.add_SchedulerServiceServicer_to_server(self.scheduler, server)
        operator_service_pb2_grpc.add_OperatorServiceServicer_to_server(self.operator, server)

    async def aclose(self) -> None:
        """Ends the live subscriptions."""
        await self.hub.aclose()
        await self.presence.aclose()


def client_api(engine: EngineApi, *, version: str, watchers_max: int = 1000, pace: Pace | None = None) -> ClientApi:
    """The servicers over an engine."""
    reads = engine.journal.client_reads
    pace = pace or Pace()
    hub, watchers = ProgressHub(), Watchers(watchers_max)
    situations = Situations(reads, engine.expected_duration, engine.journal.clock)
    presence = Presence(engine.clients.seen)
    runs = Runs(engine, reads, situations, presence)
    callers = Callers(engine, runs)
    effects = Effects(engine, reads, situations=situations, runs=runs, callers=callers, presence=presence)
    watching = Watching(
        engine=engine,
        reads=reads,
        runs=runs,
        effects=effects,
        callers=callers,
        situations=situations,
        hub=hub,
        watchers=watchers,
        presence=presence,
        pace=pace,
    )
    outputs = Outputs(engine, reads, effects, watchers, pace)
    clients = Clients(engine, runs, effects)
    info = ServerInfo(engine, version=version, watchers_max=watchers_max)
    servicer = SchedulerServicer(
        runs=runs,
        control=Control(engine, runs),
        clients=clients,
        effects=effects,
        watching=watching,
        outputs=outputs,
        blobs=Blobs(reads, runs),
        info=info,
        usage=UsageReport(reads),
    )
    operator = OperatorServicer(
        executors=Executors(engine, reads),
        settlements=Settlements(engine, effects),
        holds=Holds(engine, reads),
        breakers=Breakers(engine, reads),
        budgets=Budgets(engine, reads, runs),
        bulk=BulkActions(engine, reads),
        audit=Audit(reads),
        diagnosis=DiagnosisReads(engine.journal, engine.journal.clock),
        engine=engine,
    )
    return ClientApi(servicer, operator, hub, watchers, presence)
