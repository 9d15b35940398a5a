"""Fixtures of the tests that run real agent CLIs: a scripted model server, the CLIs, a home of their own."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from executor_service.server import ExecutorServer
from tests.integration.executor.conftest import (  # noqa: F401 - fixtures
    StartExecutor,
    executor_settings,
    scheduler,
    start_executor,
)
from tests.support.eventually import eventually
from tests.support.harnesses import CLIS, Cli
from tests.support.model_server import ModelServer, asked_and_answered

StartCli = Callable[..., Any]


@dataclass(frozen=True)
class Place:
    """Folders of one test: nothing that a CLI keeps is shared, and nothing of the machine's user is seen."""

    home: Path
    temporary: Path
    workspace: Path

    def environment(self, **more: str) -> dict[str, str]:
        """What a CLI is given: these folders, PATH and no key of anybody."""
        plain = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "NO_COLOR": "1", "TERM": "xterm-256color"}
        return {**plain, "HOME": str(self.home), "TMPDIR": str(self.temporary), **more}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Empty folders."""
    found = Place(tmp_path / "home", tmp_path / "tmp", tmp_path / "workspace")
    for folder in (found.home, found.temporary, found.workspace):
        folder.mkdir()
    return found


@pytest.fixture
def model_server() -> Iterator[ModelServer]:
    """Answers with one shell command, `echo hello`, then with words, until it is told to `play` something else."""
    with ModelServer(asked_and_answered()) as server:
        yield server


@pytest.fixture(scope="session")
def cli() -> Callable[[str], Cli]:
    """A CLI by the name of its harness; the test is skipped, with the reason, where it cannot be run."""

    def installed(name: str) -> Cli:
        reason = CLIS[name].why_not()
        if reason:
            pytest.skip(reason)
        return CLIS[name]

    return installed


@pytest.fixture
def start_cli(start_executor: StartExecutor, cli: Callable[[str], Cli]) -> StartCli:  # noqa: F811 - the fixture
    """An executor that has this CLI alone."""

    async def start(name: str, program: Path | None = None) -> ExecutorServer:
        installed = cli(name).executable  # or the test is skipped
        path = program or installed
        server: ExecutorServer = await start_executor(
            agents=(name,), harness_paths=(f"{name}={path}",), agent_homes="tenant"
        )
        offered = server.attempts.harnesses.describe  # a slow CLI is offered after the start; schedulers wait for it
        await eventually(lambda: name in [harness.name for harness in offered()], 90, f"{name} was not found")
        return server

    return start
