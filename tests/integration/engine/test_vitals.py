"""A replica measures how it does, and any replica tells: slow commits, reads that wait, iterations that wait."""

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack

import psycopg
import pytest

from backburner.scheduler.v1 import operator_service_pb2 as pb
from scheduler_service.api import diagnosis_services
from scheduler_service.journal.readers import CONNECTIONS_MAX
from tests.integration.engine.world import World
from tests.support.eventually import eventually

#: What counts as long here, so that the tests need not take long.
LONG = 0.2


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis_services, "_SAMPLES_MIN", 1)
    monkeypatch.setattr(diagnosis_services, "_LAG_SECONDS", LONG)


async def told(at: World, code: str) -> list[pb.Finding]:
    found = (await at.operator.Diagnose(pb.DiagnoseRequest(), timeout=60)).findings
    return [finding for finding in found if finding.code == code]


async def test_commits_that_take_long_are_told_of(at: World) -> None:
    await _slow_journal(at)

    async def slow() -> list[pb.Finding]:
        await at.create("sleeper", seconds=0)
        return await told(at, "COMMITS_SLOW")

    [finding] = await eventually(slow, timeout=60)
    assert list(finding.subjects) == [at.engine.scheduler_id]


async def test_reads_that_wait_for_a_connection_are_told_of(at: World) -> None:
    async def waits() -> list[pb.Finding]:
        async with AsyncExitStack() as held:
            for _ in range(CONNECTIONS_MAX):
                await held.enter_async_context(at.engine.journal.connection())
            began = time.monotonic()
            await eventually(lambda: at.engine.journal.readers.waiting and time.monotonic() - began > LONG)
        return await told(at, "POOL_WAITERS")

    [finding] = await eventually(waits, timeout=60)
    assert list(finding.subjects) == [at.engine.scheduler_id]


@contextlib.contextmanager
def busy_thread(at: World) -> Iterator[None]:
    """The iteration thread does something else meanwhile."""
    over = threading.Event()
    at.engine.threads.submit(over.wait, lambda result: None)
    try:
        yield
    finally:
        over.set()


async def test_iterations_that_wait_for_their_turn_are_told_of(at: World) -> None:
    await at.restart(step_seconds_max=600.0)
    with busy_thread(at):
        await at.create("sleeper", seconds=0)
        began = time.monotonic()
        await eventually(lambda: time.monotonic() - began > 2 * LONG, message="time stands still")
    [finding] = await eventually(lambda: told(at, "ITERATION_LAG"), timeout=60)
    assert list(finding.subjects) == [at.engine.scheduler_id]


async def test_leases_that_ran_out_are_told_of(at: World) -> None:
    await at.query("UPDATE backburner.shards SET owner = 'another', expires_at = now() + interval '1 h' RETURNING 1")
    [finding] = await eventually(lambda: told(at, "SHARDS_LOST"), timeout=60)
    assert "16 leases" in finding.message


async def _slow_journal(at: World) -> None:
    async with await psycopg.AsyncConnection.connect(at.dsn, autocommit=True) as connection:
        await connection.execute(
            "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END $$"
        )
        await connection.execute(
            "CREATE TRIGGER slow AFTER INSERT ON backburner.journal FOR EACH STATEMENT EXECUTE FUNCTION public.slow()"
        )
