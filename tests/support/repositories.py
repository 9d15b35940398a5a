"""Git repositories for tests, made by the real git."""

import os
import subprocess
from pathlib import Path
from typing import Final

_ENV: Final = {
    "GIT_AUTHOR_NAME": "Test", "GIT_AUTHOR_EMAIL": "test@localhost", "GIT_COMMITTER_NAME": "Test",
    "GIT_COMMITTER_EMAIL": "test@localhost", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
}  # fmt: skip


def git(folder: Path, *args: str) -> str:
    """What git prints, without the last line break."""
    done = subprocess.run(
        ["git", *args], cwd=folder, env={**os.environ, **_ENV}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (args, done.stderr)
    return done.stdout.removesuffix("\n")


def repository(folder: Path, **files: str) -> Path:
    """A repository with one commit on `main` of these files, by name with `__` for `.`; at least `a.txt`."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    for name, text in ({"a__txt": "one\ntwo\nthree\n"} | files).items():
        (folder / name.replace("__", ".")).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


def state_of(folder: Path) -> tuple[str, ...]:
    """All that a user sees of his checkout: HEAD, branch, index, changes, stashes."""
    asked = (
        ["rev-parse", "HEAD"],
        ["symbolic-ref", "HEAD"],
        ["ls-files", "--stage"],
        ["status", "--porcelain"],
        ["stash", "list"],
    )
    return tuple(git(folder, *args) for args in asked)


def slow(repo: Path, seconds: int) -> Path:
    """Checkouts of the repository wait; the file is there when one has begun."""
    begun = repo.parent / "begun"
    git(repo, "config", "filter.slow.smudge", f"sh -c 'touch {begun}; sleep {seconds}; cat'")
    (repo / ".git" / "info").mkdir(exist_ok=True)
    (repo / ".git" / "info" / "attributes").write_text("a.txt filter=slow\n")
    return begun
