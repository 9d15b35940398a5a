"""Descendants that hide, and what their attempts' ends say: proven dead, or honestly not."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor_service import cgroups
from executor_service.server import ExecutorServer
from tests.integration.executor.test_children import said_pids, sh
from tests.support.children import GIVER, HIDDEN, HYDRA, PATRICIDE, TREE, alive, pids_in, program
from tests.support.eventually import eventually
from tests.support.fake_scheduler import FakeScheduler


def _has_cgroups() -> bool:
    made = cgroups.open_cgroups("probe")
    made.close()
    return made.folder is not None


@pytest.fixture(params=["keeper alone", "with a control group"])
def with_cgroups(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "keeper alone":
        monkeypatch.setattr(cgroups, "open_cgroups", lambda *_: cgroups.Cgroups(None))
        return False
    if not _has_cgroups():
        pytest.skip("this machine has no control groups that we may write to")
    return True


@pytest.fixture
def killed_at_the_end() -> Iterator[list[int]]:
    """Process ids that the system under test may leave alive, and the test must not."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


pytestmark = [pytest.mark.usefixtures("with_cgroups", "executor"), pytest.mark.invariant("I10")]


async def test_hidden_daemon_is_dead_when_the_cancel_is_settled(
    scheduler: FakeScheduler, executor: ExecutorServer
) -> None:
    dispatch = await scheduler.one(timeouts={"kill_grace": "0.2s"}, shell=program(HIDDEN, "stay"))
    [daemon] = await said_pids(executor, dispatch)
    scheduler.sessions[-1].cancel(dispatch)
    settled = await scheduler.settled(dispatch)
    assert not alive(daemon)
    assert (settled.type, settled.data["death"]) == ("EFFECT_CANCELLED", "DEATH_PROVEN")


async def test_hidden_daemon_does_not_outlive_a_child_that_ended_by_itself(scheduler: FakeScheduler) -> None:
    settled = await scheduler.run(shell=program(HIDDEN, "leave"))
    [daemon] = pids_in(settled.data["result"]["stderr"]["tail"])
    assert not alive(daemon)
    assert (settled.data["state"], settled.data["death"]) == ("EFFECT_STATE_SUCCEEDED", "DEATH_PROVEN")


async def test_each_attempt_loses_its_own_daemon_only(scheduler: FakeScheduler, executor: ExecutorServer) -> None:
    """Both daemons have lost everything that could tell whose they are."""
    dispatches = [await scheduler.one(timeouts={"kill_grace": "0.1s"}, shell=program(HIDDEN, "stay")) for _ in "ab"]
    [first], [second] = [await said_pids(executor, dispatch) for dispatch in dispatches]
    scheduler.sessions[-1].cancel(dispatches[0])
    assert (await scheduler.settled(dispatches[0])).data["death"] == "DEATH_PROVEN"
    assert (alive(first), alive(second)) == (False, True)
    scheduler.sessions[-1].cancel(dispatches[1])
    assert (await scheduler.settled(dispatches[1])).data["death"] == "DEATH_PROVEN"
    assert not alive(second)


async def test_who_forks_whenever_it_is_struck_is_dead_in_the_end(
    scheduler: FakeScheduler, executor: ExecutorServer
) -> None:
    dispatch = await scheduler.one(timeouts={"kill_grace": "0.1s"}, shell=program(HYDRA, "30"))
    pids = await said_pids(executor, dispatch, 31)
    scheduler.sessions[-1].cancel(dispatch)
    settled = await scheduler.settled(dispatch)
    assert settled.data["death"] == "DEATH_PROVEN"
    pids += pids_in(settled.data["partial"]["stderr"]["tail"])
    assert [pid for pid in pids if alive(pid)] == []


async def test_stopped_descendants_are_dead(scheduler: FakeScheduler, executor: ExecutorServer) -> None:
    dispatch = await scheduler.one(timeouts={"kill_grace": "0.1s"}, shell=program(TREE, "6"))
    pids = await said_pids(executor, dispatch, 6)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    scheduler.sessions[-1].cancel(dispatch)
    assert (await scheduler.settled(dispatch)).data["death"] == "DEATH_PROVEN"
    assert [pid for pid in pids if alive(pid)] == []


async def test_stopped_child_may_clean_up_all_the_same(scheduler: FakeScheduler, executor: ExecutorServer) -> None:
    dispatch = await scheduler.one(**sh("trap 'echo cleaned; exit 0' TERM; echo pid=$$ >&2; kill -STOP $$; exit 1"))
    await said_pids(executor, dispatch)
    scheduler.sessions[-1].cancel(dispatch)
    assert (await scheduler.settled(dispatch)).data["partial"]["stdout"]["tail"] == "cleaned\n"


@pytest.mark.parametrize("then", ["stay", "leave"])
async def test_attempt_whose_keeper_is_killed_ends_and_claims_no_more_than_it_knows(
    scheduler: FakeScheduler, with_cgroups: bool, killed_at_the_end: list[int], then: str
) -> None:
    settled = await scheduler.run(shell=program(PATRICIDE, str(int(signal.SIGKILL)), then))
    [daemon] = pids_in(settled.data["result"]["stderr"]["tail"])
    killed_at_the_end.append(daemon)
    assert settled.reason == "KILLED_BY_SIGNAL"
    if with_cgroups:
        assert settled.data["death"] == "DEATH_PROVEN"
        assert not alive(daemon)
    else:
        assert settled.data["death"] == "DEATH_UNPROVEN"
    assert (await scheduler.run(**sh("echo next"))).data["death"] == "DEATH_PROVEN"


async def test_keeper_that_was_stopped_is_woken(scheduler: FakeScheduler) -> None:
    settled = await scheduler.run(shell=program(PATRICIDE, str(int(signal.SIGSTOP)), "leave"))
    assert (settled.data["state"], settled.data["death"]) == ("EFFECT_STATE_SUCCEEDED", "DEATH_PROVEN")


async def test_keeper_program_that_dies_is_started_again(scheduler: FakeScheduler, executor: ExecutorServer) -> None:
    running = await scheduler.one(timeouts={"kill_grace": "0.1s"}, shell=program(HIDDEN, "stay"))
    [daemon] = await said_pids(executor, running)
    program_pid = executor._keepers._program.pid  # type: ignore[union-attr]
    os.kill(program_pid, signal.SIGKILL)
    await eventually(lambda: not alive(program_pid))
    assert (await scheduler.run(**sh("echo next"))).data["death"] == "DEATH_PROVEN"
    assert alive(daemon), "what ran before goes on with its keeper"
    scheduler.sessions[-1].cancel(running)
    assert (await scheduler.settled(running)).data["death"] == "DEATH_PROVEN"
    assert not alive(daemon)


async def test_pipe_that_a_stranger_holds_does_not_hold_up_the_result(scheduler: FakeScheduler, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        settled = await scheduler.run(shell=program(GIVER, path))
        connection, _ = listener.accept()
        with connection:
            _, [held], _, _ = socket.recv_fds(connection, 1, 1)
    try:
        assert settled.data["result"]["stdout"]["tail"] == "done\n"
        assert settled.data["death"] == "DEATH_PROVEN"
        with pytest.raises(BrokenPipeError):
            os.write(held, b"to nobody")
    finally:
        os.close(held)


async def test_attempts_leave_no_control_group_behind(
    scheduler: FakeScheduler, executor: ExecutorServer, with_cgroups: bool
) -> None:
    await asyncio.gather(*(scheduler.run(**sh("true")) for _ in range(5)))
    folder = executor._cgroups.folder
    assert (folder is not None) == with_cgroups
    if folder is not None:
        assert [path.name for path in folder.iterdir() if path.is_dir()] == []
