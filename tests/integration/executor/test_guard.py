"""The guard: when an executor is killed, its children die without anybody's help."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from executor_service.guardian import LINGER_SECONDS
from executor_service.markers import MARKER, marked, marker
from executor_service.server import ExecutorServer
from tests.integration.executor.conftest import NewExecutor, guard_of, stderr_pids
from tests.support.children import ESCAPEE, STUBBORN, TREE, alive, program
from tests.support.eventually import eventually
from tests.support.fake_scheduler import FakeScheduler

pytestmark = pytest.mark.crash


@pytest.mark.invariant("I10")
async def test_killed_executor_leaves_nobody_alive(scheduler: FakeScheduler, new_executor: NewExecutor) -> None:
    """The child that ignores TERM, daemons by double fork and setsid, a tree of sessions: no restart, no successor."""
    executor = new_executor()
    incarnation = (await scheduler.session()).hello.incarnation
    guard = guard_of(executor.pid)
    sources = [program(STUBBORN), program(ESCAPEE, "stay"), program(TREE, "6")]
    pids = [pid for work in sources for pid in await stderr_pids(scheduler, await scheduler.one(shell=work))]
    assert len(pids) >= 3
    assert all(alive(pid) for pid in pids)
    executor.kill()
    await eventually(lambda: not any(alive(pid) for pid in pids), timeout=30)
    await eventually(lambda: not alive(guard), timeout=30, message="the guard does not end")
    assert marked(marker(incarnation)) == []


@pytest.mark.invariant("I10")
async def test_executor_killed_while_it_starts_children_leaves_nobody_alive(
    scheduler: FakeScheduler, new_executor: NewExecutor
) -> None:
    executor = new_executor(BACKBURNER_SLOTS_SHELL="60")
    incarnation = (await scheduler.session()).hello.incarnation
    guard = guard_of(executor.pid)
    await scheduler.request(60, shell=program(STUBBORN))
    await eventually(lambda: marked(marker(incarnation)), timeout=30, interval=0)
    executor.kill()
    await eventually(lambda: not alive(guard), timeout=60, message="the guard does not end")
    assert marked(marker(incarnation)) == []


#: An executor that is killed while a child of it has been forked, and not become what it is to be.
DIES_IN_A_SPAWN = """
import asyncio, os, signal, sys, time
from executor_service.descendants import Reaper
from executor_service.guard import Guard

async def main():
    guard = Guard(sys.argv[1], Reaper())
    guard.start()
    child = os.fork()
    if child == 0:
        for fd in (1, 2):
            os.close(fd)
        time.sleep(float(sys.argv[2]))
        os.execve(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(300)"],
                  {"BACKBURNER_ATTEMPT": sys.argv[1] + "effect/1"})
    print(guard.pid, child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.invariant("I10")
async def test_child_that_was_not_yet_to_be_found_when_its_executor_died_is_found(tmp_path: Path) -> None:
    value = marker(str(tmp_path))
    argv = [sys.executable, "-c", DIES_IN_A_SPAWN, value, str(2 * LINGER_SECONDS)]
    ran = await asyncio.to_thread(subprocess.run, argv, stdout=subprocess.PIPE, check=False)
    assert ran.returncode == -signal.SIGKILL
    guard, child = map(int, ran.stdout.split())
    await eventually(lambda: not alive(child), timeout=60, message="the child lives on")
    await eventually(lambda: not alive(guard), timeout=60, message="the guard does not end")


async def test_signals_that_end_the_executor_do_not_end_its_guard(
    scheduler: FakeScheduler, new_executor: NewExecutor
) -> None:
    """Ctrl-C and a supervisor reach whole groups: who sees to the children must be the last to go."""
    executor = new_executor()
    await scheduler.session()
    guard = guard_of(executor.pid)
    child = await scheduler.one(timeouts={"kill_grace": "0.2s"}, shell=program(ESCAPEE, "stay"))
    [pid] = await stderr_pids(scheduler, child)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(guard, signum)
    assert os.getpgid(guard) == os.getsid(guard) == guard
    executor.send(signal.SIGSTOP)
    assert alive(guard)
    assert alive(pid)
    executor.kill()
    await eventually(lambda: not alive(pid) and not alive(guard), timeout=30)


async def test_guard_ends_with_an_executor_that_ends_in_order(
    scheduler: FakeScheduler, new_executor: NewExecutor, tmp_path: Path
) -> None:
    executor = new_executor()
    await scheduler.session()
    guard = guard_of(executor.pid)
    assert await asyncio.to_thread(executor.stop) == 0
    assert not alive(guard)
    assert list((tmp_path / "state" / "incarnations").iterdir()) == []


async def test_another_guard_takes_the_place_of_one_that_died(
    executor: ExecutorServer, caplog: pytest.LogCaptureFixture
) -> None:
    first = executor.guard.pid
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: executor.guard.pid not in (0, first))
    assert alive(executor.guard.pid)
    assert not psutil.pid_exists(first), "it is reaped"
    assert "the guard of this executor's children has ended (-9)" in caplog.text


async def test_guard_has_no_secret_in_its_environment(executor: ExecutorServer) -> None:
    environ = psutil.Process(executor.guard.pid).environ()
    assert set(environ) <= {MARKER}
