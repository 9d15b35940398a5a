"""Schedulers as processes of their own: one takes over from the other, and what was stopped does no harm."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import psycopg
import pytest
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc

from backburner.scheduler.v1 import dispatch_service_pb2 as dispatch_pb
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from backburner.scheduler.v1 import scheduler_service_pb2_grpc as pb_grpc
from scheduler_service.iteration.shares import fair_share
from scheduler_service.journal import shard_of
from tests.integration.engine.executor import SUCCEEDED, ScriptedExecutor
from tests.support.eventually import eventually
from tests.support.journals import JournalRow, check_journal, journal_of, of_type
from tests.support.services import Service, free_port

pytestmark = pytest.mark.slow


class Replica:
    """One scheduler, a client of it, and an executor that answers everything."""

    def __init__(self, dsn: str, name: str, folder: Path) -> None:
        self.dsn = dsn
        self.name = name
        self.address = f"127.0.0.1:{free_port()}"
        env = {
            "DATABASE_URL": dsn, "BACKBURNER_LISTEN": self.address, "BACKBURNER_SCHEDULER_ID": name,
            "BACKBURNER_PROCESS_MODULES": "tests.integration.engine.replica_processes",
            "BACKBURNER_LEASE_SECONDS": "1.5", "BACKBURNER_POLL_SECONDS": "0.1",
        }  # fmt: skip
        self.service = Service("scheduler_service", env, folder / f"{name}.log")
        self.channel = grpc.aio.insecure_channel(
            self.address,
            options=[("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 300)],
        )
        self.client = pb_grpc.SchedulerServiceStub(self.channel)
        self.executors: list[ScriptedExecutor] = []

    async def start(self) -> None:
        self.service.start()
        health = health_pb2_grpc.HealthStub(self.channel)

        async def serving() -> bool:
            try:
                answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=1)  # type: ignore[attr-defined]
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.status == answer.SERVING)

        await eventually(serving, timeout=30, message=lambda: self.service.tail)

    async def executor(self, executor_id: str = "x") -> ScriptedExecutor:
        made = ScriptedExecutor(self.channel, self.dsn, executor_id)
        self.executors.append(made)
        await made.connect()
        return made

    async def create(self, process: str, **given: object) -> str:
        request = pb.CreateRunRequest(process=process)
        json_format.ParseDict(given, request.input)
        return str((await self.client.CreateRun(request, timeout=60)).run.run_id)

    async def close(self) -> None:
        for executor in self.executors:
            await executor.close()
        await self.channel.close()
        self.service.kill()


@asynccontextmanager
async def replicas(dsn: str, folder: Path, *names: str) -> AsyncIterator[list[Replica]]:
    """Started one after the other."""
    made = [Replica(dsn, name, folder) for name in names]
    try:
        for replica in made:
            await replica.start()
        yield made
    finally:
        for replica in made:
            await replica.close()


async def owners(dsn: str) -> dict[int, str]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute("SELECT shard, owner FROM backburner.shards WHERE owner IS NOT NULL")
        return dict(await cursor.fetchall())


async def shared(dsn: str, *names: str) -> dict[int, str]:
    """Who owns what, once these replicas have their shares."""

    async def look() -> dict[int, str]:
        now = await owners(dsn)
        shares = {name: fair_share(name, names) for name in names}
        return now if Counter(now.values()) == Counter(shares) else {}

    return await eventually(look, timeout=30, message=lambda: "the shards are not shared")


async def owned_runs(replica: Replica, many: int, process: str, **given: object) -> list[str]:
    """So many runs in shards of this replica."""
    made: list[str] = []
    while len(made) < many:
        run_id = await replica.create(process, **given)
        if (await owners(replica.dsn))[shard_of(run_id)] == replica.name:
            made.append(run_id)
    return made


async def journal_with(dsn: str, run_id: str, kind: str, timeout_s: float = 30.0) -> list[JournalRow]:
    """The journal, once it has a row of this type."""

    said: list[str] = []

    async def look() -> list[JournalRow]:
        rows = await journal_of(dsn, run_id)
        said[:] = [f"{row.type} {row.key} {row.data.get('error', '')}" for row in rows]
        return rows if of_type(rows, kind) else []

    return await eventually(look, timeout=timeout_s, message=lambda: f"no {kind}: {said}")


@pytest.mark.invariant("I5", "I6")
async def test_the_standby_takes_over_from_a_killed_owner(database_url: str, tmp_path: Path) -> None:
    async with replicas(database_url, tmp_path, "first", "second") as (first, second):
        await shared(database_url, "first", "second")
        executor = await first.executor()
        [run_id] = await owned_runs(first, 1, "replica-steps", count=4)
        await executor.settle(await _start_in(executor, run_id, "step/0"), value=0)
        running = await _start_in(executor, run_id, "step/1")
        first.service.kill()
        successor = await second.executor()
        successor.incarnation = executor.incarnation
        await successor.connect([running])
        successor.answer = lambda start: SUCCEEDED | {"value": int(start.effect_key.removeprefix("step/"))}
        successor.notices = True
        assert await successor.settle(running, value=1) == "ok"
        await eventually(lambda: _owned_by(database_url, "second"), message="no takeover after the lease")
        rows = await journal_with(database_url, run_id, "RUN_COMPLETED")
    check_journal(rows)
    assert len(of_type(rows, "EFFECT_RESOLVED")) == 4
    assert len(of_type(rows, "EFFECT_DISPATCHED")) == 4


async def _start_in(executor: ScriptedExecutor, run_id: str, key: str) -> dispatch_pb.StartAttempt:
    def look() -> list[dispatch_pb.StartAttempt]:
        return [start for start in executor.starts if (start.run_id, start.effect_key) == (run_id, key)]

    return (await eventually(look, message=f"no start of {key}"))[0]


async def _owned_by(dsn: str, name: str) -> bool:
    return set((await owners(dsn)).values()) == {name}


@pytest.mark.invariant("I2", "I5")
async def test_an_owner_that_slept_through_its_lease_cannot_append(database_url: str, tmp_path: Path) -> None:
    """Stopped for longer than the lease, it wakes with its coroutines, its timers and its sessions still in memory."""
    async with replicas(database_url, tmp_path, "first", "second") as (first, second):
        await shared(database_url, "first", "second")
        executor = await first.executor()
        run_ids = await owned_runs(first, 5, "replica-steps", count=3)
        await eventually(lambda: {start.run_id for start in executor.starts} >= set(run_ids))
        first.service.send(signal.SIGSTOP)
        await eventually(lambda: _owned_by(database_url, "second"))
        successor = ScriptedExecutor(second.channel, database_url, "x", incarnation=executor.incarnation)
        second.executors.append(successor)
        await successor.connect(executor.starts)
        heard = [start for start in executor.starts if start.run_id in run_ids]
        for start in heard[:3]:
            assert await successor.settle(start, value=0) == "ok"
        first.service.send(signal.SIGCONT)
        for start in heard[3:]:
            assert await successor.settle(start, value=0) == "ok"
        successor.answer = lambda start: SUCCEEDED | {"value": 0}
        for start in [*successor.starts, *(start for start in executor.starts if start.run_id not in run_ids)]:
            await successor.settle(start, value=0)
        for run_id in run_ids:
            rows = await journal_with(database_url, run_id, "RUN_COMPLETED")
            check_journal(rows)
            assert len(of_type(rows, "EFFECT_RESOLVED")) == 3
            epochs = [row.writer for row in rows if row.writer.startswith("scheduler/")]
            assert epochs[-1] == "scheduler/second"
            taken_over = epochs.index("scheduler/second")
            assert "scheduler/first" not in epochs[taken_over:], "the former owner has appended"
        await eventually(lambda: "is lost; its runs go on elsewhere" in first.service.tail)


@pytest.mark.invariant("I6")
async def test_a_run_that_kills_its_scheduler_is_parked_and_the_others_go_on(database_url: str, tmp_path: Path) -> None:
    async with replicas(database_url, tmp_path, "first") as (first,):
        executor = await first.executor()
        poison = await first.create("kills-its-scheduler")
        good = await first.create("replica-steps", count=2)
        fuse = await executor.start_of("fuse")
        waiting = await executor.start_of("step/0")
        assert await executor.settle(fuse) == "ok"
        deaths = 0
        while not of_type(await journal_of(database_url, poison), "PROCESS_RUNTIME_ERROR"):
            assert first.service.process is not None
            if first.service.process.poll() is not None:
                assert first.service.process.returncode == 7, first.service.tail
                deaths += 1
                assert deaths < 8, "the poison run kills one scheduler after the other"
                first.service.start()
            await asyncio.sleep(0.05)
        assert 3 <= deaths <= 5, "one death of the live run, three of its replays"
        rows = await journal_of(database_url, poison)
        assert of_type(rows, "PROCESS_RUNTIME_ERROR")[0].data["error"]["kind"] == "STRIKES"
        check_journal(rows)
        survivor = ScriptedExecutor(first.channel, database_url, "x", incarnation=executor.incarnation)
        first.executors.append(survivor)
        survivor.answer = lambda start: SUCCEEDED
        await eventually(lambda: _connected(survivor, waiting), interval=0.2)
        assert await survivor.settle(waiting) == "ok"
        check_journal(await journal_with(database_url, good, "RUN_COMPLETED"))


async def _connected(executor: ScriptedExecutor, *running: object) -> bool:
    try:
        await executor.connect(running)  # type: ignore[arg-type]
    except grpc.aio.AioRpcError:
        return False
    return True
