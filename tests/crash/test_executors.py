"""Executors that die, are cut off, or meet another of their name: what the journal says, and when."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.eventually import eventually
from tests.support.journals import SETTLING, JournalRow, alive, check_journal, journal_of
from tests.support.postgres import DisposablePostgres
from tests.support.services import Stack, free_port, result_value, running_stack
from tests.support.tcp_proxy import tcp_proxy

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

MODULES = "tests.crash.executor_processes"
LOST = "EFFECT_REASON_EXECUTOR_LOST"
#: Longer than any test: what comes before it has not waited for it.
NO_GRACE = {"BACKBURNER_GRACE_SECONDS": "600"}
SHORT_GRACE = {"BACKBURNER_GRACE_SECONDS": "3", "BACKBURNER_HEARTBEAT_SECONDS": "0.3"}


@pytest.fixture
async def dsn(postgres_server: DisposablePostgres) -> str:
    await postgres_server.migrate()
    return postgres_server.dsn


async def pids(folder: Path, count: int = 1) -> list[int]:
    """Process ids of the children, once so many have begun."""
    began = folder / "began"

    def said() -> list[int]:
        found = [int(line) for line in began.read_text().split()] if began.exists() else []
        return found if len(found) >= count else []

    return await eventually(said, timeout=60)


async def rows_of(stack: Stack, run_id: str, *types: str) -> list[JournalRow]:
    """The rows of the effect, of these types or of all."""
    rows = await journal_of(stack.dsn, run_id)
    return [row for row in rows if row.key == "work" and row.type in (types or (row.type,))]


async def seen(stack: Stack, run_id: str, kind: str) -> JournalRow:
    """The first row of the type, once it is there."""
    found = await eventually(
        lambda: rows_of(stack, run_id, kind), timeout=60, message=lambda: f"no {kind}\n{stack.scheduler.tail}"
    )
    return found[0]


async def ended(stack: Stack, run_id: str, value: str) -> list[JournalRow]:
    """The rows of the effect of a run that has returned this."""
    run = await stack.result(run_id, 60)
    assert result_value(run) == value, run
    check_journal(await journal_of(stack.dsn, run_id))
    return await rows_of(stack, run_id)


def story(rows: list[JournalRow]) -> list[tuple[str, int]]:
    """Types and attempts of an effect's rows; starts are left out: whether one is written is a matter of moments."""
    return [(row.type, row.attempt) for row in rows if row.type != "EFFECT_STARTED"]


@pytest.mark.invariant("I3", "I13")
async def test_killed_executor_that_is_started_again_reports_its_attempts_lost_at_once(
    dsn: str, tmp_path: Path
) -> None:
    """max_attempts=1: started once, failed as lost, and nobody can know whether it had an effect."""
    async with running_stack(dsn, tmp_path, MODULES, scheduler_env=NO_GRACE) as stack:
        run_id = await stack.create("holds", folder=str(tmp_path))
        [pid] = await pids(tmp_path)
        stack.executor.kill()
        await eventually(lambda: not alive(pid), timeout=30, message="the guard has left a child")
        stack.executor.start()
        rows = await ended(stack, run_id, "EXECUTOR_LOST")
    assert story(rows) == [
        ("EFFECT_REQUESTED", 0), ("EFFECT_DISPATCHED", 1), ("EFFECT_ATTEMPT_LOST", 1), ("EFFECT_RESOLVED", 1),
    ]  # fmt: skip
    assert rows[-1].data["error"]["reason"] == LOST
    assert rows[-1].data["death"] == "DEATH_UNPROVEN"


@pytest.mark.invariant("I3", "I13")
async def test_killed_executor_with_retries_goes_on_with_the_next_attempt(dsn: str, tmp_path: Path) -> None:
    async with running_stack(dsn, tmp_path, MODULES, scheduler_env=NO_GRACE) as stack:
        run_id = await stack.create("holds", folder=str(tmp_path), attempts=2)
        await pids(tmp_path)
        stack.executor.kill()
        stack.executor.start()
        await pids(tmp_path, 2)
        (tmp_path / "release").touch()
        rows = await ended(stack, run_id, "released\n")
    assert story(rows) == [
        ("EFFECT_REQUESTED", 0), ("EFFECT_DISPATCHED", 1), ("EFFECT_ATTEMPT_LOST", 1), ("EFFECT_DISPATCHED", 2),
        ("EFFECT_RESOLVED", 2),
    ]  # fmt: skip


@pytest.mark.invariant("I5", "I13")
async def test_attempts_of_runs_that_another_replica_owns_are_reported_lost_at_once_too(
    dsn: str, tmp_path: Path
) -> None:
    """The executor is connected to one scheduler; only the owner of a run may declare, whichever replica that is."""
    async with running_stack(dsn, tmp_path, MODULES, scheduler_env=NO_GRACE) as stack:
        other = Stack(dsn, tmp_path / "other", MODULES, scheduler_env=NO_GRACE)
        (tmp_path / "other").mkdir()
        try:
            other.scheduler.start()
            await eventually(lambda: _shares(stack, 2), timeout=60, message="the second replica owns nothing")
            run_ids = [await stack.create("holds", folder=str(tmp_path)) for _ in range(8)]
            await pids(tmp_path, 8)
            stack.executor.kill()
            stack.executor.start()
            for run_id in run_ids:
                await ended(stack, run_id, "EXECUTOR_LOST")
        finally:
            await other.close()


async def _shares(stack: Stack, owners: int) -> bool:
    async with await psycopg.AsyncConnection.connect(stack.dsn) as connection:
        query = "SELECT count(DISTINCT owner) FROM backburner.shards WHERE expires_at > now()"
        row = await (await connection.execute(query)).fetchone()
    return row == (owners,)


@pytest.mark.invariant("I2", "I13")
async def test_what_was_cut_off_for_longer_than_the_grace_ends_as_evidence(dsn: str, tmp_path: Path) -> None:
    """The child runs on behind the broken stream; another executor takes over; the first result is superseded."""
    stack = Stack(dsn, tmp_path, MODULES, scheduler_env=SHORT_GRACE)
    async with tcp_proxy(stack.address) as proxy:
        stack.executor = stack.new_executor("executor-1", BACKBURNER_SCHEDULER=proxy.address)
        second = stack.new_executor("executor-2")
        try:
            await stack.start()
            run_id = await stack.create("holds", folder=str(tmp_path), attempts=2)
            [first] = await pids(tmp_path)
            proxy.black_hole()
            second.start()
            await seen(stack, run_id, "EFFECT_ATTEMPT_LOST")
            await pids(tmp_path, 2)
            assert alive(first), "an executor that was not asked to kill has killed"
            proxy.heal()
            late = await seen(stack, run_id, "EFFECT_SUPERSEDED")
            assert not alive(first), "it is killed at the first stale answer"
            (tmp_path / "release").touch()
            rows = await ended(stack, run_id, "released\n")
        finally:
            second.kill()
            await stack.close()
    assert late.attempt == 1
    assert late.writer == "executor/executor-1"
    assert [row.writer for row in rows if row.type in SETTLING] == ["executor/executor-2"]


@pytest.mark.invariant("I10")
async def test_kill_when_cut_off_ends_the_attempt_before_its_grace(dsn: str, tmp_path: Path) -> None:
    """Nothing is lost: the executor says itself how the attempt ended, and that its child is dead."""
    stack = Stack(dsn, tmp_path, MODULES, scheduler_env={**SHORT_GRACE, "BACKBURNER_GRACE_SECONDS": "20"})
    async with tcp_proxy(stack.address) as proxy:
        env = {"BACKBURNER_SCHEDULER": proxy.address, "BACKBURNER_KILL_WHEN_CUT_OFF": "true"}
        stack.executor = stack.new_executor("executor-1", **env)
        try:
            await stack.start()
            run_id = await stack.create("holds", folder=str(tmp_path))
            [pid] = await pids(tmp_path)
            proxy.black_hole()
            rows = await ended(stack, run_id, "EXECUTOR_LOST")
            assert not alive(pid)
            proxy.heal()
        finally:
            await stack.close()
    assert story(rows) == [("EFFECT_REQUESTED", 0), ("EFFECT_DISPATCHED", 1), ("EFFECT_RESOLVED", 1)]
    assert (rows[-1].data["death"], rows[-1].writer) == ("DEATH_PROVEN", "executor/executor-1")


async def test_of_two_executors_with_one_name_the_newer_gets_the_work(dsn: str, tmp_path: Path) -> None:
    """The older is told, takes nothing any more, hands back what it runs, and does not fight for the name."""
    env = {"BACKBURNER_GRACE_SECONDS": "16", "BACKBURNER_HEARTBEAT_SECONDS": "0.3"}
    address = f"127.0.0.1:{free_port()}"
    stack = Stack(dsn, tmp_path, MODULES, scheduler_env=env, executor_env={"BACKBURNER_EXECUTOR_LISTEN": address})
    newer = stack.new_executor(
        "executor-1", BACKBURNER_STATE_DIR=str(tmp_path / "elsewhere"), BACKBURNER_EXECUTOR_LISTEN="127.0.0.1:0"
    )
    newer.log = tmp_path / "newer.log"
    try:
        await stack.start()
        run_id = await stack.create("holds", folder=str(tmp_path), attempts=2)
        [first] = await pids(tmp_path)
        newer.start()
        await pids(tmp_path, 2)
        assert not alive(first)
        assert "another executor has the id of this one" in stack.executor.tail
        assert await _health(address) == health_pb2.HealthCheckResponse.NOT_SERVING
        (tmp_path / "release").touch()
        rows = await ended(stack, run_id, "released\n")
        assert newer.tail.count("session ") == 1, "the older has dialled again"
    finally:
        newer.kill()
        await stack.close()
    assert story(rows) == [
        ("EFFECT_REQUESTED", 0), ("EFFECT_DISPATCHED", 1), ("EFFECT_ATTEMPT_FAILED", 1), ("EFFECT_DISPATCHED", 2),
        ("EFFECT_RESOLVED", 2),
    ]  # fmt: skip
    [failed] = [row for row in rows if row.type == "EFFECT_ATTEMPT_FAILED"]
    assert failed.data["error"]["reason"] == "EFFECT_REASON_DRAINED"


@pytest.mark.invariant("I3", "I10")
async def test_executor_that_drains_hands_back_what_is_not_done_in_time(dsn: str, tmp_path: Path) -> None:
    """Another one goes on with the next attempt, and the child of the first is dead before that is committed."""
    async with running_stack(dsn, tmp_path, MODULES, executor_env={"BACKBURNER_DRAIN_SECONDS": "1"}) as stack:
        second = stack.new_executor("executor-2")
        try:
            run_id = await stack.create("holds", folder=str(tmp_path), attempts=2)
            [first] = await pids(tmp_path)
            second.start()
            assert await asyncio.to_thread(stack.executor.stop, 60) == 0
            assert not alive(first)
            await pids(tmp_path, 2)
            (tmp_path / "release").touch()
            rows = await ended(stack, run_id, "released\n")
        finally:
            second.kill()
    [failed], settled = [row for row in rows if row.type == "EFFECT_ATTEMPT_FAILED"], rows[-1]
    assert (failed.type, failed.data["error"]["reason"]) == ("EFFECT_ATTEMPT_FAILED", "EFFECT_REASON_DRAINED")
    assert (failed.writer, settled.writer) == ("executor/executor-1", "executor/executor-2")


async def _health(address: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=60)  # type: ignore[attr-defined]
        return int(answer.status)


@pytest.mark.invariant("I2", "I7", "I13")
async def test_results_that_wait_for_postgres_longer_than_the_grace_are_all_committed(
    postgres_server: DisposablePostgres, dsn: str, tmp_path: Path
) -> None:
    """Finished and not yet recorded is not lost, however long Postgres is away."""
    grace: Mapping[str, str] = {**SHORT_GRACE, "BACKBURNER_GRACE_SECONDS": "5"}
    async with running_stack(dsn, tmp_path, MODULES, scheduler_env=grace) as stack:
        run_ids = [await stack.create("holds", folder=str(tmp_path)) for _ in range(8)]
        await pids(tmp_path, 8)
        await asyncio.to_thread(postgres_server.stop, "immediate")
        (tmp_path / "release").touch()
        spool = tmp_path / "executor-1" / "spool"
        await eventually(lambda: len(list(spool.glob("*/0*"))) == 8, timeout=60)
        await asyncio.sleep(10)  # twice the grace: nothing can be seen meanwhile but that time goes by
        await asyncio.to_thread(postgres_server.start)
        for run_id in run_ids:
            rows = await ended(stack, run_id, "released\n")
            assert story(rows) == [("EFFECT_REQUESTED", 0), ("EFFECT_DISPATCHED", 1), ("EFFECT_RESOLVED", 1)]
        await eventually(lambda: list(spool.glob("*/0*")) == [], timeout=30)
