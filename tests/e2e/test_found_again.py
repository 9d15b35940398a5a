"""What is found again: an effect whose client was killed, and what had succeeded in a run that failed."""

import json
from pathlib import Path

import psycopg
import pytest

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.e2e.commands import Cli
from tests.support.eventually import eventually
from tests.support.journals import journal_of, of_type
from tests.support.services import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


async def run_of(stack: Stack, key: str) -> pb.Run:
    return (await stack.client.GetRun(pb.GetRunRequest(key=key))).run


async def test_a_killed_command_goes_on_and_is_found_again(cli: Cli, stack: Stack, tmp_path: Path) -> None:
    """The client dies by kill -9; the same command again follows what its predecessor had begun."""
    key = f"exec/{tmp_path.name}"
    line = f"echo begun >> {tmp_path}/begun; while [ ! -e {tmp_path}/release ]; do sleep 0.02; done; echo done"
    first = await cli.start("exec", "--run-key", key, "-c", line)
    await eventually((tmp_path / "begun").exists, timeout=30, message=lambda: first.said)
    first.process.kill()
    await first.process.wait()
    second = await cli.start("exec", "--run-key", key, "-c", line)
    await eventually(lambda: epoch_is(stack, key, 2), timeout=30, message=lambda: second.said)
    (tmp_path / "release").touch()
    done = await second.end()
    assert (done.code, done.out) == (0, "done\n"), done
    assert (tmp_path / "begun").read_text() == "begun\n"
    rows = await journal_of(stack.dsn, (await run_of(stack, key)).run_id)
    assert len(of_type(rows, "EFFECT_DISPATCHED")) == 1


async def epoch_is(stack: Stack, key: str, epoch: int) -> bool:
    async with await psycopg.AsyncConnection.connect(stack.dsn) as connection:
        cursor = await connection.execute(
            "SELECT c.epoch FROM backburner.client_runs c JOIN backburner.runs USING (run_id) WHERE key = %s", [key]
        )
        row = await cursor.fetchone()
    return row is not None and row[0] == epoch


async def test_a_failed_run_is_tried_again_without_what_had_succeeded(cli: Cli, tmp_path: Path) -> None:
    failed = await cli("run", "cli.costly", f"folder={tmp_path}", "--key", f"costly/{tmp_path.name}")
    assert failed.code == 1, failed
    (tmp_path / "fixed").touch()
    again = await cli("run", "cli.costly", f"folder={tmp_path}", "--reuse-from", f"key:costly/{tmp_path.name}")
    assert (again.code, json.loads(again.out)) == (0, ["one", "two"]), again
    assert [len((tmp_path / name).read_text().splitlines()) for name in ("one", "two")] == [1, 1], "each ran once"
