"""One pair of services for the e2e tests of a worker; each test brings its own runs."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from scheduler_service.journal.migrate import migrate
from scheduler_service.postgres import EmbeddedPostgres, ServerOptions
from tests.support.services import Stack, running_stack

MODULES = "tests.e2e.processes"


@pytest.fixture(scope="session")
async def stack() -> AsyncIterator[Stack]:
    """Both services over a durable Postgres of their own."""
    server = EmbeddedPostgres(ServerOptions(durable=True))
    with tempfile.TemporaryDirectory(prefix="bb-e2e-") as place:
        folder = Path(place)
        dsn = server.start(folder / "postgres")
        try:
            await migrate(dsn, roles=True)
            async with running_stack(dsn, folder, MODULES) as services:
                yield services
        finally:
            server.stop("immediate")
