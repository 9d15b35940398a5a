"""The demo's process with kill -9 of each part in the middle: it ends with the right report all the same."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backburner.journal.v1 import journal_pb2
from tests.support.eventually import eventually
from tests.support.journals import check_journal, journal_of, marked_processes, of_type
from tests.support.postgres import DisposablePostgres
from tests.support.services import Stack, result_value, running_stack

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(400)]

MODULES = "scheduler_service.cli.demo.process,scheduler_service.cli.demo.functions"
FILES = 24


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository whose unit tests take some seconds."""
    folder = tmp_path / "repository"
    (folder / "tests").mkdir(parents=True)
    for number in range(FILES - 1):
        (folder / f"module_{number}.py").write_text(f"import os\n\n\ndef f():\n    return {number}\n")
    (folder / "tests" / "test_slow.py").write_text(
        "import time, pytest\n\n@pytest.mark.parametrize('n', range(40))\ndef test_n(n):\n    time.sleep(0.1)\n"
    )
    git = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *arguments], cwd=folder, check=True)
    return folder


async def _killed_in_the_middle(
    postgres: DisposablePostgres, folder: Path, repository: Path, kill: Callable[[Stack], None]
) -> list[Any]:
    """Runs the demo's process; kills once the unit tests run and the files are being looked at."""
    await postgres.migrate()
    async with running_stack(postgres.dsn, folder, MODULES) as stack:
        run_id = await stack.create("demo", repository=str(repository))

        async def in_the_middle() -> bool:
            rows = await journal_of(stack.dsn, run_id)
            return bool(of_type(rows, "EFFECT_STARTED", key="tests")) and len(of_type(rows, "EFFECT_RESOLVED")) > 5

        await eventually(in_the_middle, timeout=60, message=lambda: stack.scheduler.tail)
        kill(stack)
        run = await stack.result(run_id, 180)
        assert run.state == journal_pb2.RUN_STATE_COMPLETED, run
        _check_report(result_value(run))
        await eventually(lambda: not marked_processes(run_id), message="a child is still alive")
    rows = await journal_of(postgres.dsn, run_id)
    check_journal(rows)
    return rows


def _check_report(report: dict[str, Any]) -> None:
    assert report["files_checked"] == FILES
    assert report.get("broken", []) == []
    verdicts = {finding["key"]: finding["verdict"] for finding in report["findings"]}
    assert "40 passed" in verdicts["tests"], verdicts
    assert "commits 1" in verdicts["history"], verdicts
    assert report["answer"] == "accept by demo"
    assert "was first" in report["race"]


def _restart_scheduler(stack: Stack) -> None:
    stack.scheduler.kill()
    stack.scheduler.start()


def _restart_executor(stack: Stack) -> None:
    stack.executor.kill()
    stack.executor.start()


async def test_kill_of_the_scheduler(postgres_server: DisposablePostgres, tmp_path: Path, repository: Path) -> None:
    rows = await _killed_in_the_middle(postgres_server, tmp_path, repository, _restart_scheduler)
    assert len(of_type(rows, "EFFECT_DISPATCHED", key="tests")) == 1, "running work was not adopted"


async def test_kill_of_the_executor(postgres_server: DisposablePostgres, tmp_path: Path, repository: Path) -> None:
    rows = await _killed_in_the_middle(postgres_server, tmp_path, repository, _restart_executor)
    lost = of_type(rows, "EFFECT_ATTEMPT_LOST", key="tests")
    assert [row.data["reason"] for row in lost] == ["EFFECT_REASON_EXECUTOR_LOST"]


async def test_kill_of_postgres(postgres_server: DisposablePostgres, tmp_path: Path, repository: Path) -> None:
    def restart(_stack: Stack) -> None:
        postgres_server.kill()
        postgres_server.start()

    await _killed_in_the_middle(postgres_server, tmp_path, repository, restart)
