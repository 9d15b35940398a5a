"""Repositories in which an agent has left traps for whoever runs git there next: none of them runs, or none is left."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from executor_service.descendants import become_subreaper
from executor_service.markers import helper_marker, marked
from executor_service.workspaces import records, trees
from executor_service.workspaces.git import Git, Stopped
from executor_service.workspaces.trees import Tree
from tests.support.children import alive
from tests.support.keepers import KEEPERS
from tests.support.repositories import git, repository
from tests.support.services import ROOT
from tests.unit.executor.test_workspace_trees import assignment, wait_for

Open = Callable[..., Tree]


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return repository(tmp_path / "repo")


@pytest.fixture
def runner(tmp_path: Path) -> Git:
    return Git(tmp_path, KEEPERS)


@pytest.fixture
def open_(tmp_path: Path, runner: Git) -> Iterator[Open]:
    opened: list[Tree] = []

    def open_one(source: Path, kind: str) -> Tree:
        asked = trees.asked_of({"workspace": {"kind": f"WORKSPACE_KIND_{kind}", "source": str(source)}}, assignment())
        assert asked is not None
        folder = tmp_path / "state" / "worktrees"
        tree = trees.open_tree(asked, runner, folder, trees.hold(asked, folder))
        opened.append(tree)
        trees.look_before(tree, runner, tmp_path / "state" / "scratch")
        return tree

    yield open_one
    for tree in opened:
        tree.held.close()


@pytest.fixture
def traps(tmp_path: Path) -> Iterator[Any]:
    """Makes programs that note that they ran, and leave a daemon that nothing can be seen on."""
    pids = tmp_path / "pids"

    def trap(name: str, then: str = "cat") -> str:
        path = tmp_path / f"{name}.sh"
        daemon = f"setsid env -i /bin/sh -c 'echo $$ >> {pids}; exec sleep 300' </dev/null >/dev/null 2>&1"
        path.write_text(f"#!/bin/sh\n({daemon} &)\nwhile ! test -s {pids}; do sleep 0.01; done\n{then}\n")
        path.chmod(0o755)
        return str(path)

    yield trap
    for pid in left(tmp_path):
        os.kill(pid, signal.SIGKILL)


def left(folder: Path) -> list[int]:
    """The daemons that live."""
    pids = folder / "pids"
    return [pid for pid in map(int, pids.read_text().split()) if alive(pid)] if pids.exists() else []


def ran(folder: Path) -> bool:
    return (folder / "pids").exists()


def spring(tree: Tree, settings: dict[str, str], attributes: str) -> None:
    """What an agent does: it sets its traps, and changes a file."""
    for name, value in settings.items():
        git(tree.root, "config", name, value)
    (tree.root / ".gitattributes").write_text(attributes)
    (tree.root / "a.txt").write_text("changed\n")


@pytest.mark.parametrize("kind", ["WORKTREE", "COPY", "DIRECTORY"])
def test_what_never_runs_wherever_it_comes_from(
    repo: Path, tmp_path: Path, runner: Git, open_: Open, *, traps: Any, kind: str
) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("pre-commit", "post-index-change", "reference-transaction", "post-checkout", "post-commit"):
        (hooks / name).symlink_to(traps("hook"))
    git(repo, "config", "diff.external", traps("external"))
    git(repo, "config", "diff.z.textconv", traps("textconv"))
    git(repo, "config", "diff.z.command", traps("command"))
    tree = open_(repo, kind)
    settings = {"core.fsmonitor": traps("fsmonitor"), "core.hooksPath": str(hooks), "core.pager": traps("pager")}
    spring(tree, settings, "* diff=z\n")
    result = trees.result_of(tree, runner, succeeded=True)
    assert (result["files_changed"], result.get("problem")) == (2, None)
    assert "+changed" in result["patch"]
    if kind != "DIRECTORY":
        trees.drop(tree.root, records.read(tree.root), runner)
    assert not ran(tmp_path)


@pytest.mark.parametrize("kind", ["WORKTREE", "COPY", "DIRECTORY"])
@pytest.mark.parametrize("setting", ["filter.z.clean", "filter.z.process", "include.path"])
def test_a_filter_that_came_while_the_agent_worked_is_not_run_and_named(
    repo: Path, tmp_path: Path, runner: Git, open_: Open, *, traps: Any, kind: str, setting: str
) -> None:
    tree = open_(repo, kind)
    value, named = traps("filter"), setting
    if setting == "include.path":
        (tmp_path / "included").write_text(f'[filter "z"]\n\tclean = {value}\n')
        value, named = str(tmp_path / "included"), "filter.z.clean"
    spring(tree, {setting: value}, "* filter=z\n")
    result = trees.result_of(tree, runner, succeeded=True)
    assert named in result["problem"]
    assert "git config --unset" in result["problem"]
    assert (result["kept"], ran(tmp_path)) == (True, False)
    git(tree.root, "config", "--unset", setting)
    tree.close()
    tree = open_(repo, kind)
    assert trees.result_of(tree, runner, succeeded=True).get("problem") is None, "once it is gone all is well"


@pytest.mark.parametrize("kind", ["WORKTREE", "COPY", "DIRECTORY"])
def test_a_filter_of_a_repository_in_the_repository_is_not_run_and_its_commit_is_captured(
    repo: Path, tmp_path: Path, runner: Git, open_: Open, *, traps: Any, kind: str
) -> None:
    """git asks a submodule for its status when it adds what has changed, and that filters by its own configuration."""
    tree = open_(repo, kind)
    nested, ahead, gone = (repository(tree.root / name) for name in ("a nested [one]", "ahead", "gone"))
    git(tree.root, "add", nested.name, ahead.name, gone.name)
    git(ahead, "commit", "--quiet", "--allow-empty", "-m", "another")
    shutil.rmtree(gone)
    git(nested, "config", "filter.z.clean", traps("filter"))
    (nested / ".gitattributes").write_text("* filter=z\n")
    before = (nested / "a.txt").read_text()
    (nested / "a.txt").write_text("z" * len(before))  # of another size it has changed whatever a filter says
    (tree.root / "a.txt").write_text("changed\n")
    result = trees.result_of(tree, runner, succeeded=True)
    assert not ran(tmp_path)
    assert (result["files_changed"], "not captured" in result.get("problem", "")) == (3, False)
    assert all(f"+Subproject commit {git(one, 'rev-parse', 'HEAD')}\n" in result["patch"] for one in (nested, ahead))


def test_a_filter_of_an_agent_is_still_one_for_the_next_attempt(
    repo: Path, tmp_path: Path, runner: Git, open_: Open, traps: Any
) -> None:
    tree = open_(repo, "WORKTREE")
    spring(tree, {"filter.z.clean": traps("filter")}, "* filter=z\n")
    tree.close()
    again = open_(repo, "WORKTREE")
    assert "filter.z.clean" in trees.result_of(again, runner, succeeded=True)["problem"]
    assert not ran(tmp_path)


def test_a_worktree_that_leads_to_another_repository_is_not_followed(
    repo: Path, tmp_path: Path, runner: Git, open_: Open, traps: Any
) -> None:
    tree = open_(repo, "WORKTREE")
    evil = repository(tmp_path / "evil")
    git(evil, "config", "filter.z.clean", traps("filter"))
    (tree.root / ".git").write_text(f"gitdir: {evil}/.git\n")
    spring(tree, {}, "* filter=z\n")
    assert "filter.z.clean" in trees.result_of(tree, runner, succeeded=True)["problem"]
    assert not ran(tmp_path)


def test_filters_of_the_user_run_those_set_alike_in_his_own_configuration_too(
    repo: Path, tmp_path: Path, runner: Git, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".gitconfig").write_text('[filter "lfs"]\n\tclean = sed s/^/lfs:/\n')
    git(repo, "config", "filter.own.clean", "sed s/^/own:/")
    tree = open_(repo, "WORKTREE")
    spring(tree, {"filter.lfs.clean": "sed s/^/lfs:/"}, "a.txt filter=own\nb.txt filter=lfs\n")
    (tree.root / "b.txt").write_text("large\n")
    result = trees.result_of(tree, runner, succeeded=True)
    assert git(repo, "show", f"{result['branch']}:a.txt") == "own:changed"
    assert git(repo, "show", f"{result['branch']}:b.txt") == "lfs:large"


def test_daemons_of_a_filter_are_dead_when_git_has_ended(
    repo: Path, tmp_path: Path, runner: Git, open_: Open, traps: Any
) -> None:
    git(repo, "config", "filter.z.clean", traps("filter"))  # of the user's, or of one whom nothing was noted before
    tree = open_(repo, "WORKTREE")
    spring(tree, {}, "* filter=z\n")
    assert trees.result_of(tree, runner, succeeded=True)["files_changed"] == 2
    assert (ran(tmp_path), left(tmp_path)) == (True, [])
    assert marked(helper_marker(KEEPERS.incarnation)) == []


def test_a_filter_that_kills_its_keeper_fails_the_call_and_what_carries_the_marker_is_dead(
    repo: Path, tmp_path: Path, runner: Git, open_: Open
) -> None:
    become_subreaper()
    script, pids = tmp_path / "kills.sh", tmp_path / "pids"
    script.write_text(
        f"#!/bin/sh\n(setsid sh -c 'echo $$ >> {pids}; exec sleep 300' </dev/null >/dev/null 2>&1 &)\n"
        f"while ! test -s {pids}; do sleep 0.01; done\n"
        "git=$(cut -d' ' -f5 /proc/$$/stat)\n"  # the leader of its group
        "kill -9 $(cut -d' ' -f4 /proc/$git/stat)\ncat\n"
    )
    script.chmod(0o755)
    git(repo, "config", "filter.z.clean", str(script))
    tree = open_(repo, "WORKTREE")
    spring(tree, {}, "* filter=z\n")
    assert "its keeper was killed" in trees.result_of(tree, runner, succeeded=True)["problem"]
    assert (ran(tmp_path), left(tmp_path)) == (True, [])
    assert git(repo, "status", "--porcelain") == ""


def test_a_daemon_that_holds_the_output_open_holds_nothing_up(repo: Path, tmp_path: Path) -> None:
    held = (
        f"(setsid sh -c 'echo $$ >> {tmp_path}/pids; exec sleep 300' &) ; while ! test -s {tmp_path}/pids; do :; done"
    )
    git(repo, "config", "alias.hold", f"!{held}; echo said")
    assert Git(repo, KEEPERS).line("hold") == "said"
    assert (ran(tmp_path), left(tmp_path)) == (True, [])


def test_a_git_that_its_own_filters_make_hang_is_ended_with_them(repo: Path, tmp_path: Path) -> None:
    git(repo, "config", "alias.hang", f"!trap '' TERM; echo $$ >> {tmp_path}/pids; while :; do sleep 1; done")
    began: list[bool] = []

    class Stop:
        def is_set(self) -> bool:
            if ran(tmp_path):
                began.append(True)
            return bool(began)

        def wait(self, timeout: float) -> bool:
            raise AssertionError

    with pytest.raises(Stopped):
        Git(repo, KEEPERS, Stop()).line("hang")
    assert (ran(tmp_path), left(tmp_path)) == (True, [])


LEAVES = """
import asyncio, sys, threading, time
from pathlib import Path
from executor_service.descendants import Reaper
from executor_service.guard import Guard
from executor_service.keepers import Keepers
from executor_service.markers import marker
from executor_service.workspaces.git import Git

async def main():
    reaper = Reaper()
    guard = Guard(marker("leaves"), reaper)
    guard.start()
    git = Git(Path(sys.argv[1]), Keepers(reaper, "leaves"))
    threading.Thread(target=git.line, args=("call",), daemon=True).start()
    while not Path(sys.argv[2]).exists():
        await asyncio.sleep(0.01)
    print(await guard.leave())

asyncio.run(main())
"""


def test_a_git_whose_executor_ends_in_order_may_finish_and_leaves_nobody(repo: Path, tmp_path: Path) -> None:
    begun, finished = tmp_path / "pids", tmp_path / "finished"
    git(repo, "config", "alias.call", f"!touch {begun}; sleep 1; touch {finished}")
    argv = [sys.executable, "-c", LEAVES, str(repo), str(begun)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, finished.exists()) == ("True\n", True)
    assert marked(helper_marker("leaves")) == []


CALLS = """
import sys
from pathlib import Path
from executor_service.descendants import Reaper
from executor_service.keepers import Keepers
from executor_service.workspaces.git import Git
Git(Path(sys.argv[1]), Keepers(Reaper(), "dies")).line("call")
"""


def test_a_git_whose_executor_is_killed_may_finish_and_leaves_nobody(repo: Path, tmp_path: Path) -> None:
    begun, finished = tmp_path / "pids", tmp_path / "finished"
    daemon = f"(setsid env -i /bin/sh -c 'echo $$ >> {begun}; exec sleep 300' </dev/null >/dev/null 2>&1 &)"
    git(repo, "config", "alias.call", f"!{daemon}; sleep 2; touch {finished}")
    executor = subprocess.Popen([sys.executable, "-c", CALLS, str(repo)], cwd=ROOT)
    wait_for(begun)
    executor.kill()
    executor.wait()
    wait_for(finished)
    deadline = time.monotonic() + 20.0
    while left(tmp_path) or marked(helper_marker("dies")):
        assert time.monotonic() < deadline
        time.sleep(0.01)  # nothing tells of a process of somebody else
