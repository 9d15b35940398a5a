"""A scheduler service in this process, over a real Postgres and real gRPC, with scripted executors and a client."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import psycopg
from google.protobuf import json_format

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import operator_service_pb2_grpc as operator_grpc
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from backburner.scheduler.v1 import scheduler_service_pb2_grpc as pb_grpc
from scheduler_service.authoring.definitions import AnyProcess
from scheduler_service.iteration.engine import Engine
from scheduler_service.server import SchedulerServer
from scheduler_service.settings import Settings
from tests.integration.engine import processes
from tests.integration.engine.executor import ScriptedExecutor
from tests.support.eventually import eventually
from tests.support.journals import JournalRow, check_journal, journal_of, of_type

ALL: Mapping[str, AnyProcess] = processes.ALL
STATE = journal_pb2.RunState


class World:
    """What a test works with. Times are short: a poll is a tenth of a second, a lease three seconds.

    A step may take long: a thousand effects asked for in one are the work of a second on a slow machine.
    """

    def __init__(self, dsn: str, **settings: Any) -> None:
        self.dsn = dsn
        self._settings: dict[str, Any] = {
            "poll_seconds": 0.1, "lease_seconds": 3.0, "heartbeat_seconds": 0.5, "drain_seconds": 1.0,
            "listen": "127.0.0.1:0", "check_calls": "all", "step_seconds_max": 60.0,
        } | settings  # fmt: skip
        self._executors: list[ScriptedExecutor] = []
        self.runs: list[str] = []

    async def start(self, known: Mapping[str, AnyProcess] = ALL, **settings: Any) -> None:
        """A new replica; its address is another one than its predecessor's."""
        self.server = SchedulerServer(Settings(database_url=self.dsn, **(self._settings | settings)), known, "test")
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(self.server.address)
        self.client = pb_grpc.SchedulerServiceStub(self.channel)
        self.operator = operator_grpc.OperatorServiceStub(self.channel)

    async def stop(self) -> None:
        await self.channel.close()
        await self.server.stop()

    async def restart(self, known: Mapping[str, AnyProcess] = ALL, **settings: Any) -> None:
        await self.stop()
        await self.start(known, **settings)

    @property
    def engine(self) -> Engine:
        assert self.server.engine is not None
        return self.server.engine

    def executor(self, executor_id: str = "x", **options: Any) -> ScriptedExecutor:
        """An executor that is not connected yet."""

        def taken(session_no: int) -> bool:
            session = self.engine.sessions.get(executor_id)
            return session is not None and session.session_no == session_no and session.ready

        made = ScriptedExecutor(self.channel, self.dsn, executor_id, taken=taken, **options)
        self._executors.append(made)
        return made

    async def create(self, process: str, *, namespace: str = "", cleanup_s: float | None = None, **given: Any) -> str:
        request = pb.CreateRunRequest(process=process, namespace=namespace)
        json_format.ParseDict(given, request.input)
        if cleanup_s is not None:
            request.cleanup_timeout.FromNanoseconds(int(cleanup_s * 1e9))
        run_id = str((await self.client.CreateRun(request, timeout=60)).run.run_id)
        self.runs.append(run_id)
        return run_id

    async def cancel(self, run_id: str) -> None:
        await self.client.CancelRun(pb.CancelRunRequest(run_id=run_id, reason="enough"), timeout=60)

    async def result(self, run_id: str, timeout_s: float = 60.0) -> pb.Run:
        """The run, once it has ended or is parked."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while loop.time() < deadline:
            answer = await self.client.WaitRun(pb.WaitRunRequest(run_id=run_id), timeout=timeout_s + 5)
            if not answer.timed_out:
                return answer.run
        raise AssertionError(f"run {run_id} did not end: {await self.rows(run_id)}")

    async def value(self, run_id: str, timeout_s: float = 60.0) -> Any:
        """What the run returned; it must have completed."""
        run = await self.result(run_id, timeout_s)
        assert run.state == STATE.RUN_STATE_COMPLETED, run
        return json_format.MessageToDict(run.result.value)

    async def rows(self, run_id: str, *types: str, key: str | None = None) -> list[JournalRow]:
        rows = await journal_of(self.dsn, run_id)
        return of_type(rows, *types, key=key) if types else rows

    async def row(self, run_id: str, kind: str, key: str | None = None, timeout_s: float = 30.0) -> JournalRow:
        """The first row of the type, once it is there."""
        found = await eventually(
            lambda: self.rows(run_id, kind, key=key), timeout_s, message=f"no {kind} of {key or run_id}"
        )
        return found[0]

    async def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            return await (await connection.execute(statement.encode(), parameters)).fetchall()

    async def close(self) -> None:
        """Stops everything; every journal must be sound at the end, whatever the test did."""
        for executor in self._executors:
            await executor.close()
        await self.stop()
        for run_id in self.runs:
            check_journal(await journal_of(self.dsn, run_id))


@asynccontextmanager
async def world(dsn: str, known: Mapping[str, AnyProcess] = ALL, **settings: Any) -> AsyncIterator[World]:
    made = World(dsn, **settings)
    await made.start(known)
    try:
        yield made
    finally:
        await made.close()
