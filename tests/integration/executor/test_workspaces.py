"""Agents in workspaces: what the journal says of them, what stays, what ends their making, and who waits for whom."""

import json
from pathlib import Path
from typing import Any

import pytest

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.errors import StartError
from executor_service.server import ExecutorServer
from executor_service.workspaces import workspaces
from tests.integration.executor.conftest import StartExecutor
from tests.support import scripted_agent
from tests.support.eventually import eventually
from tests.support.fake_scheduler import Dispatch, FakeScheduler, Settled
from tests.support.repositories import git, repository, slow, state_of


@pytest.fixture
async def executor(start_executor: StartExecutor) -> ExecutorServer:
    server: ExecutorServer = await start_executor(harness_modules=(scripted_agent.__name__,))
    return server


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return repository(tmp_path / "repo")


def ask(source: Path, kind: str = "WORKTREE", keep: str = "", **script: Any) -> dict[str, Any]:
    workspace = {"kind": f"WORKSPACE_KIND_{kind}", "source": str(source)}
    if keep:
        workspace["keep"] = f"WORKSPACE_KEEP_{keep}"
    return {"agent": {"harness": "codex", "prompt": f"fix {json.dumps(script)}", "workspace": workspace}}


def workspace_of(settled: Settled) -> dict[str, Any]:
    gave: dict[str, Any] = settled.data.get("result") or settled.data["partial"]
    return dict(gave["workspace"])


async def is_gone(path: str) -> None:
    await eventually(lambda: not Path(path).exists(), message=f"{path} is still there")


async def started(executor: ExecutorServer, dispatch: Dispatch) -> None:
    await eventually(lambda: (held := executor.attempts.get(dispatch.effect_id, 1)) and held.progress.step == "on it")


@pytest.mark.usefixtures("executor")
async def test_work_in_a_worktree_is_in_the_result_and_the_tree_is_gone(scheduler: FakeScheduler, repo: Path) -> None:
    before = state_of(repo)
    settled = await scheduler.run(**ask(repo, write={"new.txt": "new\n"}))
    workspace = workspace_of(settled)
    assert (settled.type, workspace["files_changed"], workspace["insertions"]) == ("EFFECT_RESOLVED", 1, 1)
    assert git(repo, "show", f"{workspace['branch']}:new.txt") == "new"
    assert "+new" in workspace["patch"]
    assert "kept" not in workspace
    assert settled.data["result"]["session"]["workspace"] == workspace["path"]
    await is_gone(workspace["path"])
    assert state_of(repo) == before


@pytest.mark.usefixtures("executor")
async def test_a_password_that_stands_in_the_path_of_a_workspace_leaves_that_as_it_is(
    scheduler: FakeScheduler, repo: Path
) -> None:
    spec = ask(repo, write={"new.txt": "new worktrees\n"})
    spec["agent"]["env"] = {"DB_PASSWORD": "worktrees", "DATABASE_URL": "postgresql://backburner:backburner@db/x"}
    settled = await scheduler.run(**spec)
    workspace = workspace_of(settled)
    assert "+new ***" in workspace["patch"]
    assert git(repo, "show", f"{workspace['branch']}:new.txt") == "new worktrees"
    assert settled.data["result"]["session"]["workspace"] == workspace["path"]
    assert Path(workspace["path"]).parent == repo.parent / "state" / "worktrees"
    await is_gone(workspace["path"])


@pytest.mark.usefixtures("executor")
@pytest.mark.parametrize(
    ("end", "keep", "stays"),
    [("fail", "", True), ("fail", "NEVER", False), ("exit", "", True), ("", "ALWAYS", True)],
)
async def test_what_stays_after_the_end(scheduler: FakeScheduler, repo: Path, end: str, keep: str, stays: bool) -> None:
    scripts: dict[str, dict[str, Any]] = {"fail": {"fail": {"reason": "REFUSED", "message": "no"}}, "exit": {"exit": 1}}
    ends = scripts.get(end, {})
    settled = await scheduler.run(**ask(repo, keep=keep, write={"half.txt": "half\n"}, **ends))
    workspace = workspace_of(settled)
    assert (settled.data["state"], workspace.get("kept", False)) == (
        f"EFFECT_STATE_{'FAILED' if ends else 'SUCCEEDED'}",
        stays,
    )
    assert git(repo, "show", f"{workspace['result_commit']}:half.txt") == "half"
    if stays:
        assert (Path(workspace["path"]) / "half.txt").exists()
    else:
        await is_gone(workspace["path"])


async def test_a_cancel_keeps_what_was_done(scheduler: FakeScheduler, executor: ExecutorServer, repo: Path) -> None:
    dispatch = await scheduler.one(
        **ask(repo, write={"half.txt": "h\n"}, steps=["on it"], wait_for=str(repo / "never"))
    )
    await started(executor, dispatch)
    await eventually(lambda: list((repo.parent / "state" / "worktrees").glob("*/half.txt")))
    scheduler.sessions[-1].cancel(dispatch)
    settled = await scheduler.settled(dispatch)
    workspace = workspace_of(settled)
    assert (settled.type, settled.data["death"], workspace["kept"]) == ("EFFECT_CANCELLED", "DEATH_PROVEN", True)
    assert git(repo, "show", f"{workspace['result_commit']}:half.txt") == "h"


async def test_a_cancel_ends_the_making_of_a_worktree(
    scheduler: FakeScheduler, executor: ExecutorServer, repo: Path
) -> None:
    begun = slow(repo, 300)
    dispatch = await scheduler.one(**ask(repo))
    await eventually(begun.exists)
    scheduler.sessions[-1].cancel(dispatch)
    settled = await scheduler.settled(dispatch)
    assert settled.type == "EFFECT_CANCELLED"
    assert executor.attempts.pools["agents"].taken == 0
    git(repo, "config", "--unset", "filter.slow.smudge")
    assert (await scheduler.run(**ask(repo))).type == "EFFECT_RESOLVED", "the repository is free"


@pytest.mark.usefixtures("executor")
async def test_the_making_of_a_worktree_is_no_silence(
    scheduler: FakeScheduler, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspaces, "_PATIENCE_SECONDS", 0.2)
    slow(repo, 3)
    settled = await scheduler.run(timeouts={"silence": "1.5s"}, **ask(repo))
    assert settled.data["state"] == "EFFECT_STATE_SUCCEEDED"


@pytest.mark.usefixtures("executor")
async def test_a_source_without_git_is_invalid_work_that_names_the_remedy(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    settled = await scheduler.run(**ask(tmp_path))
    assert settled.reason == "INVALID_WORK"
    assert "run `git init` there" in settled.data["error"]["message"]


@pytest.mark.parametrize("which", [".", "inner", "link"])
async def test_an_effect_whose_directory_is_in_use_is_handed_back_unstarted(
    scheduler: FakeScheduler, executor: ExecutorServer, tmp_path: Path, which: str
) -> None:
    work = tmp_path / "work"
    (work / "inner").mkdir(parents=True)
    (work / "link").symlink_to(work)
    hold = tmp_path / "hold"
    hold.touch()
    first = await scheduler.one(**ask(work, "DIRECTORY", steps=["on it"], hold=str(hold)))
    await started(executor, first)
    second = await scheduler.one(**ask(work / which, "DIRECTORY"))
    session = scheduler.sessions[-1]
    [refused] = await eventually(lambda: session.was_rejected(second))
    assert refused.reason == pb.RejectedAttempt.REASON_WORKSPACE_BUSY
    assert refused.message.endswith(
        f" of run {first.run_id} works in {work}" + (which == "inner") * f", which {work}/inner is in"
    )
    assert await scheduler.rows(second, "EFFECT_STARTED") == []
    assert executor.attempts.pools["agents"].taken == 1, "it holds no slot"
    hold.unlink()
    await scheduler.settled(first)
    session.start(second)
    assert (await scheduler.settled(second)).data["state"] == "EFFECT_STATE_SUCCEEDED"


async def test_the_lease_holds_among_the_executors_of_a_host(
    scheduler: FakeScheduler, executor: ExecutorServer, start_executor: StartExecutor, tmp_path: Path
) -> None:
    (tmp_path / "work").mkdir()
    hold = tmp_path / "hold"
    hold.touch()
    first = await scheduler.one(**ask(tmp_path / "work", "DIRECTORY", steps=["on it"], hold=str(hold)))
    await started(executor, first)
    await start_executor(
        executor_id="other", state_dir=str(tmp_path / "other"), harness_modules=(scripted_agent.__name__,)
    )
    session = await scheduler.session(after=1)
    second = await scheduler.one(**ask(tmp_path / "work", "DIRECTORY"))
    [refused] = await eventually(lambda: session.was_rejected(second))
    assert refused.message.startswith("effect "), "both stand in this process: they know of each other"
    hold.unlink()
    await scheduler.settled(first)


@pytest.mark.usefixtures("executor")
async def test_every_executor_merges(scheduler: FakeScheduler, repo: Path) -> None:
    done = [await scheduler.run(**ask(repo, write={"a.txt": f"{name}\n"})) for name in ("one", "two")]
    commits = [{"name": f"n{at}", "commit": workspace_of(settled)["result_commit"]} for at, settled in enumerate(done)]
    settled = await scheduler.run(
        function={"function": "backburner.merge", "kwargs": {"repo": str(repo), "commits": commits}}
    )
    assert [item["status"] for item in settled.value["items"]] == ["merged", "conflict"]
    settled = await scheduler.run(function={"function": "backburner.merge", "kwargs": {"repo": str(repo.parent)}})
    assert settled.reason == "INVALID_WORK"


def test_a_function_of_that_name_is_refused(executor_settings: Any) -> None:
    from executor_service.settings import Settings

    with pytest.raises(StartError, match="one of the executor's own"):
        ExecutorServer(Settings(**executor_settings), {"backburner.merge": object()}, "test")
