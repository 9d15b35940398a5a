"""Where a CLI keeps its logins, sessions and temporary files.

`user`: HOME is the executor's own, with the logins and sessions that its user has. `tenant`: each namespace has a HOME
of its own in the executor's state directory, kept from attempt to attempt, so that sessions can be gone on with and
nobody finds those of another. The scratch folder is the attempt's: TMPDIR and configuration, removed afterwards, or by
the executor's next start when that one was killed.
"""

import asyncio
import contextlib
import fcntl
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from executor_service.workspaces.files import remove_tree
from executor_service.workspaces.leases import is_file

log = logging.getLogger(__name__)

HomeKind = Literal["user", "tenant"]

#: How long a working directory that nobody asked for is kept after its last use.
WORK_DAYS_MAX: Final = 7
_FORGET_MAX: Final = 4
#: What has lost its name, and is being removed.
_GONE: Final = ".gone-"
_LOCK_TRIES: Final = 20
_LOCK_PAUSE_SECONDS: Final = 0.001


class Homes:
    """HOME and scratch folders of a harness."""

    def __init__(self, kind: HomeKind, store: Path, incarnation: str) -> None:
        self._kind = kind
        self._store = store
        self._incarnation = incarnation

    def of(self, namespace: str) -> Path:
        """HOME of a namespace, made when needed. Its files belong to nobody else."""
        if self._kind == "user":
            return Path(os.environ.get("HOME") or Path.home())
        folder = tenant_home(self._store, namespace)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)  # a CLI that was asked for its version may have made it, for everybody
        return folder

    @contextlib.contextmanager
    def workspace(self, cwd: str, effect_id: str) -> Iterator[Path]:
        """The directory asked for, else one of the effect, kept so that a retry or another effect can go on in it.

        While it is in use nobody removes it, however long that takes.
        """
        work = self._store / "work"
        if cwd and (cwd == str(work) or not Path(cwd).is_relative_to(work)):
            yield Path(cwd)
            return
        folder = work / (Path(cwd).relative_to(work).parts[0] if cwd else effect_id)  # of another effect: it goes on
        with _in_use(folder, make=not cwd):
            yield Path(cwd) if cwd else folder

    def forget_old(self) -> None:
        """Removes what nobody has worked in for long, a few at a time. Blocking."""
        before = time.time() - WORK_DAYS_MAX * 86400
        old = [path for path in _oldest(self._store / "work") if _used_at(path) < before]
        for path in old[:_FORGET_MAX]:
            _forget(path, before)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for one attempt. Its name is short: sockets in it have a longest path."""
        folder = Path(tempfile.mkdtemp(prefix=_scratch(self._incarnation)))
        try:
            yield folder
        finally:
            asyncio.get_running_loop().run_in_executor(None, _remove, folder)


def tenant_home(store: Path, namespace: str) -> Path:
    """HOME of a namespace below the folder of a harness. It need not be there."""
    return store / "homes" / (namespace or "default")


def remove_scratch(incarnations: Sequence[str]) -> None:
    """Removes the scratch folders that dead incarnations left. Blocking."""
    for incarnation in incarnations:
        for folder in Path(tempfile.gettempdir()).glob(f"{_scratch(incarnation)}*"):
            _remove(folder)


def _remove(folder: Path) -> None:
    """Removes a folder, whatever a CLI has made read-only in it; what stays is said, and stops nobody."""
    try:
        remove_tree(folder)
    except OSError as error:
        log.warning("%s cannot be removed: %s", folder, error)


def _scratch(incarnation: str) -> str:
    return f"bb-{incarnation.replace('-', '')[:12]}-"


@contextlib.contextmanager
def _in_use(folder: Path, *, make: bool) -> Iterator[None]:
    """Shares a lock on the folder with all who work in it: whoever removes it wants it alone."""
    fd = _shared(folder, make=make)
    try:
        yield
        _used_now(folder)
    finally:
        if fd >= 0:
            os.close(fd)


def _shared(folder: Path, *, make: bool) -> int:
    """The folder, locked for all who work in it; -1 where it cannot be: an effect has its lease, or it is not there."""
    for _ in range(_LOCK_TRIES):
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        _used_now(folder)
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError:  # the child, which is to work there, says it
            return -1
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if is_file(folder, fd):  # else it lost its name between our open and our lock
                return fd
        except BlockingIOError:  # whoever removes it has it for a moment, a lease for longer
            time.sleep(_LOCK_PAUSE_SECONDS)
        except OSError:  # a file system without such locks: there nobody removes anything
            return fd
        os.close(fd)
    return -1


def _forget(folder: Path, before: float) -> None:
    """Removes a folder that nobody uses. It loses its name under the lock, so that nobody begins in half of it."""
    gone = folder if folder.name.startswith(_GONE) else folder.with_name(f"{_GONE}{folder.name}")
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _used_at(folder) >= before:
                return
            folder.rename(gone)
        finally:
            os.close(fd)
    except (BlockingIOError, FileNotFoundError):
        return  # somebody works in it, or has removed it
    except OSError as error:
        log.warning("%s cannot be removed: %s", folder, error)
        return
    _remove(gone)


def _used_now(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.utime(folder)


def _used_at(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # another start removed it just now
        return math.inf


def _oldest(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
