"""Executors and the command line are given several schedulers, one of which says nothing and one of which is killed."""

import asyncio
import json
import os
import socket
import sys
from pathlib import Path

import psycopg
import pytest

from tests.support.eventually import eventually
from tests.support.journals import check_journal, journal_of, of_type
from tests.support.postgres import DisposablePostgres
from tests.support.services import ROOT, Stack, result_value

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

MODULES = "tests.crash.executor_processes"
#: Nothing that runs may be given up while this machine is slow.
LONG_GRACE = {"BACKBURNER_GRACE_SECONDS": "600"}


@pytest.mark.invariant("I3", "I13")
async def test_an_executor_leaves_a_killed_scheduler_for_another_one(
    postgres_server: DisposablePostgres, tmp_path: Path
) -> None:
    await postgres_server.migrate()
    (tmp_path / "other").mkdir()
    stacks = {
        name: Stack(postgres_server.dsn, folder, MODULES, scheduler_env=LONG_GRACE | {"BACKBURNER_SCHEDULER_ID": name})
        for name, folder in (("one", tmp_path), ("other", tmp_path / "other"))
    }
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        named = [f"127.0.0.1:{silent.getsockname()[1]}", *(stack.address for stack in stacks.values())]
        executor = stacks["one"].new_executor("executor-1", BACKBURNER_SCHEDULER=",".join(named))
        try:
            for stack in stacks.values():
                stack.scheduler.start()
            for stack in stacks.values():
                await asyncio.wait_for(stack.channel.channel_ready(), 60)
            executor.start()
            run_id = await stacks["one"].create("holds", folder=str(tmp_path))
            await eventually((tmp_path / "began").exists, timeout=60, message=lambda: executor.tail)
            first = await _session(postgres_server.dsn)
            stacks[first[0]].scheduler.kill()
            [lives] = [stack for name, stack in stacks.items() if name != first[0]]
            await eventually(lambda: _moved(postgres_server.dsn, first), timeout=60, message=lambda: executor.tail)
            (tmp_path / "release").touch()
            assert result_value(await lives.result(run_id, 60)) == "released\n"
            shown = await _backburner("show", run_id, "--json", "--address", ",".join(named))
            assert json.loads(shown.splitlines()[0])["state"] == "RUN_STATE_COMPLETED"
        finally:
            executor.kill()
            for stack in stacks.values():
                await stack.close()
    rows = await journal_of(postgres_server.dsn, run_id)
    check_journal(rows)
    assert len(of_type(rows, "EFFECT_DISPATCHED")) == 1, "it ran on, and was adopted"


async def _session(dsn: str) -> tuple[str, int]:
    """Who holds the session of the executor, and its number."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        found = await connection.execute("SELECT holder, session_no FROM backburner.executors")
        row = await found.fetchone()
    assert row is not None
    return str(row[0]), int(row[1])


async def _moved(dsn: str, first: tuple[str, int]) -> bool:
    holder, number = await _session(dsn)
    return number > first[1] and holder not in ("", first[0])


async def _backburner(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "scheduler_service.cli", *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0, out
    return out.decode()
