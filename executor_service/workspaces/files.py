"""Copying and removing trees of files."""

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from executor_service.assignment import InvalidWork
from executor_service.markers import ON_LINUX
from executor_service.workspaces.git import Stop, Stopped

#: Most that is copied: beyond it a worktree is what is wanted, or the directory itself.
FILES_MAX: Final = 500_000
BYTES_MAX: Final = 20 << 30
_LOOK_SECONDS: Final = 0.1


def measure(source: Path, stop: Stop) -> tuple[int, int]:
    """Files and bytes of a tree, links not followed. Raises InvalidWork beyond the bounds, Stopped."""
    files = size = 0
    for entry in _walk(source):
        if stop.is_set():
            raise Stopped
        files += 1
        with contextlib.suppress(FileNotFoundError):  # somebody works in it
            size += entry.stat(follow_symlinks=False).st_size
        if files > FILES_MAX or size > BYTES_MAX:
            raise InvalidWork(
                f"{source} has more than {FILES_MAX} files or {BYTES_MAX >> 30} GiB, which is not copied: "
                "ask for a worktree, or for the directory itself"
            )
    return files, size


def copy(source: Path, target: Path, stop: Stop, minding: Callable[[], AbstractContextManager[None]]) -> None:
    """Copies a tree by `cp -a`, sharing blocks where the file system can; links stay links.

    Raises InvalidWork, Stopped, OSError.
    """
    measure(source, stop)
    how = ("-a", "--reflink=auto", "--") if ON_LINUX else ("-Rp",)
    argv = ["cp", *how, f"{source}/.", str(target)]
    target.mkdir(mode=0o700)
    with minding():
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        try:
            err = _said(child, stop)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    if child.returncode:
        raise OSError(f"{source} cannot be copied: {err[-500:].strip()}")


def _said(child: "subprocess.Popen[bytes]", stop: Stop) -> str:
    while True:
        try:
            return child.communicate(timeout=_LOOK_SECONDS)[1].decode(errors="replace")
        except subprocess.TimeoutExpired:
            if stop.is_set():
                raise Stopped from None


def remove_tree(tree: Path) -> None:
    """Removes a tree, folders included that may not be written. Raises OSError for what cannot be removed."""
    if tree.is_symlink() or not tree.is_dir():
        tree.unlink(missing_ok=True)
        return
    shutil.rmtree(tree, onerror=_open_up)


def _open_up(function: Callable[..., Any], path: str, found: Any) -> None:
    """A folder without the right to write or to search: given to us, it goes."""
    if isinstance(found[1], FileNotFoundError):
        return
    if not isinstance(found[1], PermissionError):
        raise found[1]
    for folder in (os.path.dirname(path), path):  # noqa: PTH120
        if os.path.isdir(folder) and not os.path.islink(folder):  # noqa: PTH112, PTH114
            os.chmod(folder, stat.S_IRWXU)  # noqa: PTH101
    if function in (os.unlink, os.rmdir):
        function(path)
    else:
        shutil.rmtree(path)


def _walk(folder: Path) -> Iterator["os.DirEntry[str]"]:
    waiting = [os.fspath(folder)]
    while waiting:
        try:
            entries = os.scandir(waiting.pop())
        except (PermissionError, FileNotFoundError):
            continue  # cp says which, if it matters
        with entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
