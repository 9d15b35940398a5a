"""A git repository that workspaces come from: found, locked, given worktrees and relieved of them.

What changes it goes one at a time, whoever asks: under flock on a file in its git directory, which every git started
under it holds too. So an executor that is killed leaves no lock behind, and its successor waits for the git that still
runs.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from executor_service.assignment import InvalidWork
from executor_service.workspaces import files, records
from executor_service.workspaces.git import GIT_SECONDS, Git, GitFailed, Stopped

_LOCK_FILE: Final = "backburner.lock"
_LOCK_LOOK_SECONDS: Final = 0.02
#: Commits of attempts that did not succeed are kept under these names, one for each effect. Not below refs/backburner:
#: what is there goes before a branch backburner/... wherever that is named.
KEPT_REFS: Final = "refs/backburner-attempts"


class Repository:
    """One repository."""

    def __init__(self, git: Git, common: Path, prefix: str) -> None:
        self.git = git
        self.common = common
        #: Where in the working tree the folder is that was asked for; empty: its root.
        self.prefix = prefix

    @classmethod
    def find(cls, git: Git, source: Path) -> "Repository":
        """The repository of a folder. Raises InvalidWork when there is none."""
        if not source.is_dir():
            raise InvalidWork(f"{source} is no directory on this executor")
        try:
            said = git.at(source).line("rev-parse", "--path-format=absolute", "--git-common-dir", "--show-prefix")
        except GitFailed as error:
            if "not a git repository" in str(error):
                raise InvalidWork(
                    f"{source} is no git repository: run `git init` there and commit, or ask for a copy "
                    "(bb.copy_of) or for the directory itself (bb.exclusive)"
                ) from error
            raise InvalidWork(str(error)) from error
        common, _, prefix = said.partition("\n")
        return cls(git.at(source), Path(common), prefix.rstrip("/"))

    def commit(self, name: str) -> str:
        """The commit of a branch, tag or id; empty: of HEAD. Raises InvalidWork when there is none."""
        if name.startswith("-"):
            raise InvalidWork(f"base {name!r} is no name of a commit")
        said = self.git.run("rev-parse", "--verify", "--quiet", f"{name or 'HEAD'}^{{commit}}", fine=(0, 1, 128))
        if said.status == 0:
            return said.text
        if name:
            raise InvalidWork(f"base {name!r} is no commit of {self.git.folder}: fetch it, or give another base")
        raise InvalidWork(f"{self.git.folder} has no commit yet: make a first one")

    def tip(self, branch: str) -> str:
        """Commit of a branch; empty: it does not exist."""
        said = self.git.run("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}^{{commit}}", fine=(0, 1, 128))
        return said.text if said.status == 0 else ""

    @contextlib.contextmanager
    def locked(self) -> Iterator["Repository"]:
        """The repository while nobody else changes it. Raises InvalidWork, GitFailed after a long wait, Stopped."""
        path = self.common / _LOCK_FILE
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise InvalidWork(f"repository {self.common} cannot be written: {error.strerror}") from error
        try:
            self._wait(fd)
            yield Repository(replace(self.git, lock_fd=fd), self.common, self.prefix)
        finally:
            os.close(fd)

    def _wait(self, fd: int) -> None:
        deadline = time.monotonic() + GIT_SECONDS
        while True:
            try:
                return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    message = f"repository {self.common} was locked by others for {GIT_SECONDS:g} s: {_LOCK_FILE}"
                    raise GitFailed(message) from None
            if self.git.stop.wait(_LOCK_LOOK_SECONDS):
                raise Stopped

    def add(self, tree: Path, branch: str, base: str) -> None:
        """A worktree on a branch of its own. What was left of one that was cut off in the making goes first."""
        self.forget(tree)
        lock = self.common / "refs" / "heads" / f"{branch}.lock"
        lock.unlink(missing_ok=True)  # of a git that was killed: nobody else makes this branch, and we hold the lock
        self.git.run("worktree", "add", "--quiet", "--no-track", "-B", branch, "--", str(tree), base)

    def forget(self, tree: Path) -> None:
        """Removes what git knows of a worktree, and its directory. Raises OSError."""
        admins = self.common / "worktrees"
        for admin in admins.glob(f"{tree.name}*") if admins.is_dir() else ():
            if _leads_to(admin, tree):
                files.remove_tree(admin)
        files.remove_tree(tree)

    def worktree_of(self, branch: str) -> Path | None:
        """The worktree, the first one included, that has the branch checked out."""
        for entry in self.git.line("worktree", "list", "--porcelain").split("\n\n"):
            path, *rest = entry.splitlines()
            if f"branch refs/heads/{branch}" in rest:
                return Path(path.removeprefix("worktree "))
        return None

    def set_ref(self, ref: str, commit: str) -> None:
        """Points a name of ours at a commit; empty: removes it."""
        if commit:
            self.git.run("update-ref", "--no-deref", ref, commit)
        else:
            self.git.run("update-ref", "--no-deref", "-d", ref)


def _leads_to(admin: Path, tree: Path) -> bool:
    """Whether git's notes are of this worktree. A git that was killed may have left them without its path."""
    try:
        return Path((admin / "gitdir").read_text().strip()) == tree / ".git"
    except FileNotFoundError:
        return True


def existing(tree: Path) -> records.Record | None:
    """The record of a workspace that is whole."""
    record = records.read(tree)
    return record if record is not None and record.made and tree.is_dir() else None
