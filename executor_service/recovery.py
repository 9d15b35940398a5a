"""Stage 9, RESUME: who this executor is, and which dead predecessors left children behind.

Every start is an incarnation: a fresh id, and a file of that name in the state directory, locked for as long as the
process lives. A file whose lock can be had is that of a dead incarnation: whatever carries its marker is killed, and
the hello says that this executor succeeds it, so that its attempts need not wait for their grace. Two executors that
share a directory cannot harm each other: neither gets the other's lock.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from executor_service.descendants import marker, sweep
from executor_service.errors import StartError

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Locked:
    """A locked file of an incarnation."""

    path: Path
    fd: int
    executor_id: str

    @property
    def incarnation(self) -> str:
        return self.path.name

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        os.close(self.fd)


@dataclass(slots=True)
class Incarnation:
    """The identity of this start."""

    executor_id: str
    incarnation: str
    #: Folder of the attempts' own working directories.
    workspaces: Path
    _own: _Locked
    _dead: list[_Locked] = field(default_factory=list)
    #: Dead incarnations whose children are proven dead.
    succeeds: list[str] = field(default_factory=list)

    async def sweep_dead(self) -> None:
        """Kills what dead incarnations left running."""
        for dead in self._dead:
            if await sweep(marker(dead.incarnation)):
                self.succeeds.append(dead.incarnation)
            else:
                log.error(
                    "children of incarnation %s are still alive: its attempts wait for their grace", dead.incarnation
                )

    def forget_dead(self) -> None:
        """A session knows what this executor succeeds: their files can go."""
        for dead in self._dead:
            dead.remove()
        self._dead.clear()

    def release(self) -> None:
        """This incarnation ends in order: it leaves nothing behind."""
        self._own.remove()
        for dead in self._dead:
            os.close(dead.fd)
        self._dead.clear()


def begin(state_dir: str, executor_id: str) -> Incarnation:
    """Locks a fresh incarnation and the dead ones of the directory. Raises StartError when it cannot be used."""
    folder = Path(state_dir) / "incarnations"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        dead = list(_lock_dead(folder))
        chosen = executor_id or next((d.executor_id for d in dead if d.executor_id), "") or _fresh_executor_id()
        own = _create(folder, chosen)
    except OSError as error:
        raise StartError(
            f"the state directory {state_dir} cannot be used ({error}): give a writable one with BACKBURNER_STATE_DIR"
        ) from error
    workspaces = Path(state_dir) / "workspaces" / own.incarnation
    return Incarnation(chosen, own.incarnation, workspaces, own, dead)


def _lock_dead(folder: Path) -> Iterator[_Locked]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if _try_lock(fd) and _still_there(path, fd):
                yield _Locked(path, fd, _read_executor_id(fd))
            else:
                os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _still_there(path: Path, fd: int) -> bool:
    """False when its last holder removed the file between our open and our lock."""
    try:
        return path.stat().st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False


def _create(folder: Path, executor_id: str) -> _Locked:
    """A locked file that nobody ever sees unlocked: it gets its name when the lock is held."""
    incarnation = str(uuid.uuid4())
    unnamed = folder / f".{incarnation}"
    fd = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.write(fd, orjson.dumps({"executor_id": executor_id, "pid": os.getpid()}))
    path = folder / incarnation
    unnamed.rename(path)
    return _Locked(path, fd, executor_id)


def _read_executor_id(fd: int) -> str:
    try:
        return str(orjson.loads(os.pread(fd, 4096, 0)).get("executor_id", ""))
    except (orjson.JSONDecodeError, AttributeError):
        return ""


def _fresh_executor_id() -> str:
    return f"{socket.gethostname()}-{secrets.token_hex(4)}"


async def remove_workspaces(state_dir: str, incarnations: list[str]) -> None:
    """Removes working directories that dead incarnations left."""
    for name in incarnations:
        await asyncio.to_thread(shutil.rmtree, Path(state_dir) / "workspaces" / name, ignore_errors=True)
