"""The way of outcomes into the journal when something stands in it: locked runs, poisoned batches, lost rights."""

import asyncio
from typing import Any

import psycopg
import pytest

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from executor_service.server import ExecutorServer
from tests.support.eventually import eventually
from tests.support.fake_scheduler import FakeScheduler

ECHO: dict[str, Any] = {"function": {"function": "exec.echo", "args": [1]}}


@pytest.mark.usefixtures("executor")
async def test_locked_run_holds_up_no_other(scheduler: FakeScheduler) -> None:
    locked = await scheduler.one(send=False, **ECHO)
    free = [await scheduler.one(send=False, **ECHO) for _ in range(3)]
    async with await psycopg.AsyncConnection.connect(scheduler.dsn) as holder:
        lock = "SELECT FROM backburner.run_heads WHERE run_id = %s FOR UPDATE"
        await holder.execute(lock, [locked.run_id])
        scheduler.sessions[-1].start(*free, locked)
        await asyncio.gather(*(scheduler.settled(dispatch) for dispatch in free))
        assert await scheduler.rows(locked, "EFFECT_RESOLVED") == []
        await holder.rollback()
    assert (await scheduler.settled(locked)).value == 1


@pytest.mark.usefixtures("executor")
async def test_locked_run_holds_up_no_start_and_no_progress_of_another(scheduler: FakeScheduler) -> None:
    steps: dict[str, Any] = {"function": {"function": "exec.steps", "args": [["a"] * 100, 0.1]}}
    locked = await scheduler.one(send=False, **steps)
    free = [await scheduler.one(send=False, **steps) for _ in range(3)]
    async with await psycopg.AsyncConnection.connect(scheduler.dsn) as holder:
        await holder.execute("SELECT FROM backburner.run_heads WHERE run_id = %s FOR UPDATE", [locked.run_id])
        scheduler.sessions[-1].start(locked, *free)
        for dispatch in free:
            for kind in ("EFFECT_STARTED", "EFFECT_PROGRESS"):
                await eventually(lambda d=dispatch, k=kind: scheduler.rows(d, k))  # type: ignore[misc]
        await holder.rollback()
    for kind in ("EFFECT_STARTED", "EFFECT_PROGRESS"):
        await eventually(lambda k=kind: scheduler.rows(locked, k))  # type: ignore[misc]


@pytest.fixture
def brief_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """An executor that stops does not wait for what the journal will never take."""
    monkeypatch.setattr("executor_service.server._FLUSH_SECONDS", 0.1)


@pytest.mark.invariant("I2", "I13")
@pytest.mark.usefixtures("brief_flush")
async def test_outcome_that_the_journal_refuses_holds_up_no_other(
    scheduler: FakeScheduler, executor: ExecutorServer
) -> None:
    good = await scheduler.request(6, send=False, **ECHO)
    [poisoned] = await scheduler.request(1, send=False, **ECHO)
    poisoned.start.run_id = "no run id"
    scheduler.sessions[-1].start(*good[:3], poisoned, *good[3:])
    assert [(await scheduler.settled(dispatch)).value for dispatch in good] == [1] * 6
    session = scheduler.sessions[-1]
    finished = executor_pb.Attempt.STATE_FINISHED
    await eventually(
        lambda: (
            [(a.ref, a.state) for beat in session.heartbeats[-1:] for a in beat.attempts] == [(poisoned.ref, finished)]
        )
    )
    assert [held.assignment.ref for held in executor.attempts] == [(poisoned.effect_id, 1)]


@pytest.mark.usefixtures("executor")
async def test_result_is_held_until_an_operator_has_mended_the_schema(scheduler: FakeScheduler) -> None:
    rename = "ALTER FUNCTION backburner.{} RENAME TO {}"
    dispatch = await scheduler.one(send=False, **ECHO)
    async with await psycopg.AsyncConnection.connect(scheduler.dsn, autocommit=True) as operator:
        await operator.execute(rename.format("attempts_settle_v1", "away").encode())
        scheduler.sessions[-1].start(dispatch)
        session = scheduler.sessions[-1]
        await eventually(lambda: any(a.state == 4 for beat in session.heartbeats for a in beat.attempts))
        session.start(dispatch)
        await eventually(lambda: (dispatch.effect_id, 1) in session.accepted, message="it is held, and not a duplicate")
        assert session.was_rejected(dispatch) == []
        await operator.execute(rename.format("away", "attempts_settle_v1").encode())
    assert (await scheduler.settled(dispatch)).value == 1


@pytest.mark.usefixtures("executor")
@pytest.mark.invariant("I14")
async def test_connections_that_die_at_any_time_lose_and_repeat_nothing(scheduler: FakeScheduler) -> None:
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'backburner executor-%%'"
    dispatches = await scheduler.request(150, send=False, **ECHO)
    session = scheduler.sessions[-1]
    for start in range(0, 150, 10):
        session.start(*dispatches[start : start + 10])
        await scheduler.query(kill)
    await eventually(lambda: {e.effect_id for e in session.events} == {d.effect_id for d in dispatches})
    run_id = dispatches[0].run_id
    [(rows, last)] = await scheduler.query(
        "SELECT count(*), max(seq) FROM backburner.journal WHERE run_id = %s", run_id
    )
    assert rows == last == 1 + 3 * 150, "one row each for request, dispatch and result"
