"""Fixtures of the executor's tests: a stand-in scheduler over a real journal, and an executor in this process."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

import backburner as bb
from executor_service.server import ExecutorServer
from executor_service.settings import Settings
from tests.integration.executor import functions  # noqa: F401 - registers what the tests call
from tests.support.children import pids_in
from tests.support.eventually import eventually
from tests.support.fake_scheduler import Dispatch, FakeScheduler, fake_scheduler
from tests.support.postgres import DisposablePostgres
from tests.support.services import Service

StartExecutor = Callable[..., Any]
NewExecutor = Callable[..., Service]


@pytest.fixture
async def scheduler(database_url: str) -> AsyncIterator[FakeScheduler]:
    async with fake_scheduler(database_url) as started:
        yield started


@pytest.fixture
def executor_settings(scheduler: FakeScheduler, tmp_path: Path) -> Mapping[str, Any]:
    return {
        "database_url": scheduler.dsn,
        "scheduler": scheduler.address,
        "executor_id": "executor-under-test",
        "state_dir": str(tmp_path / "state"),
        "drain_seconds": 1.0,
    }


@pytest.fixture
async def start_executor(executor_settings: Mapping[str, Any]) -> AsyncIterator[StartExecutor]:
    """Starts executors with other settings; stops them at the end."""
    async with AsyncExitStack() as stack:

        async def start(**changed: Any) -> ExecutorServer:
            server = ExecutorServer(Settings(**{**executor_settings, **changed}), bb.functions(), "test")
            await server.start()
            stack.push_async_callback(server.stop, 0.0)
            return server

        yield start


@pytest.fixture
async def executor(start_executor: StartExecutor) -> ExecutorServer:
    server: ExecutorServer = await start_executor()
    return server


@pytest.fixture
async def durable(postgres_server: DisposablePostgres) -> AsyncIterator[FakeScheduler]:
    """A stand-in over a Postgres of its own, for tests that stop it."""
    await postgres_server.migrate()
    async with fake_scheduler(postgres_server.dsn) as started:
        yield started


@pytest.fixture
def new_executor(scheduler: FakeScheduler, tmp_path: Path) -> Iterator[NewExecutor]:
    """Executors as processes of their own, all with one state directory; killed at the end."""
    services: list[Service] = []

    def new(**env: str) -> Service:
        base = {
            "DATABASE_URL": scheduler.dsn,
            "BACKBURNER_SCHEDULER": scheduler.address,
            "BACKBURNER_FUNCTION_MODULES": "tests.integration.executor.functions",
            "BACKBURNER_STATE_DIR": str(tmp_path / "state"),
        }
        service = Service("executor_service", {**base, **env}, tmp_path / f"executor-{len(services)}.log")
        services.append(service)
        service.start()
        return service

    yield new
    for service in services:
        service.kill()


async def stderr_pids(scheduler: FakeScheduler, dispatch: Dispatch) -> list[int]:
    """The process ids that a child said, once its output is stored."""

    async def look() -> list[int]:
        return pids_in(b"".join(data for _, data in await scheduler.output(dispatch, 2)))

    return await eventually(look)


def guard_of(executor: int) -> int:
    """Process id of the guard of an executor."""
    [pid] = [c.pid for c in psutil.Process(executor).children() if "executor_service.guardian" in " ".join(c.cmdline())]
    return pid


def kill_who_watches(executor: int) -> None:
    """kill -9 of the guard and of every keeper of a stopped executor: its children then outlive it."""
    for process in psutil.Process(executor).children(recursive=True):
        line = " ".join(process.cmdline())
        if "executor_service.guardian" in line or "keeper.py" in line:
            process.kill()
