"""One pair of services for the e2e tests of a worker; each test brings its own runs."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from scheduler_service.journal.migrate import migrate
from scheduler_service.postgres import EmbeddedPostgres, ServerOptions
from tests.e2e.commands import Cli, command_line
from tests.support.services import Stack, running_stack

MODULES = "tests.e2e.processes,tests.e2e.agents,tests.e2e.cli_processes,tests.e2e.workspace_processes"


@asynccontextmanager
async def services_of_their_own(modules: str, **options: Any) -> AsyncIterator[Stack]:
    """Both services over a durable Postgres of their own."""
    server = EmbeddedPostgres(ServerOptions(durable=True))
    with tempfile.TemporaryDirectory(prefix="bb-e2e-") as place:
        folder = Path(place)
        dsn = server.start(folder / "postgres")
        try:
            await migrate(dsn, roles=True)
            async with running_stack(dsn, folder, modules, **options) as services:
                yield services
        finally:
            server.stop("immediate")


@pytest.fixture(scope="session")
async def stack() -> AsyncIterator[Stack]:
    """The services that most tests share."""
    async with services_of_their_own(MODULES) as services:
        yield services


@pytest.fixture
async def cli(stack: Stack, tmp_path: Path) -> AsyncIterator[Cli]:
    """The command line beside those services, in a folder of the test's own."""
    async with command_line(stack.address, tmp_path) as commands:
        yield commands
