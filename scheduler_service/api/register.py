"""Puts the servicers of clients and operators together and on a server."""

from dataclasses import dataclass

import grpc

from backburner.scheduler.v1 import operator_service_pb2_grpc, scheduler_service_pb2_grpc
from scheduler_service.api.control import Control
from scheduler_service.api.effects import Effects
from scheduler_service.api.engine import EngineApi
from scheduler_service.api.info import ServerInfo
from scheduler_service.api.operations import Executors, OperatorServicer
from scheduler_service.api.output import Outputs
from scheduler_service.api.runs import Runs
from scheduler_service.api.servicer import SchedulerServicer
from scheduler_service.api.waiting import Situations
from scheduler_service.api.watchers import Pace, Watchers
from scheduler_service.api.watching import Watching
from scheduler_service.dispatch.progress import ProgressHub


@dataclass(frozen=True, slots=True)
class ClientApi:
    """The servicers, and what has to be closed after the server has stopped."""

    scheduler: SchedulerServicer
    operator: OperatorServicer
    hub: ProgressHub
    watchers: Watchers

    def add_to(self, server: grpc.aio.Server) -> None:
        """Adds both services to a server."""
        scheduler_service_pb2_grpc.add_SchedulerServiceServicer_to_server(self.scheduler, server)
        operator_service_pb2_grpc.add_OperatorServiceServicer_to_server(self.operator, server)

    async def aclose(self) -> None:
        """Ends the live subscriptions."""
        await self.hub.aclose()


def client_api(
    engine: EngineApi, *, version: str, schema_version: int = 1, watchers_max: int = 1000, pace: Pace | None = None
) -> ClientApi:
    """The servicers over an engine."""
    reads = engine.journal.client_reads
    pace = pace or Pace()
    hub, watchers, situations = ProgressHub(), Watchers(watchers_max), Situations(reads)
    runs = Runs(engine, reads, situations)
    effects = Effects(engine, reads, situations, runs)
    watching = Watching(
        engine=engine,
        reads=reads,
        runs=runs,
        effects=effects,
        situations=situations,
        hub=hub,
        watchers=watchers,
        pace=pace,
    )
    outputs = Outputs(engine, reads, effects, watchers, pace)
    info = ServerInfo(engine, version=version, schema_version=schema_version, watchers_max=watchers_max)
    servicer = SchedulerServicer(
        runs=runs, control=Control(engine, runs), effects=effects, watching=watching, outputs=outputs, info=info
    )
    return ClientApi(servicer, OperatorServicer(Executors(engine, reads)), hub, watchers)
