"""The executor as a process: killed, signalled, started again; and a Postgres that goes away under it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from executor_service import recovery
from executor_service.errors import StartError
from tests.support.children import ESCAPEE, STUBBORN, alive, pids_in, program
from tests.support.eventually import eventually
from tests.support.fake_scheduler import Dispatch, FakeScheduler, fake_scheduler
from tests.support.postgres import DisposablePostgres
from tests.support.services import Service

NewExecutor = Callable[..., Service]


@pytest.fixture
def new_executor(scheduler: FakeScheduler, tmp_path: Path) -> Iterator[NewExecutor]:
    """Executors as processes of their own, all with one state directory; killed at the end."""
    services: list[Service] = []

    def new(**env: str) -> Service:
        base = {
            "DATABASE_URL": scheduler.dsn,
            "BACKBURNER_SCHEDULER": scheduler.address,
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


async def stderr_pids(scheduler: FakeScheduler, dispatch: Dispatch) -> list[int]:
    """The process ids that a child said, once its output is stored."""

    async def look() -> list[int]:
        return pids_in(b"".join(data for _, data in await scheduler.output(dispatch, 2)))

    return await eventually(look, timeout=20)


@pytest.mark.crash
@pytest.mark.invariant("I10", "I13")
async def test_successor_kills_what_a_killed_executor_left(scheduler: FakeScheduler, new_executor: NewExecutor) -> None:
    first = new_executor()
    before = await scheduler.session()
    children = [await scheduler.one(shell=program(source, "stay")) for source in (STUBBORN, ESCAPEE)]
    pids = [pid for child in children for pid in await stderr_pids(scheduler, child)]
    first.kill()
    assert all(alive(pid) for pid in pids)
    new_executor()
    after = await scheduler.session(1)
    assert list(after.hello.succeeds) == [before.hello.incarnation]
    assert after.hello.executor_id == before.hello.executor_id, "a name that was made up is kept"
    assert after.hello.incarnation != before.hello.incarnation
    assert [pid for pid in pids if alive(pid)] == []
    assert list(after.hello.attempts) == []


@pytest.mark.crash
async def test_two_executors_with_one_state_directory_leave_each_other_alone(
    scheduler: FakeScheduler, new_executor: NewExecutor
) -> None:
    new_executor()
    first = await scheduler.session()
    child = await scheduler.one(shell=program(STUBBORN))
    [pid] = await stderr_pids(scheduler, child)
    try:
        new_executor()
        second = await scheduler.session(1)
        assert second.hello.executor_id != first.hello.executor_id
        assert not second.hello.succeeds
        assert alive(pid)
        assert not first.closed
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.crash
async def test_term_drains_and_exits_0(scheduler: FakeScheduler, new_executor: NewExecutor) -> None:
    executor = new_executor()
    session = await scheduler.session()
    dispatch = await scheduler.one(function={"function": "exec.steps", "args": [["a"], 0.5]})
    await eventually(lambda: (dispatch.effect_id, 1) in session.accepted)
    executor.send(signal.SIGTERM)
    assert (await scheduler.settled(dispatch)).value == 1
    assert await asyncio.to_thread(_exit_code, executor) == 0
    assert "Traceback" not in executor.tail


@pytest.mark.crash
async def test_second_signal_does_not_wait(scheduler: FakeScheduler, new_executor: NewExecutor) -> None:
    executor = new_executor(BACKBURNER_DRAIN_SECONDS="60")
    session = await scheduler.session()
    dispatch = await scheduler.one(timeouts={"kill_grace": "0.2s"}, shell=program(STUBBORN))
    [pid] = await stderr_pids(scheduler, dispatch)
    executor.send(signal.SIGTERM)
    await eventually(lambda: session.draining)
    executor.send(signal.SIGINT)
    assert await asyncio.to_thread(_exit_code, executor) == 0
    assert (await scheduler.settled(dispatch)).reason == "DRAINED"
    assert not alive(pid)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"DATABASE_URL": ""}, "DATABASE_URL is not set"),
        ({"BACKBURNER_SLOTS_SHELL": "many"}, "BACKBURNER_SLOTS_SHELL='many' is not a number"),
        ({"BACKBURNER_FUNCTION_MODULES": "no.such.module"}, "cannot import function module 'no.such.module'"),
        ({"BACKBURNER_STATE_DIR": "/proc/no"}, "state directory /proc/no cannot be used"),
        ({"BACKBURNER_EXECUTOR_LISTEN": "256.0.0.1:1"}, "cannot listen on 256.0.0.1:1"),
    ],
)
async def test_configuration_that_cannot_work_is_named(
    new_executor: NewExecutor, env: dict[str, str], said: str
) -> None:
    executor = new_executor(**env)
    assert await asyncio.to_thread(_exit_code, executor) == 2
    assert said in executor.tail
    assert "Traceback" not in executor.tail


def _exit_code(executor: Service) -> int:
    assert executor.process is not None
    return executor.process.wait(30)


@pytest.fixture
async def durable(postgres_server: DisposablePostgres) -> AsyncIterator[FakeScheduler]:
    await postgres_server.migrate()
    async with fake_scheduler(postgres_server.dsn) as started:
        yield started


@pytest.mark.crash
@pytest.mark.invariant("I2", "I7")
async def test_results_are_held_while_postgres_is_away(
    durable: FakeScheduler, postgres_server: DisposablePostgres, tmp_path: Path
) -> None:
    env = {
        "DATABASE_URL": durable.dsn,
        "BACKBURNER_SCHEDULER": durable.address,
        "BACKBURNER_FUNCTION_MODULES": "tests.integration.executor.functions",
        "BACKBURNER_STATE_DIR": str(tmp_path / "state"),
    }
    executor = Service("executor_service", env, tmp_path / "executor.log")
    executor.start()
    try:
        session = await durable.session()
        held = await durable.one(send=False, function={"function": "exec.echo", "args": ["kept"]})
        shell = await durable.one(send=False, shell={"command_line": "echo kept too"})
        await asyncio.to_thread(postgres_server.kill)
        session.start(held, shell)

        def reported_finished() -> bool:
            report = next((b for b in reversed(session.heartbeats) if b.report), None)
            return report is not None and [a.state for a in report.attempts] == [4, 4]  # STATE_FINISHED

        await eventually(reported_finished, timeout=15)
        await asyncio.to_thread(postgres_server.start)
        assert (await durable.settled(held)).value == "kept"
        settled = await durable.settled(shell)
        assert settled.data["result"]["stdout"]["tail"] == "kept too\n"
        await eventually(lambda: len([e for e in session.events if e.frees_slot]) == 2)
    finally:
        executor.kill()


def test_incarnations_are_locked_and_recycled(tmp_path: Path) -> None:
    first = recovery.begin(str(tmp_path), "")
    second = recovery.begin(str(tmp_path), "")
    assert first.executor_id != second.executor_id
    first.release()
    third = recovery.begin(str(tmp_path), "")
    assert third._dead == [], "an orderly end leaves nothing to succeed"
    os.close(second._own.fd)  # as the kernel does when a process dies
    fourth = recovery.begin(str(tmp_path), "")
    assert [dead.incarnation for dead in fourth._dead] == [second.incarnation]
    assert fourth.executor_id == second.executor_id
    for item in (third, fourth):
        item.release()


def test_unreadable_incarnation_is_survived(tmp_path: Path) -> None:
    folder = tmp_path / "incarnations"
    folder.mkdir()
    (folder / "torn").write_bytes(b'{"executor_')
    begun = recovery.begin(str(tmp_path), "given")
    assert begun.executor_id == "given"
    begun.release()


def test_state_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="BACKBURNER_STATE_DIR"):
        recovery.begin(str(tmp_path / "file"), "")
