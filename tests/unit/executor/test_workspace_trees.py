"""Worktrees, copies and directories by the real git: made, found again, looked at, given up, cut off."""

import contextlib
import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from executor_service.assignment import Assignment, InvalidWork
from executor_service.descendants import Reaper
from executor_service.markers import helper_marker, marked
from executor_service.workspaces import capture, files, records, sweep, trees
from executor_service.workspaces.git import Git, GitFailed, Stopped
from executor_service.workspaces.leases import Busy, Held, Lease
from executor_service.workspaces.repository import Repository
from executor_service.workspaces.trees import Tree
from tests.support.children import alive
from tests.support.keepers import KEEPERS
from tests.support.repositories import git, repository, slow, state_of

EFFECT = "3f2a9c1b-7d4e-5a6b-8c9d-0e1f2a3b4c5d"
BRANCH = "backburner/3f2a9c1b7d4e"

Open = Callable[..., Tree]


def assignment(effect_id: str = EFFECT) -> Assignment:
    return Assignment(
        "run", effect_id, "fix/a", 1, "ab" * 16, "codex", "agents", True, "fix", "default", 1, None, None, b"{}"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "worktrees"


@pytest.fixture
def runner(tmp_path: Path) -> Git:
    return Git(tmp_path, KEEPERS)


@pytest.fixture
def open_(folder: Path, runner: Git) -> Iterator[Open]:
    opened: list[Tree] = []

    def open_one(source: Path, kind: str = "WORKTREE", effect_id: str = EFFECT, **given: Any) -> Tree:
        work = {"workspace": {"kind": f"WORKSPACE_KIND_{kind}", "source": str(source), **given}}
        asked = trees.asked_of(work, assignment(effect_id))
        assert asked is not None
        tree = trees.open_tree(asked, runner, folder, trees.hold(asked, folder))
        opened.append(tree)
        trees.look_before(tree, runner, folder.parent / "scratch")
        return tree

    yield open_one
    for tree in opened:
        tree.held.close()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return repository(tmp_path / "repo", __gitignore="*.log\n")


def test_work_that_succeeds_is_a_commit_on_a_branch_and_the_checkout_is_as_it_was(
    repo: Path, runner: Git, open_: Open
) -> None:
    (repo / "a.txt").write_text("one\ntwo\nmine, not committed\n")
    (repo / "staged.txt").write_text("mine, staged\n")
    git(repo, "add", "staged.txt")
    before = state_of(repo)
    tree = open_(repo)
    assert (tree.root / "a.txt").read_text() == "one\ntwo\nthree\n", "of the commit, not of the checkout"
    (tree.root / "a.txt").write_text("one\n2\nthree\n")
    (tree.root / "new.txt").write_text("new\n")
    (tree.root / "noise.log").write_text("ignored\n")
    result = trees.result_of(tree, runner, succeeded=True)
    assert (result["kept"], result["branch"], result["base_commit"]) == (False, BRANCH, git(repo, "rev-parse", "main"))
    assert (result["files_changed"], result["insertions"], result["deletions"]) == (2, 2, 1)
    assert git(repo, "rev-parse", BRANCH) == result["result_commit"]
    assert git(repo, "ls-tree", "--name-only", BRANCH).split() == [".gitignore", "a.txt", "new.txt"]
    author = git(repo, "log", "-1", "--format=%an <%ae> %cn|%s", BRANCH)
    assert author == "Backburner <backburner@localhost> Backburner|fix"
    assert result["patch_bytes"] == len(result["patch"])
    clean = repo.parent / "clean"
    git(repo, "clone", "--quiet", ".", str(clean))
    subprocess.run(["git", "apply", "--index", "-"], cwd=clean, input=result["patch"].encode(), check=True)
    assert git(clean, "write-tree") == git(repo, "rev-parse", f"{BRANCH}^{{tree}}"), "the patch is the change"
    assert state_of(repo) == before


def test_work_that_fails_leaves_its_tree_dirty_for_the_retry(repo: Path, runner: Git, open_: Open) -> None:
    tree = open_(repo)
    (tree.root / "half.txt").write_text("half\n")
    result = trees.result_of(tree, runner, succeeded=False)
    tree.close()
    assert (result["kept"], result.get("branch")) == (True, None)
    assert git(repo, "show", f"{result['result_commit']}:half.txt") == "half"
    assert git(repo, "rev-parse", BRANCH) == result["base_commit"], "the branch waits for a success"
    git(repo, "gc", "--quiet", "--prune=now")
    assert git(repo, "cat-file", "-t", result["result_commit"]) == "commit", "it is held by a name"

    git(repo, "commit", "--quiet", "--allow-empty", "--message", "main goes on")
    again = open_(repo, base="main")
    assert (again.found, again.root) == (True, tree.root)
    assert git(again.root, "status", "--porcelain") == "?? half.txt", "as dirty as it was"
    (again.root / "half.txt").write_text("whole\n")
    result = trees.result_of(again, runner, succeeded=True)
    assert result["base_commit"] == tree.record.base, "of the first attempt"
    assert git(repo, "show", f"{BRANCH}:half.txt") == "whole"
    assert git(repo, "for-each-ref", "refs/backburner-attempts") == ""


def test_commits_of_the_agent_are_part_of_the_work(repo: Path, runner: Git, open_: Open) -> None:
    tree = open_(repo, keep="WORKSPACE_KEEP_ALWAYS")
    (tree.root / "a.txt").write_text("theirs\n")
    git(tree.root, "commit", "--quiet", "--all", "--message", "by the agent")
    (tree.root / "b.txt").write_text("left\n")
    result = trees.result_of(tree, runner, succeeded=True)
    assert git(repo, "log", "--format=%s", BRANCH).split("\n") == ["fix", "by the agent", "first"]
    assert (result["kept"], git(tree.root, "status", "--porcelain")) == (True, "")
    assert result["files_changed"] == 2


def test_an_agent_that_leaves_the_branch_is_followed(repo: Path, runner: Git, open_: Open) -> None:
    tree = open_(repo)
    git(tree.root, "checkout", "--quiet", "--detach")
    (tree.root / "b.txt").write_text("b\n")
    result = trees.result_of(tree, runner, succeeded=True)
    assert git(repo, "rev-parse", BRANCH) == result["result_commit"]


def test_no_change_is_no_commit_and_no_branch(repo: Path, folder: Path, runner: Git, open_: Open) -> None:
    tree = open_(repo)
    result = trees.result_of(tree, runner, succeeded=True)
    assert result == {"path": str(tree.root), "base_commit": git(repo, "rev-parse", "main"), "kept": False}
    trees.drop(tree.root, records.read(tree.root), runner)
    assert git(repo, "branch", "--format=%(refname:short)") == "main"
    assert git(repo, "worktree", "list", "--porcelain").count("worktree ") == 1
    assert [path.name for path in folder.iterdir()] == [f"{EFFECT}.lock"]


def test_a_folder_of_a_repository_is_the_same_folder_of_the_worktree(tmp_path: Path, open_: Open) -> None:
    repo = repository(tmp_path / "big")
    (repo / "part").mkdir()
    (repo / "part" / "x").write_text("x")
    git(repo, "add", "--all")
    git(repo, "commit", "--quiet", "--message", "part")
    tree = open_(repo / "part")
    assert tree.cwd == tree.root / "part"


def test_hooks_and_prompts_do_not_run(repo: Path, runner: Git, open_: Open) -> None:
    ran = repo.parent / "ran"
    for name in ("post-checkout", "pre-commit", "post-commit", "reference-transaction", "post-index-change"):
        hook = repo / ".git" / "hooks" / name
        hook.write_text(f"#!/bin/sh\necho {name} >> {ran}\n")
        hook.chmod(0o755)
    tree = open_(repo)
    (tree.root / "b.txt").write_text("b\n")
    trees.result_of(tree, runner, succeeded=True)
    trees.drop(tree.root, records.read(tree.root), runner)
    assert not ran.exists()


def test_a_filter_of_an_agent_does_not_see_the_environment_of_the_executor(
    repo: Path, runner: Git, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret")
    seen = repo.parent / "seen"
    git(repo, "config", "filter.z.clean", f"sh -c 'env > {seen}; cat'")  # of the user's: it runs
    tree = open_(repo)
    (tree.root / ".gitattributes").write_text("* filter=z\n")
    (tree.root / "a.txt").write_text("changed\n")
    trees.result_of(tree, runner, succeeded=True)
    names = {line.partition("=")[0] for line in seen.read_text().splitlines()}
    assert "PATH" in names
    assert "DATABASE_URL" not in names


def _plain(tmp_path: Path) -> Path:
    (tmp_path / "plain").mkdir()
    return tmp_path / "plain"


def _empty(tmp_path: Path) -> Path:
    git(_plain(tmp_path), "init", "--quiet")
    return tmp_path / "plain"


def _linked(tmp_path: Path) -> Path:
    git(repository(tmp_path / "r"), "worktree", "add", "--quiet", str(tmp_path / "linked"))
    return tmp_path / "linked"


@pytest.mark.parametrize(
    ("source", "asked", "said"),
    [
        (_plain, {"kind": "WORKTREE"}, "is no git repository: run `git init` there"),
        (_empty, {"kind": "WORKTREE"}, "has no commit yet"),
        (lambda tmp: repository(tmp / "r"), {"kind": "WORKTREE", "base": "nope"}, "base 'nope' is no commit"),
        (lambda tmp: repository(tmp / "r"), {"kind": "WORKTREE", "base": "--all"}, "no name of a commit"),
        (lambda tmp: tmp / "gone", {"kind": "WORKTREE"}, "is no directory on this executor"),
        (lambda tmp: tmp / "gone", {"kind": "COPY"}, "is no directory on this executor"),
        (lambda tmp: tmp / "gone", {"kind": "DIRECTORY"}, "is no directory on this executor"),
        (_linked, {"kind": "COPY"}, "a linked worktree or a submodule"),
        (lambda tmp: tmp, {"kind": "COPY"}, "holds the executor's state directory"),
        (lambda _: Path("relative"), {"kind": "COPY"}, "must be an absolute path"),
        (lambda tmp: repository(tmp / "r"), {"kind": "CLOUD"}, "is none that this executor knows"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_remedy(
    tmp_path: Path, open_: Open, source: Callable[[Path], Path], asked: dict[str, str], said: str
) -> None:
    with pytest.raises(InvalidWork, match=said.replace("(", r"\(")):
        open_(source(tmp_path), **asked)


def test_a_copy_is_the_agents_own_and_keeps_links(tmp_path: Path, runner: Git, open_: Open) -> None:
    repo = repository(tmp_path / "repo")
    (repo / "link").symlink_to("a.txt")
    (repo / "untracked").write_text("u\n")
    tree = open_(repo, "COPY")
    assert (tree.root / "link").readlink() == Path("a.txt")
    assert (tree.root / "untracked").exists()
    (tree.root / "a.txt").write_text("changed\n")
    result = trees.result_of(tree, runner, succeeded=True)
    assert (result["files_changed"], result["kept"]) == (1, False), "what was untracked before is no change"
    assert "+changed" in result["patch"]
    assert (repo / "a.txt").read_text() == "one\ntwo\nthree\n"
    tree.close()
    again = open_(repo, "COPY")
    assert (again.found, trees.result_of(again, runner, succeeded=True)["patch"]) == (True, result["patch"])


def test_what_is_more_than_is_copied_is_refused(tmp_path: Path, open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _plain(tmp_path)
    for name in ("a", "b", "c"):
        (source / name).write_text("1234")
    monkeypatch.setattr(files, "FILES_MAX", 2)
    with pytest.raises(InvalidWork, match="more than 2 files or 20 GiB"):
        open_(source, "COPY")
    monkeypatch.setattr(files, "FILES_MAX", 3)
    monkeypatch.setattr(files, "BYTES_MAX", 11)
    with pytest.raises(InvalidWork, match="is not copied: ask for a worktree"):
        open_(source, "COPY")
    monkeypatch.setattr(files, "BYTES_MAX", 12 + source.stat().st_size)
    assert open_(source, "COPY").root.is_dir()


def test_what_vanishes_while_it_is_measured_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _plain(tmp_path)
    (source / "folder").mkdir()
    scandir = os.scandir

    def after_it_went(path: str) -> Any:
        if path.endswith("folder"):
            (source / "folder").rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", after_it_went)
    assert files.measure(source, threading.Event())[0] == 1


def test_a_copy_of_no_repository_has_no_patch_even_below_one(tmp_path: Path, runner: Git, open_: Open) -> None:
    repository(tmp_path / "state")  # the copies stand in a repository of somebody else's
    tree = open_(_plain(tmp_path), "COPY")
    (tree.root / "b.txt").write_text("b\n")
    assert trees.result_of(tree, runner, succeeded=True) == {"path": str(tree.root), "base_commit": "", "kept": False}


def test_a_directory_of_its_own_is_looked_at_without_a_trace(repo: Path, runner: Git, open_: Open) -> None:
    (repo / "mine.txt").write_text("mine\n")
    tree = open_(repo, "DIRECTORY")
    before, objects = state_of(repo), git(repo, "count-objects")
    (repo / "a.txt").write_text("changed\n")
    result = trees.result_of(tree, runner, succeeded=True)
    assert (result["path"], result["kept"], result["files_changed"]) == (str(repo), True, 1)
    assert "mine.txt" not in result["patch"], "that was there before"
    (repo / "a.txt").write_text("one\ntwo\nthree\n")
    assert (state_of(repo), git(repo, "count-objects")) == (before, objects)


def test_what_is_too_large_for_a_patch_is_left_to_the_commit(
    repo: Path, runner: Git, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "PATCH_BYTES_MAX", 10_000)
    tree = open_(repo)
    (tree.root / "large.txt").write_text("line\n" * 10_000)
    (tree.root / "blob.bin").write_bytes(b"\0" + os.urandom(999))  # with a NUL git counts no lines
    result = trees.result_of(tree, runner, succeeded=True)
    assert ("patch" in result, result["insertions"], result["files_changed"]) == (False, 10_000, 2)
    assert result["patch_bytes"] > 50_000
    assert "take it from the commit" in result["problem"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [("grün\n".encode("latin-1"), "is no UTF-8"), (b"text\n" * 2000 + b"\0\n", "holds NUL characters")],
)
def test_a_patch_that_is_no_text_is_left_to_the_commit(
    repo: Path, runner: Git, open_: Open, content: bytes, problem: str
) -> None:
    tree = open_(repo)
    (tree.root / "odd.txt").write_bytes(content)
    result = trees.result_of(tree, runner, succeeded=True)
    assert (problem in result["problem"], "patch" in result) == (True, False)


@pytest.mark.parametrize(("kind", "keep", "kept"), [
    ("WORKTREE", "ON_FAILURE", True), ("COPY", "ON_FAILURE", True), ("WORKTREE", "NEVER", False),
    ("DIRECTORY", "ON_FAILURE", True),
])  # fmt: skip
def test_a_repository_that_the_agent_has_made_in_its_own_is_not_thrown_away(
    repo: Path, runner: Git, open_: Open, *, kind: str, keep: str, kept: bool
) -> None:
    """git captures its commit and no file of it: gone with the directory, nobody would have what that commit is."""
    tree = open_(repo, kind, keep=f"WORKSPACE_KEEP_{keep}")
    made = repository(tree.root / "made")
    (tree.root / "a.txt").write_text("changed\n")
    result = trees.result_of(tree, runner, succeeded=True)
    assert (result["files_changed"], result["kept"]) == (2, kept)
    assert ("only the directory has: made" in result.get("problem", "")) == (kind != "DIRECTORY")
    if kind == "WORKTREE" and kept:
        assert git(tree.root, "status", "--porcelain") == ""
    git(made, "checkout", "--quiet", "HEAD")  # it is still there


def test_what_cannot_be_captured_stays_whatever_the_policy(repo: Path, runner: Git, open_: Open) -> None:
    tree = open_(repo, keep="WORKSPACE_KEEP_NEVER")
    git(tree.root, "init", "--quiet", "inner")  # git adds no repository that has no commit
    result = trees.result_of(tree, runner, succeeded=True)
    assert (result["kept"], "inner" in result["problem"]) == (True, True)


def test_what_cannot_be_captured_keeps_nobody_from_work(repo: Path, runner: Git, open_: Open) -> None:
    git(repo, "init", "--quiet", "inner")
    result = trees.result_of(open_(repo, "DIRECTORY"), runner, succeeded=True)
    assert "inner" in result["problem"]


@pytest.mark.parametrize("instead", ["nothing", "another"])
def test_a_tree_that_is_no_worktree_any_more_is_kept_and_nobody_elses_repository_is_touched(
    repo: Path, tmp_path: Path, runner: Git, open_: Open, instead: str
) -> None:
    outer = repository(tmp_path / "state")
    tree = open_(repo)
    before = git(outer, "for-each-ref"), git(repo, "for-each-ref")
    (tree.root / ".git").unlink()
    if instead == "another":
        git(tree.root, "init", "--quiet")
    (tree.root / "b.txt").write_text("b\n")
    result = trees.result_of(tree, runner, succeeded=True)
    assert (result["kept"], "is not captured" in result["problem"]) == (True, True)
    assert (git(outer, "for-each-ref"), git(repo, "for-each-ref")) == before


@pytest.mark.parametrize(
    ("keep", "succeeded", "stays"),
    [
        ("", True, False),
        ("", False, True),
        ("ALWAYS", True, True),
        ("NEVER", False, False),
        ("ON_FAILURE", True, False),
    ],
)
def test_what_stays_is_the_effects_to_say(tmp_path: Path, keep: str, succeeded: bool, stays: bool) -> None:
    keeps = {"keep": f"WORKSPACE_KEEP_{keep}"} if keep else {}
    asked = trees.asked_of(
        {"workspace": {"source": str(tmp_path), "kind": "WORKSPACE_KIND_COPY", **keeps}}, assignment()
    )
    assert asked is not None
    assert trees.stays(asked, succeeded=succeeded) is stays


# Leases.


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("work", "effect 'a' of run R works in {0}/work"),
        ("work/inner", "effect 'a' of run R works in {0}/work, which {0}/work/inner is in"),
        (".", "effect 'a' of run R works in {0}/work, which is in {0}"),
        ("link", "effect 'a' of run R works in {0}/work, which {0}/work/inner is in"),
    ],
)
def test_a_leased_directory_its_parents_and_its_children_are_nobody_elses(
    tmp_path: Path, other: str, said: str
) -> None:
    (tmp_path / "work" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("work/inner")
    held = Lease(tmp_path / "work", "effect 'a' of run R")
    with pytest.raises(Busy) as raised:
        Lease(tmp_path / other)
    assert str(raised.value) == said.format(tmp_path)
    held.close()
    Lease(tmp_path / other).close()


def test_neighbours_have_their_leases_side_by_side(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    leases = [Lease(tmp_path / name) for name in ("a", "b")]
    for lease in leases:
        lease.close()


def test_a_lease_ends_with_its_process(tmp_path: Path) -> None:
    source = f"""
import sys, time
from pathlib import Path
from executor_service.workspaces.leases import Lease
lease = Lease(Path({str(tmp_path)!r}))
print("held", flush=True)
time.sleep(300)
"""
    other = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(Busy, match=r"another effect works in .*, by another executor of this host"):
        Lease(tmp_path)
    other.kill()
    other.wait()
    other.stdout.close()
    Lease(tmp_path).close()


# What was cut off.


def wait_for(path: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)  # of a thread's test: nothing tells of a file


OPENS = """
import sys
from pathlib import Path
from executor_service.workspaces import trees
from executor_service.descendants import Reaper
from executor_service.keepers import Keepers
from executor_service.workspaces.git import Git
from tests.unit.executor.test_workspace_trees import assignment
source, folder = map(Path, sys.argv[1:3])
asked = trees.asked_of({"workspace": {"kind": "WORKSPACE_KIND_WORKTREE", "source": str(source)}}, assignment())
trees.open_tree(asked, Git(source, Keepers(Reaper(), sys.argv[3])), folder, trees.hold(asked, folder))
"""


@pytest.mark.parametrize("with_git", [True, False])
def test_an_executor_that_is_killed_while_a_worktree_is_made_leaves_no_lock_behind(
    repo: Path, folder: Path, open_: Open, with_git: bool
) -> None:
    begun = slow(repo, 300 if with_git else 1)
    name = f"killed-{uuid.uuid4()}"  # other tests do so at the same time
    other = subprocess.Popen([sys.executable, "-c", OPENS, str(repo), str(folder), name])
    wait_for(begun)
    children = [pid for pid in marked(helper_marker(name)) if os.getpgid(pid) == pid]
    assert len(children) == 1, "git, which leads its group"
    other.kill()
    other.wait()
    if with_git:
        os.killpg(children[0], signal.SIGKILL)
    git(repo, "config", "--unset", "filter.slow.smudge")
    tree = open_(repo)  # the same effect, the same place
    assert tree.found is False
    assert not alive(children[0]), "a git that still runs is waited for"
    assert git(tree.root, "status", "--porcelain") == ""
    assert git(repo, "worktree", "list", "--porcelain").count("worktree ") == 2
    assert open_(repo, effect_id=str(uuid.uuid4())).root.is_dir(), "nor for anybody else"


def test_a_lock_that_a_killed_git_left_on_the_branch_is_no_obstacle(repo: Path, open_: Open) -> None:
    lock = repo / ".git" / "refs" / "heads" / f"{BRANCH}.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert open_(repo).root.is_dir()


def test_a_stop_ends_git_in_the_middle(repo: Path, folder: Path) -> None:
    begun, stop = slow(repo, 300), threading.Event()
    asked = trees.asked_of({"workspace": {"kind": "WORKSPACE_KIND_WORKTREE", "source": str(repo)}}, assignment())
    assert asked is not None

    def stop_it() -> None:
        wait_for(begun)
        stop.set()

    threading.Thread(target=stop_it).start()
    with pytest.raises(Stopped):
        trees.open_tree(asked, Git(repo, KEEPERS, stop), folder, trees.hold(asked, folder))
    assert not (repo / ".git" / "refs" / "heads" / f"{BRANCH}.lock").exists()


def test_git_that_takes_too_long_is_ended(repo: Path, folder: Path) -> None:
    slow(repo, 300)
    (repo / "a.txt").unlink()
    with pytest.raises(GitFailed, match="it took too long"):
        Git(repo, KEEPERS, until=time.monotonic() + 1.0).run("checkout", "--", ".")


def test_many_worktrees_of_one_repository_are_made_at_a_time(repo: Path, open_: Open) -> None:
    made: list[Path] = []
    threads = [
        threading.Thread(target=lambda: made.append(open_(repo, effect_id=str(uuid.uuid4())).root)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path for path in made if (path / "a.txt").exists()}) == 8


def test_a_tree_of_another_executor_of_this_host_is_found(repo: Path, tmp_path: Path, runner: Git, open_: Open) -> None:
    tree = open_(repo)
    (tree.root / "half.txt").write_text("half\n")
    tree.close()
    elsewhere = tmp_path / "other" / "worktrees"
    there = trees.open_tree(tree.asked, runner, elsewhere, trees.hold(tree.asked, elsewhere))
    assert (there.found, there.root) == (True, tree.root)
    with pytest.raises(Busy):
        trees.hold(tree.asked, tree.root.parent)
    there.close()


@pytest.mark.parametrize("left_alone", [True, False])
def test_a_git_that_a_thread_waits_for_is_reaped_by_nobody_else(left_alone: bool) -> None:
    reaper = Reaper()
    with reaper.leave_alone() if left_alone else contextlib.nullcontext():
        child = subprocess.Popen(["/bin/sh", "-c", "exit 3"], start_new_session=True)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        reaper.reap(functions_run=False)
        assert child.wait() == (3 if left_alone else 0), "0 is what Python makes of a child that is gone"


# What is left is removed.


def test_the_sweep_keeps_the_newest_and_removes_what_is_over(
    repo: Path, folder: Path, runner: Git, open_: Open
) -> None:
    ids = [str(uuid.uuid4()) for _ in range(6)]
    opened = [open_(repo, effect_id=effect_id) for effect_id in ids]
    for age, tree in enumerate(opened):
        if age != 5:  # the oldest is in use
            tree.close()
        os.utime(tree.root.with_suffix(".json"), (1000 - age, 1000 - age))
    done = opened[0]
    records.write(done.root, dataclasses.replace(done.record, made=True, done=True))
    (folder / "cut-off").mkdir()
    assert sweep.sweep(folder, runner, kept_max=3, age_max_s=2.5, now=1000.0) == 4
    assert [tree.root.exists() for tree in opened] == [False, True, True, False, False, True]
    assert git(repo, "worktree", "list", "--porcelain").count("worktree ") == 4
    assert sweep.sweep(folder, runner, kept_max=1, age_max_s=1e9, now=1000.0) == 1
    assert sweep.sweep(folder / "none", runner, kept_max=1, age_max_s=1.0) == 0


@pytest.mark.parametrize("before", ["cut off", "old"])
def test_the_sweep_decides_under_the_lock(
    repo: Path, folder: Path, runner: Git, open_: Open, monkeypatch: pytest.MonkeyPatch, *, before: str
) -> None:
    """Between its look and its lock somebody makes the workspace whole, or works in it once more, and is gone again."""
    tree = open_(repo)
    path = tree.root.with_suffix(".json")
    tree.close()
    if before == "cut off":
        records.write(tree.root, dataclasses.replace(tree.record, made=False))
    os.utime(path, (1000, 1000))

    def after_it_was_used(lock: Path) -> Held:
        monkeypatch.setattr(sweep, "Held", Held)
        again = open_(repo)
        (again.root / "half.txt").write_text("half\n")
        again.close()
        return Held(lock)

    monkeypatch.setattr(sweep, "Held", after_it_was_used)
    assert sweep.sweep(folder, runner, kept_max=9, age_max_s=10.0, now=2000.0) == 0
    assert (tree.root / "half.txt").exists()
    os.utime(path, (1000, 1000))
    assert sweep.sweep(folder, runner, kept_max=9, age_max_s=10.0, now=2000.0) == 1


def test_the_sweep_leaves_a_tree_whose_directory_is_leased_and_has_it_alone(
    repo: Path, folder: Path, runner: Git, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = open_(repo)
    tree.close()
    os.utime(tree.root.with_suffix(".json"), (1000, 1000))
    lease = Lease(tree.root)
    assert sweep.sweep(folder, runner, kept_max=9, age_max_s=10.0, now=2000.0) == 0
    lease.close()

    def drop(root: Path, record: records.Record | None, git: Git) -> None:
        with pytest.raises(Busy):
            Lease(root)
        real(root, record, git)

    real = trees.drop
    monkeypatch.setattr(trees, "drop", drop)
    assert sweep.sweep(folder, runner, kept_max=9, age_max_s=10.0, now=2000.0) == 1
    assert not tree.root.exists()


def test_a_tree_that_was_found_again_is_as_old_as_its_last_use(repo: Path, open_: Open) -> None:
    tree = open_(repo)
    tree.close()
    os.utime(tree.root.with_suffix(".json"), (1000, 1000))
    open_(repo).close()
    assert records.used_at(tree.root) > 1000


def test_a_tree_whose_folders_may_not_be_written_is_removed(repo: Path, folder: Path, runner: Git, open_: Open) -> None:
    tree = open_(repo)
    (tree.root / "mod" / "cache").mkdir(parents=True)
    (tree.root / "mod" / "cache" / "x").write_text("x")
    for path in (tree.root / "mod" / "cache", tree.root / "mod"):
        path.chmod(0o555)
    trees.drop(tree.root, records.read(tree.root), runner)
    assert not tree.root.exists()


def test_a_repository_that_is_gone_does_not_keep_the_tree(repo: Path, tmp_path: Path, runner: Git, open_: Open) -> None:
    tree = open_(repo)
    repo.rename(tmp_path / "moved")
    trees.drop(tree.root, records.read(tree.root), runner)
    assert not tree.root.exists()


def test_the_lock_of_a_workspace_is_one_file_whoever_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock = tmp_path / "x.lock", fcntl.flock
    first = Held(path)
    with pytest.raises(Busy):
        Held(path)

    def removed_first(fd: int, how: int) -> None:
        first.close(forget=True)  # between the other's open and its lock
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    second = Held(path)
    with pytest.raises(Busy):
        Held(path)
    second.close()


def test_the_repository_of_a_worktree_is_the_same(repo: Path, runner: Git, open_: Open) -> None:
    tree = open_(repo)
    assert Repository.find(runner, tree.root).common == Repository.find(runner, repo).common
