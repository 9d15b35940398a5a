"""Leases of directories: who works in a directory itself has it to himself, its parents and its children included.

A lease is flock on the directory itself, exclusive, and shared on each directory above it. So it holds among all
executors of a host, whatever path, link or mount leads there, and ends with the process that holds it, however that
ends.
"""

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

from executor_service.assignment import InvalidWork

_NO_LOCKS: Final = (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class Busy(Exception):
    """Another effect has the directory, one above it, or one in it; the message says which."""


class Lease:
    """The lease of one directory, `by` whom. Raises Busy; InvalidWork when it cannot be had at all."""

    #: Of this process: who has which directory. It names them; the locks decide.
    _holders: ClassVar[dict["Lease", tuple[Path, str]]] = {}

    def __init__(self, folder: Path, by: str = "") -> None:
        self._fds: list[int] = []
        real = folder.resolve()
        try:
            for above in reversed(real.parents):
                self._lock(above, fcntl.LOCK_SH, real)
            self._lock(real, fcntl.LOCK_EX, real)
        except BaseException:
            self.close()
            raise
        self._holders[self] = real, by

    def close(self) -> None:
        """Gives it back."""
        self._holders.pop(self, None)
        while self._fds:
            os.close(self._fds.pop())

    def _lock(self, folder: Path, how: int, wanted: Path) -> None:
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if folder != wanted and error.errno in (errno.EACCES, errno.EPERM):
                return  # whoever cannot read it cannot lease it either
            raise InvalidWork(f"{folder} cannot be opened for a lease: {error.strerror}") from error
        self._fds.append(fd)
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(_busy(folder, wanted, list(self._holders.values()))) from error
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise InvalidWork(
                    f"{folder} cannot be leased, its file system has no such locks ({error.strerror}): "
                    "ask for a worktree or a copy"
                ) from error
            raise


class Held:
    """The lock of one effect's workspace, in making, in use or in removal; `path` is the lock's file. Raises Busy."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        self._fd = -1
        while self._fd < 0:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_file(path, fd):  # else its last holder removed it between our open and our lock
                    self._fd = fd
            except BlockingIOError as error:
                raise Busy(f"an attempt of the same effect still works in {path.with_suffix('')}") from error
            finally:
                if self._fd < 0:
                    os.close(fd)

    def close(self, *, forget: bool = False) -> None:
        """Gives it back; `forget`: there is nothing left to lock."""
        if self._fd < 0:
            return
        if forget:
            self._path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1


def is_file(path: Path, fd: int) -> bool:
    """True when what is open still has this name: its last holder may have removed it before we had the lock."""
    try:
        return path.stat().st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False


def _busy(folder: Path, wanted: Path, holders: Sequence[tuple[Path, str]]) -> str:
    """Who works where, so that this folder cannot be locked; of other executors of the host only that they do."""
    for place, by in holders:
        if by and place == folder:
            return f"{by} works in {place}" + ("" if place == wanted else f", which {wanted} is in")
        if by and folder == wanted and place.is_relative_to(wanted):
            return f"{by} works in {place}, which is in {wanted}"
    if folder == wanted:
        return f"another effect works in {wanted}, or in a directory in it, by another executor of this host"
    return f"another effect works in {folder}, which {wanted} is in, by another executor of this host"
