"""Function effects of `backburner demo agents`: git in a clone, and in the end one look back at the repository itself.

Each may be repeated: it finds what an attempt before it has done.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import backburner as bb

__all__ = ["Clone", "Commit", "checkout", "clone", "commit", "publish", "pulse"]

_NOBODY: Final = ("-c", "user.name=Backburner", "-c", "user.email=backburner@localhost", "-c", "commit.gpgsign=false")
# No hook of anybody runs, and git asks nothing.
_QUIET: Final = ("-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false")


@dataclass(frozen=True)
class Clone:
    """A clone: where it is, of what, and the commit that its source had checked out."""

    path: str
    source: str
    commit: str


@dataclass(frozen=True)
class Commit:
    """A commit, and how much it differs from where the work began."""

    id: str
    files: int
    insertions: int
    deletions: int


@bb.function(name="demo.agents.clone")
def clone(repository: str, place: str) -> Clone:
    """A clone that shares the objects of the repository, in a moment however large that is."""
    folder = Path(place) / "clone"
    if not folder.exists():
        half = Path(place) / f"clone-{os.getpid()}"
        half.parent.mkdir(parents=True, exist_ok=True)
        _git(half.parent, "clone", "--quiet", "--shared", "--no-checkout", repository, str(half))
        half.rename(folder)
    head = _git(Path(repository), "rev-parse", "--verify", "HEAD^{commit}")
    return Clone(str(folder), repository, head)


@bb.function(name="demo.agents.checkout")
def checkout(path: str, commit: str) -> str:
    """A clean checkout of a commit beside the clone, for tests; always the same folder, so that caches are of use."""
    folder = Path(path).with_name("tests")
    if folder.exists():
        _git(folder, "checkout", "--quiet", "--force", "--detach", commit)
        _git(folder, "clean", "-d", "--force", "--quiet")
    else:
        _git(Path(path), "worktree", "add", "--quiet", "--force", "--detach", str(folder), commit)
    return str(folder)


@bb.function(name="demo.agents.commit")
def commit(path: str, message: str, base: str) -> Commit:
    """Commit what is there; what is committed already is given as it is."""
    folder = Path(path)
    _git(folder, "add", "--all")
    if _git(folder, "status", "--porcelain"):
        _git(folder, *_NOBODY, "commit", "--quiet", "--no-verify", "-m", message)
    rows = [line.split("\t") for line in _git(folder, "diff", "--numstat", base, "HEAD").splitlines()]
    added, removed = (sum(int(row[column]) for row in rows if row[column] != "-") for column in (0, 1))
    return Commit(_git(folder, "rev-parse", "HEAD"), len(rows), added, removed)


@bb.function(name="demo.agents.publish")
def publish(path: str, repository: str, branches: dict[str, str]) -> list[str]:
    """Fetch commits of the clone into branches of the repository; nothing else of it changes."""
    for name, commit in branches.items():  # only what has a name can be fetched
        _git(Path(path), "update-ref", f"refs/heads/publish/{name}", commit)
    refs = [f"refs/heads/publish/{name}:refs/heads/{name}" for name in branches]
    _git(Path(repository), "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", path, *refs)
    return sorted(branches)


@bb.function(name="demo.agents.pulse")
def pulse() -> float:
    """Load of the machine: something short, to see that the foreground is alive."""
    return round(os.getloadavg()[0], 2)


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *_QUIET, *arguments], cwd=folder, capture_output=True, text=True, errors="replace", check=False,
        stdin=subprocess.DEVNULL, env=_environment(),
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"git {' '.join(arguments[:3])}: {done.stderr.strip()[-500:]}")
    return done.stdout.strip()


def _environment() -> dict[str, str]:
    """Without what a git that calls us has set: its repository is not the one that is meant."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
