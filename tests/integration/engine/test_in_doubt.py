"""Commits whose answer is lost, or that come after their writer gave up: what they created is begun all the same."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import psycopg
import pytest

from scheduler_service import failpoints
from scheduler_service.journal import link, writer
from tests.integration.engine import child_processes
from tests.integration.engine.executor import SUCCEEDED
from tests.integration.engine.pairs import NEVER
from tests.integration.engine.test_children import signal
from tests.integration.engine.world import World, world
from tests.support.client_program import ClientProgram, fresh_key, spec
from tests.support.eventually import eventually

ITEM: Any = {"item": {"name": "a", "size": 1}}
#: Commits that create a run wait until nobody holds the lock any more, however long that takes.
_LATE = """
CREATE FUNCTION backburner.late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('lock_timeout', '0', true);
    PERFORM pg_advisory_xact_lock_shared(4711);
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON backburner.runs DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION backburner.late();
"""
_RUNS = "SELECT run_id::text FROM backburner.runs ORDER BY run_id"


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints._armed.clear()


@pytest.fixture
async def told(database_url: str) -> AsyncIterator[World]:
    """What happens in time is not found by a poll."""
    async with world(database_url, child_processes.ALL, poll_seconds=NEVER) as made:
        await made.executor(answer=lambda start: SUCCEEDED | {"value": "ok"}).connect()
        yield made


@pytest.mark.invariant("I6", "I14")
async def test_a_run_whose_creation_was_answered_to_nobody_begins(told: World) -> None:
    failpoints.arm("scheduler.create.committed:error")
    run_id = await told.create("child", **ITEM)
    assert await told.value(run_id, timeout_s=40) == "a: ok"


@pytest.mark.invariant("I6", "I14")
async def test_a_child_of_an_append_whose_answer_was_lost_begins(told: World) -> None:
    failpoints.arm("scheduler.append.committed:error")
    run_id = await told.create("one-child")
    assert await told.value(run_id, timeout_s=40) == "a: ok"


@pytest.mark.invariant("I6", "I14")
async def test_a_child_that_a_client_asked_for_begins_though_the_answer_was_lost(told: World) -> None:
    program = await ClientProgram.start(told.client, fresh_key())
    failpoints.arm("scheduler.client_request.committed:error")
    await program.request({"kid": spec(run={"process": "child", "input": ITEM})})
    [kid] = await program.wait("kid")
    assert kid.result.value.value.string_value == "a: ok"


@asynccontextmanager
async def late_commits(at: World) -> AsyncIterator[None]:
    """Inside, no commit that creates a run comes to its end; at the end all of them do."""
    async with await psycopg.AsyncConnection.connect(at.dsn, autocommit=True) as connection:
        await connection.execute(_LATE)
        await connection.execute("SELECT pg_advisory_lock(4711)")
        yield


@pytest.fixture
async def polled(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Writers give up soon, and the leases are too long for a shard to be lost and adopted anew meanwhile."""
    monkeypatch.setattr(writer, "ITEM_SECONDS", 1.0)
    monkeypatch.setattr(link, "CALL_SECONDS", 0.5)
    async with world(database_url, child_processes.ALL, lease_seconds=120.0) as made:
        await made.executor(answer=lambda start: SUCCEEDED | {"value": "ok"}).connect()
        yield made


async def looked_in_vain(at: World) -> None:
    adoption: Any = at.engine.shards.adoption
    await eventually(lambda: not adoption._heard and not adoption._wake.is_set(), timeout=40)


@pytest.mark.invariant("I6")
async def test_a_run_that_is_there_after_its_writer_gave_up_is_found(polled: World) -> None:
    async with late_commits(polled):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await polled.create("child", **ITEM)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await looked_in_vain(polled)
        epochs = dict(polled.engine.shards.epochs)
    [[run_id]] = await eventually(lambda: polled.query(_RUNS), timeout=40, message="it was not committed")
    assert await polled.value(run_id, timeout_s=60) == "a: ok"
    assert polled.engine.shards.epochs == epochs, "its shard has not moved"


@pytest.mark.invariant("I6")
async def test_the_run_that_another_one_went_on_as_is_found_after_its_writer_gave_up(polled: World) -> None:
    run_id = await polled.create("counts", left=1, heard=[])
    async with late_commits(polled):
        await signal(polled, run_id, "one")
        doubted = polled.engine.loop.runs.get(run_id)
        assert doubted is not None
        await eventually(lambda: doubted.failures >= 1, timeout=40, message="the append is not in doubt")
        await looked_in_vain(polled)
    continued = await polled.row(run_id, "RUN_CONTINUED", timeout_s=40)
    await signal(polled, continued.data["new_run_id"], "two")
    assert await polled.value(continued.data["new_run_id"], timeout_s=60) == ["one", "two"]


async def test_the_sweep_comes_by_every_page_of_every_shard(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that are dropped from memory come back, on whichever page they are."""
    monkeypatch.setattr("scheduler_service.iteration.adoption._PAGE", 2)
    monkeypatch.setattr("scheduler_service.iteration.adoption._QUIET_SECONDS", 0.0)
    run_ids = [await at.create("asks", count=1) for _ in range(60)]
    for run_id in run_ids:
        await at.row(run_id, "EFFECT_REQUESTED")
    for run in list(at.engine.loop.runs):
        at.engine.loop.forget(run)
    await eventually(lambda: all(at.engine.loop.runs.get(run_id) for run_id in run_ids), timeout=60)
