"""Life of the scheduler service: starts the engine and the gRPC server, drains and stops them in order."""

import asyncio
import contextlib
import logging
import random
import signal
from collections.abc import Mapping, Sequence
from functools import partial

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from backburner.scheduler.v1 import (
    dispatch_service_pb2,
    dispatch_service_pb2_grpc,
    operator_service_pb2,
    peer_service_pb2,
    peer_service_pb2_grpc,
    scheduler_service_pb2,
)
from scheduler_service.api.dispatch import DispatchServicer
from scheduler_service.api.interceptor import Begins, ErrorInterceptor
from scheduler_service.api.peers import PeerServicer
from scheduler_service.api.register import client_api
from scheduler_service.api.watchers import Pace
from scheduler_service.authoring.definitions import AnyProcess
from scheduler_service.iteration.engine import Engine
from scheduler_service.journal import Journal, open_journal
from scheduler_service.journal.metrics import metrics_reads
from scheduler_service.metrics.endpoint import Endpoint
from scheduler_service.metrics.figures import read_figures
from scheduler_service.metrics.journal_figures import JournalFigures
from scheduler_service.metrics.process import ProcessMetrics
from scheduler_service.metrics.samples import Sample
from scheduler_service.settings import Settings

log = logging.getLogger(__name__)

_SERVICES = (
    scheduler_service_pb2.DESCRIPTOR.services_by_name["SchedulerService"].full_name,
    operator_service_pb2.DESCRIPTOR.services_by_name["OperatorService"].full_name,
    dispatch_service_pb2.DESCRIPTOR.services_by_name["DispatchService"].full_name,
    peer_service_pb2.DESCRIPTOR.services_by_name["PeerService"].full_name,
)


_HEALTH_SECONDS = 1.0


class AddressInUse(Exception):
    """The listen address cannot be bound."""


def _options() -> list[tuple[str, int]]:
    age = 1_800_000
    return [
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.max_connection_age_ms", int(age * random.uniform(0.9, 1.1))),
        ("grpc.max_connection_age_grace_ms", 300_000),
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ]


def dialable(address: str) -> str:
    """The address when others can dial it; empty when it is a wildcard."""
    host, _, _ = address.rpartition(":")
    return "" if host in ("", "0.0.0.0", "[::]") else address  # noqa: S104 - compared, not bound


async def _read_metrics(journal: Journal) -> Sequence[Sample]:
    async with metrics_reads(journal) as reads:
        return await read_figures(reads)


class SchedulerServer:
    """One replica of the scheduler service."""

    def __init__(self, settings: Settings, processes: Mapping[str, AnyProcess], version: str) -> None:
        self._settings = settings
        self._processes = processes
        self._version = version
        self._health = HealthServicer()
        self._stack = contextlib.AsyncExitStack()
        self.address = ""
        #: Where metrics are served. Empty: nowhere.
        self.metrics_address = ""
        self.engine: Engine | None = None
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Opens the journal, binds the address, takes shards, and says that it serves."""
        journal = await self._stack.enter_async_context(
            open_journal(self._settings.database_url, scheduler_id=self._settings.scheduler_id)
        )
        try:
            await self._start(journal)
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self, journal: Journal) -> None:
        self.engine = Engine(self._settings, journal, self._processes, self._version)
        server = grpc.aio.server(interceptors=[ErrorInterceptor(self._measure(self.engine))], options=_options())
        self._register(server, self.engine)
        self.address = self._bind(server)
        await self.engine.start(self._settings.advertise or dialable(self.address))
        await server.start()
        self._server = server
        await self._set_health(serving=True)
        log.info("scheduler %s serves on %s", self._settings.scheduler_id, self.address)

    def _measure(self, engine: Engine) -> Begins | None:
        """Serves metrics, when that is asked for; returns what counts calls."""
        if not self._settings.metrics_address:
            return None
        metrics = ProcessMetrics(self._version)
        metrics.watch(engine)
        figures = JournalFigures(partial(_read_metrics, engine.journal))
        metrics.registry.register(figures)
        try:
            endpoint = Endpoint(self._settings.metrics_address, metrics.registry)
        except OSError as error:
            raise AddressInUse(
                f"cannot serve metrics on {self._settings.metrics_address} ({error.strerror}): choose another address "
                "with --metrics-address or BACKBURNER_METRICS_ADDRESS"
            ) from error
        self._stack.push_async_callback(figures.aclose)
        self._stack.push_async_callback(endpoint.aclose)
        self.metrics_address = endpoint.address
        log.info("metrics are on http://%s/metrics", endpoint.address)
        return metrics.call_begins

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT, or until a part dies, which is an error."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, stop.set)
        assert self.engine is not None  # noqa: S101 - start() was called
        failed = asyncio.create_task(self.engine.failed(), name="failed")
        watching = asyncio.create_task(self._watch_health(self.engine), name="health")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({failed, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        died = failed.result() if failed.done() else ""
        failed.cancel()
        watching.cancel()
        await self.stop()
        if died:
            raise RuntimeError(f"a part of the scheduler died: {died}")

    async def _watch_health(self, engine: Engine) -> None:
        """Says NOT_SERVING while too many iteration threads are stuck: this replica is to be replaced."""
        serving = True
        while True:
            await asyncio.sleep(_HEALTH_SECONDS)
            if engine.threads.healthy != serving:
                serving = engine.threads.healthy
                log.error("iteration threads: %s", "free again" if serving else "too many are stuck in process code")
                await self._set_health(serving=serving)

    async def _set_health(self, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *_SERVICES):
            await self._health.set(name, status)

    async def stop(self) -> None:
        """Drains: not healthy, streams told to move, leases released, calls ended, journal closed; in this order.

        Until the leases are released calls are answered, with DRAINING where they would begin something.
        """
        await self._health.enter_graceful_shutdown()
        if self.engine is not None:
            self.engine.begin_drain()
            await self.engine.hand_over(self._settings.drain_seconds)
        if self._server is not None:
            await self._server.stop(self._settings.drain_seconds)
        if self.engine is not None:
            await self.engine.stop()
        await self._stack.aclose()
        log.info("scheduler %s has stopped", self._settings.scheduler_id)

    def _register(self, server: grpc.aio.Server, engine: Engine) -> None:
        pace = Pace(
            heartbeat_s=self._settings.watch_heartbeat_seconds,
            lifetime_s=self._settings.watch_lifetime_seconds,
            poll_s=self._settings.poll_seconds,
        )
        api = client_api(engine, version=self._version, watchers_max=self._settings.watchers_max, pace=pace)
        api.add_to(server)
        self._stack.push_async_callback(api.aclose)
        dispatch_service_pb2_grpc.add_DispatchServiceServicer_to_server(
            DispatchServicer(engine, self._settings), server
        )
        peer_service_pb2_grpc.add_PeerServiceServicer_to_server(PeerServicer(engine.hints.hear), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (*_SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), server
        )

    def _bind(self, server: grpc.aio.Server) -> str:
        host, _, port = self._settings.listen.rpartition(":")
        try:
            bound = server.add_insecure_port(self._settings.listen)
        except RuntimeError as error:
            raise AddressInUse(
                f"cannot listen on {self._settings.listen}: is another scheduler running there? Choose another "
                "address with --listen or BACKBURNER_LISTEN"
            ) from error
        return f"{host}:{bound}" if port == "0" else self._settings.listen
