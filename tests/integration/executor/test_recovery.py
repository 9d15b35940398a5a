"""The executor as a process: killed, signalled, started again; and a Postgres that goes away under it."""

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest

from executor_service import recovery
from executor_service.errors import StartError
from tests.integration.executor.conftest import NewExecutor, kill_who_watches, stderr_pids
from tests.support.children import ESCAPEE, STUBBORN, alive, program
from tests.support.eventually import eventually
from tests.support.fake_scheduler import FakeScheduler
from tests.support.services import Service


@pytest.mark.crash
@pytest.mark.invariant("I10", "I13")
async def test_successor_kills_what_a_killed_executor_left(scheduler: FakeScheduler, new_executor: NewExecutor) -> None:
    """Even when the guard and the keepers were killed too: nobody but the successor is left to do it."""
    first = new_executor()
    before = await scheduler.session()
    children = [await scheduler.one(shell=program(source, "stay")) for source in (STUBBORN, ESCAPEE)]
    pids = [pid for child in children for pid in await stderr_pids(scheduler, child)]
    first.send(signal.SIGSTOP)  # it must not start others
    kill_who_watches(first.pid)
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
async def test_executor_with_a_copied_state_directory_harms_nobody(
    scheduler: FakeScheduler, new_executor: NewExecutor, tmp_path: Path
) -> None:
    """The lock of a copy can be had, and proves nothing: the original lives."""
    new_executor()
    first = await scheduler.session()
    child = await scheduler.one(shell=program(STUBBORN))
    [pid] = await stderr_pids(scheduler, child)
    await asyncio.to_thread(shutil.copytree, tmp_path / "state", tmp_path / "copy")
    new_executor(BACKBURNER_STATE_DIR=str(tmp_path / "copy"))
    second = await scheduler.session(1)
    assert second.hello.executor_id != first.hello.executor_id
    assert not second.hello.succeeds
    assert alive(pid)
    assert not first.closed
    copied = tmp_path / "copy" / "incarnations" / first.hello.incarnation
    await eventually(lambda: not copied.exists(), message="the copy is kept")


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


def test_incarnations_are_locked_and_recycled(tmp_path: Path) -> None:
    first = recovery.begin(str(tmp_path), "")
    second = recovery.begin(str(tmp_path), "")
    assert first.executor_id != second.executor_id
    first.release()
    third = recovery.begin(str(tmp_path), "")
    assert third._dead == [], "an orderly end leaves nothing to succeed"
    second._own.leave()  # as the kernel does when a process dies
    fourth = recovery.begin(str(tmp_path), "")
    assert [dead.incarnation for dead in fourth._dead] == [second.incarnation]
    assert fourth.executor_id == second.executor_id
    for item in (third, fourth):
        item.release()


def test_incarnation_of_an_earlier_boot_is_not_succeeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone of the machine has the same files: only on the boot that locked one does its lock say anything."""
    monkeypatch.setattr(recovery, "_boot", lambda: "the boot before")
    before = recovery.begin(str(tmp_path), "")
    before._own.leave()
    monkeypatch.undo()
    begun = recovery.begin(str(tmp_path), "")
    assert begun.executor_id == before.executor_id
    assert [dead.proves_death for dead in begun._dead] == [False]
    begun.release()


async def test_files_of_children_that_cannot_be_killed_are_kept_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody_dies(_marker: str) -> bool:
        return False

    recovery.begin(str(tmp_path), "")._own.leave()
    monkeypatch.setattr(recovery, "sweep", nobody_dies)
    begun = recovery.begin(str(tmp_path), "")
    await begun.sweep_dead()
    begun.forget_dead()
    assert begun.succeeds == []
    assert len(list((tmp_path / "incarnations").iterdir())) == 2
    begun.release()


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
