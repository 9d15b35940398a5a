"""Results that wait for Postgres, in executors of their own: held, kept on disk, sent by a successor, refused."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service import spool_files
from tests.support.eventually import eventually
from tests.support.fake_scheduler import FakeScheduler, FakeSession
from tests.support.postgres import DisposablePostgres
from tests.support.services import Service

pytestmark = pytest.mark.crash

FINISHED = executor_pb.Attempt.STATE_FINISHED
NewExecutor = Callable[..., Service]


def echo(value: object) -> dict[str, Any]:
    return {"function": {"function": "exec.echo", "args": [value]}}


@pytest.fixture
def new_executor(durable: FakeScheduler, tmp_path: Path) -> Iterator[NewExecutor]:
    services: list[Service] = []

    def new(**env: str) -> Service:
        base = {
            "DATABASE_URL": durable.dsn,
            "BACKBURNER_SCHEDULER": durable.address,
            "BACKBURNER_FUNCTION_MODULES": "tests.integration.executor.functions",
            "BACKBURNER_STATE_DIR": str(tmp_path / "state"),
        }
        service = Service("executor_service", {**base, **env}, tmp_path / f"executor-{len(services)}.log")
        services.append(service)
        service.start()
        return service

    yield new
    for service in services:
        service.kill()


def finished(session: FakeSession, count: int) -> bool:
    """True when the newest report has so many attempts that have ended, and no other."""
    report = next((beat for beat in reversed(session.heartbeats) if beat.report), None)
    return report is not None and [a.state for a in report.attempts] == [FINISHED] * count


def kept(tmp_path: Path) -> int:
    """Results on disk."""
    spools = tmp_path / "state" / "spool"
    return len([path for path in spools.glob("*/*") if not path.name.startswith(".")]) if spools.is_dir() else 0


def recent(tmp_path: Path) -> bytes:
    """What was appended to the recent files of all incarnations."""
    return b"".join(path.read_bytes() for path in (tmp_path / "state").glob("spool/*/.recent-*"))


@pytest.mark.invariant("I2", "I7")
async def test_results_are_held_while_postgres_is_away(
    durable: FakeScheduler, postgres_server: DisposablePostgres, new_executor: NewExecutor, tmp_path: Path
) -> None:
    new_executor()
    session = await durable.session()
    held = await durable.one(send=False, **echo("kept"))
    shell = await durable.one(send=False, shell={"command_line": "echo kept too"})
    await asyncio.to_thread(postgres_server.kill)
    session.start(held, shell)
    await eventually(lambda: finished(session, 2), timeout=30)
    await eventually(lambda: kept(tmp_path) == 2, timeout=30)
    await asyncio.to_thread(postgres_server.start)
    assert (await durable.settled(held)).value == "kept"
    settled = await durable.settled(shell)
    assert settled.data["result"]["stdout"]["tail"] == "kept too\n"
    # The database is in another life, so the executor has begun another session.
    await eventually(lambda: len([e for s in durable.sessions for e in s.events if e.frees_slot]) == 2, timeout=30)
    await eventually(lambda: kept(tmp_path) == 0, message="what is recorded stays on disk")


@pytest.mark.invariant("I2", "I3", "I13")
async def test_result_of_an_executor_that_is_killed_before_its_commit_is_committed_by_the_next(
    durable: FakeScheduler, postgres_server: DisposablePostgres, new_executor: NewExecutor, tmp_path: Path
) -> None:
    """And is not reported lost: the effect, which may be started once at most, has succeeded."""
    first = new_executor()
    session = await durable.session()
    done, large = [await durable.one(send=False, **echo(value)) for value in ("done", "x" * 300_000)]
    damaged = await durable.one(send=False, **echo("damaged"))
    await asyncio.to_thread(postgres_server.kill)
    session.start(done, large)
    await eventually(lambda: kept(tmp_path) == 2, timeout=30)
    session.start(damaged)
    await eventually(lambda: kept(tmp_path) == 3, timeout=30)
    first.kill()
    [*_, last] = spool_files.entries(tmp_path / "state" / "spool" / session.hello.incarnation)
    last.write_bytes(last.read_bytes()[:-1])
    second = new_executor()
    await asyncio.to_thread(postgres_server.start)
    successor = await durable.session(1)
    assert (await durable.settled(done)).value == "done"
    assert (await durable.settled(large)).data["state"] == "EFFECT_STATE_SUCCEEDED"
    assert list(successor.hello.succeeds) == [session.hello.incarnation]
    assert await durable.rows(damaged, "EFFECT_RESOLVED") == []
    assert "is no use, and set aside as" in second.tail
    assert kept(tmp_path) == 1, "the damaged one is kept for somebody to look at"


@pytest.mark.invariant("I7")
async def test_results_of_an_executor_that_stops_while_postgres_is_away_wait_for_the_next(
    durable: FakeScheduler, postgres_server: DisposablePostgres, new_executor: NewExecutor, tmp_path: Path
) -> None:
    first = new_executor()
    session = await durable.session()
    done = await durable.one(send=False, **echo("done"))
    await asyncio.to_thread(postgres_server.kill)
    session.start(done)
    await eventually(lambda: kept(tmp_path) == 1, timeout=30)
    assert await asyncio.to_thread(first.stop, 60) == 0
    assert "1 results wait on disk" in first.tail
    await asyncio.to_thread(postgres_server.start)
    new_executor()
    assert (await durable.settled(done)).value == "done"
    assert list((await durable.session(1)).hello.succeeds) == [session.hello.incarnation]
    await eventually(lambda: kept(tmp_path) == 0)


@pytest.mark.invariant("I11")
async def test_without_room_for_another_result_a_start_is_refused(
    durable: FakeScheduler, postgres_server: DisposablePostgres, new_executor: NewExecutor
) -> None:
    new_executor(BACKBURNER_SPOOL_ENTRIES="2")
    session = await durable.session()
    waiting = [await durable.one(send=False, **echo(number)) for number in range(3)]
    await asyncio.to_thread(postgres_server.kill)
    session.start(*waiting)
    [refused] = await eventually(lambda: session.was_rejected(waiting[2]), timeout=30)
    assert refused.reason == pb.RejectedAttempt.REASON_NO_SPOOL
    assert "no room for another result" in refused.message
    await asyncio.to_thread(postgres_server.start)
    assert [(await durable.settled(dispatch)).value for dispatch in waiting[:2]] == [0, 1]
    (await durable.session(1)).start(waiting[2])  # another life of the database is another session
    assert (await durable.settled(waiting[2])).value == 2


@pytest.mark.invariant("I2", "I3", "I7")
async def test_result_is_kept_from_the_end_of_the_child_on(
    durable: FakeScheduler, new_executor: NewExecutor, tmp_path: Path
) -> None:
    """Killed while the commit is on its way, nothing being wrong: the result of the dead is committed all the same."""
    first = new_executor()
    session = await durable.session()
    done = await durable.one(send=False, shell={"command_line": "echo work of hours"})
    async with await psycopg.AsyncConnection.connect(durable.dsn) as other:
        await other.execute("SELECT 1 FROM backburner.run_heads WHERE run_id = %s FOR UPDATE", [done.run_id])
        session.start(done)
        await eventually(lambda: b"work of hours" in recent(tmp_path), timeout=30)
        first.kill()
    assert await durable.rows(done, "EFFECT_RESOLVED") == []
    new_executor()
    settled = await durable.settled(done)
    assert settled.data["result"]["stdout"]["tail"] == "work of hours\n"
    assert list((await durable.session(1)).hello.succeeds) == [session.hello.incarnation]
    await eventually(lambda: b"work of hours" not in recent(tmp_path))


async def test_result_that_was_committed_is_not_sent_again(
    durable: FakeScheduler, new_executor: NewExecutor, tmp_path: Path
) -> None:
    first = new_executor()
    session = await durable.session()
    done = await durable.one(send=False, **echo("done"))
    session.start(done)
    await durable.settled(done)
    await eventually(lambda: b" -1\n" in recent(tmp_path), message="it is crossed out")
    first.kill()
    second = new_executor()
    assert list((await durable.session(1)).hello.succeeds) == [session.hello.incarnation]
    assert "had kept on disk" not in second.tail
