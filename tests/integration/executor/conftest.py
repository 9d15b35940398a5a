"""Fixtures of the executor's tests: a stand-in scheduler over a real journal, and an executor in this process."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

import backburner as bb
from executor_service.server import ExecutorServer
from executor_service.settings import Settings
from tests.integration.executor import functions  # noqa: F401 - registers what the tests call
from tests.support.fake_scheduler import FakeScheduler, fake_scheduler

StartExecutor = Callable[..., Any]


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
