"""What agents may not leave behind when all has ended: locks, leases, worktrees of nobody."""

import asyncio
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support.repositories import git

_SECONDS: Final = 30.0


async def left(folder: Path) -> list[str]:
    """What is left that should not be; removals follow what they are caused by, so they have a while."""
    deadline = asyncio.get_running_loop().time() + _SECONDS
    while True:
        found = await asyncio.to_thread(lambda: list(_left(folder)))
        if not found or asyncio.get_running_loop().time() > deadline:
            return found
        await asyncio.sleep(0.3)


def _left(folder: Path) -> Iterator[str]:
    repo = folder / "repo"
    for lock in (*folder.glob("executor-*/worktrees/*.lock"), repo / ".git" / "backburner.lock"):
        if _is_held(lock):
            yield f"{lock} is held by somebody"
    for directory in (folder / "exclusive").iterdir():
        if _is_held(directory):
            yield f"the lease of {directory} is held by somebody"
    for lock in (repo / ".git").rglob("*.lock"):
        if lock.name != "backburner.lock":
            yield f"git left {lock}"
    if changed := git(repo, "status", "--porcelain"):
        yield f"the user's checkout has changed: {changed}"


def _is_held(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
