"""A real executor beside the scheduler of a test, in this process, with real children."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import backburner as bb
from executor_service.server import ExecutorServer
from executor_service.settings import Settings
from tests.integration.engine.world import World
from tests.support.eventually import eventually
from tests.support.journals import alive


@asynccontextmanager
async def real_executor(
    at: World, folder: Path, name: str = "real", *, scheduler: str = "", **settings: Any
) -> AsyncIterator[ExecutorServer]:
    """One that has a session when the body begins, and is stopped without patience at its end."""
    given = {
        "database_url": at.dsn, "scheduler": scheduler or at.server.address, "executor_id": name,
        "state_dir": str(folder / f"state-{name}"), "drain_seconds": 0.0,
    }  # fmt: skip
    server = ExecutorServer(Settings(**{**given, **settings}), bb.functions(), "test")
    await server.start()
    try:
        await eventually(lambda: _ready(at, name), 60, f"{name} has no session")
        yield server
    finally:
        await server.stop(0.0)


def _ready(at: World, name: str) -> bool:
    session = at.engine.sessions.get(name)
    return session is not None and session.ready


async def said_pids(folder: Path, count: int = 2, name: str = "it") -> list[int]:
    """Process ids that children have written to this file, once there are so many."""
    path = folder / name

    def look() -> list[int]:
        found = [int(line) for line in path.read_text().split()] if path.exists() else []
        return found if len(found) >= count else []

    return await eventually(look, 60, f"no {count} processes in {path}")


def living(pids: list[int]) -> list[int]:
    """Those that are alive."""
    return [pid for pid in pids if alive(pid)]
