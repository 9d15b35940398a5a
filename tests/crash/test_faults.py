"""Faults below the services: connections of Postgres that die by the dozen, restarts, a network that comes and goes."""

import asyncio
from pathlib import Path

import psycopg
import pytest

from backburner.journal.v1 import journal_pb2
from tests.support.eventually import eventually
from tests.support.journals import JournalRow, check_journal, journal_of, of_type
from tests.support.postgres import DisposablePostgres
from tests.support.services import Stack, result_value, running_stack
from tests.support.tcp_proxy import tcp_proxy

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

MODULES = "tests.e2e.processes"
FOREGROUND = 40
EXPECTED = {
    "total": 780, "pending": True, "stdout": "released\n", "stderr": "done\n", "sums": [2 * i for i in range(10)],
}  # fmt: skip
TERMINATE = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


async def ended(stack: Stack, run_id: str, folder: Path) -> list[JournalRow]:
    """The journal of a run of `mixed`, which must come to its right end."""
    await eventually((folder / "half-way").exists, timeout=90, message=lambda: stack.scheduler.tail)
    (folder / "release").touch()
    run = await stack.result(run_id, 90)
    assert run.state == journal_pb2.RUN_STATE_COMPLETED, run
    assert result_value(run) == EXPECTED
    rows = await journal_of(stack.dsn, run_id)
    check_journal(rows)
    return rows


def check_marks(rows: list[JournalRow], folder: Path) -> None:
    """Outside the database, nothing ran more often than the journal says: once an attempt that may have started."""
    for i in range(FOREGROUND):
        key = f"mark/{i}"
        lost = [row for row in of_type(rows, "EFFECT_ATTEMPT_LOST", key=key) if row.data.get("never_started")]
        most = len(of_type(rows, "EFFECT_DISPATCHED", key=key)) - len(lost)
        ran = len((folder / f"mark-{i}").read_text().splitlines())
        assert 1 <= ran <= most, f"{key} ran {ran} times in {most} attempts"


@pytest.mark.invariant("I2", "I6", "I14")
async def test_a_storm_of_terminated_connections(postgres_server: DisposablePostgres, tmp_path: Path) -> None:
    """Any commit may be in doubt at any time, again and again; the lease is longer than any one doubt."""
    await postgres_server.migrate()
    env = {"BACKBURNER_LEASE_SECONDS": "5"}
    async with running_stack(postgres_server.dsn, tmp_path, MODULES, scheduler_env=env) as stack:
        run_id = await stack.create("mixed", folder=str(tmp_path), foreground=FOREGROUND)
        terminated = 0
        async with await psycopg.AsyncConnection.connect(stack.dsn, autocommit=True) as connection:
            for _ in range(30):
                row = await (await connection.execute(TERMINATE)).fetchone()
                terminated += row[0] if row else 0
                await asyncio.sleep(0.1)
        assert terminated > 30
        rows = await ended(stack, run_id, tmp_path)
    check_marks(rows, tmp_path)


@pytest.mark.invariant("I2", "I4")
async def test_postgres_loses_power_twice(postgres_server: DisposablePostgres, tmp_path: Path) -> None:
    await postgres_server.migrate()
    async with running_stack(postgres_server.dsn, tmp_path, MODULES) as stack:
        run_id = await stack.create("mixed", folder=str(tmp_path), foreground=FOREGROUND)
        for mark in ("mark-5", "mark-15"):
            await eventually((tmp_path / mark).exists, timeout=60, message=lambda: stack.scheduler.tail)
            before = await journal_of(stack.dsn, run_id)
            postgres_server.stop("immediate")
            postgres_server.start()
            after = await journal_of(stack.dsn, run_id)
            assert after[: len(before)] == before, "rows that were read before are gone or different"
        rows = await ended(stack, run_id, tmp_path)
    check_marks(rows, tmp_path)


@pytest.mark.invariant("I3", "I13")
async def test_a_control_stream_that_is_cut_again_and_again(
    postgres_server: DisposablePostgres, tmp_path: Path
) -> None:
    """Within the grace, nothing that runs is lost and nothing is run twice."""
    await postgres_server.migrate()
    stack = Stack(postgres_server.dsn, tmp_path, MODULES)
    async with tcp_proxy(stack.address) as proxy:
        stack.executor = stack.new_executor("executor-1", BACKBURNER_SCHEDULER=proxy.address)
        try:
            await stack.start()
            run_id = await stack.create("mixed", folder=str(tmp_path), foreground=FOREGROUND)
            for cut in range(8):
                await eventually((tmp_path / f"mark-{2 * cut}").exists, timeout=60, message=lambda: stack.executor.tail)
                proxy.latency_s = 0.02 * (cut % 2)
                if cut == 4:
                    proxy.black_hole()
                    await asyncio.sleep(0.5)
                    proxy.heal()
                proxy.cut()
            rows = await ended(stack, run_id, tmp_path)
            assert proxy.connections > 8
        finally:
            await stack.close()
    check_marks(rows, tmp_path)
    lost = of_type(rows, "EFFECT_ATTEMPT_LOST")
    assert all(row.data.get("never_started") for row in lost), "a running attempt was given up inside the grace"
    assert not of_type(rows, "EFFECT_ATTEMPT_LOST", key="slow")
