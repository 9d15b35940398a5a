"""Stage 9, RESUME: who this executor is, and which dead predecessors left children behind.

Every start is an incarnation: a fresh id, and a file of that name in the state directory, locked for as long as the
process lives. A file whose lock can be had is that of a dead incarnation: whatever carries its marker is killed, and
the hello says that this executor succeeds it, so that its attempts need not wait for their grace. Two executors that
share a directory cannot harm each other: neither gets the other's lock. Nor can a copy of a directory: a file says
which one it is and on which boot of the machine it was locked; the lock of a copy proves nothing, so that nobody is
killed and nothing is claimed for it.
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
import psutil

from executor_service import cgroups
from executor_service.descendants import sweep
from executor_service.errors import StartError
from executor_service.markers import marker
from executor_service.recording import Lane
from executor_service.resend import ASIDE, Resend

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Locked:
    """A locked file of an incarnation."""

    path: Path
    fd: int
    #: Name of its executor; empty for a copy, whose original may use it.
    executor_id: str
    #: False for a copy, and for a file of an earlier boot: its lock says nothing about the incarnation.
    proves_death: bool

    @property
    def incarnation(self) -> str:
        return self.path.name

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        os.close(self.fd)

    def leave(self) -> None:
        """Unlocks it for a successor to find."""
        os.close(self.fd)


@dataclass(slots=True)
class Incarnation:
    """The identity of this start."""

    executor_id: str
    incarnation: str
    #: Folder of the attempts' own working directories.
    workspaces: Path
    #: Folder of results that wait for their commit.
    spool: Path
    _own: _Locked
    _dead: list[_Locked] = field(default_factory=list)
    _swept: list[str] = field(default_factory=list)
    _unsent: set[str] = field(default_factory=set)
    #: True when a successor has to see to what this incarnation leaves.
    unfinished: bool = False

    @property
    def succeeds(self) -> list[str]:
        """Dead incarnations whose children are proven dead, and whose results are in the journal: the rest is lost."""
        return [name for name in self._swept if name not in self._unsent]

    async def resend_results(self, lane: Lane) -> None:
        """Takes to the journal what dead incarnations had finished."""
        resend = Resend(lane, self.spool.parent)
        for name in await asyncio.to_thread(self._left_spools):
            if not await resend.send(name):
                self._unsent.add(name)

    def _left_spools(self) -> list[str]:
        """Spools of incarnations that we have locked, or whose file is gone."""
        if not self.spool.parent.is_dir():
            return []
        locked = {dead.incarnation for dead in self._dead}
        names = (path.name for path in sorted(self.spool.parent.iterdir()) if path.name != ASIDE)
        return [name for name in names if name in locked or not (self._own.path.parent / name).exists()]

    async def sweep_dead(self) -> None:
        """Kills what dead incarnations left running."""
        for dead in self._dead:
            if not dead.proves_death:
                log.warning("the files of incarnation %s are a copy, or of an earlier boot", dead.incarnation)
            elif await self._kill_children_of(dead.incarnation):
                self._swept.append(dead.incarnation)
            else:
                log.error(
                    "children of incarnation %s are still alive: its attempts wait for their grace", dead.incarnation
                )

    async def _kill_children_of(self, incarnation: str) -> bool:
        """Kills what an incarnation left running; True: nobody is found any more."""
        return all([await cgroups.sweep_dead(incarnation), await sweep(marker(incarnation))])

    def forget_dead(self) -> None:
        """A session knows what this executor succeeds: their files can go. Who has more to see to is left for later."""
        for dead in self._dead:
            lives = dead.proves_death and dead.incarnation not in self._swept
            if lives or dead.incarnation in self._unsent:
                dead.leave()
            else:
                dead.remove()
        self._dead.clear()

    def release(self) -> None:
        """This incarnation ends in order: it leaves nothing behind, unless somebody has to see to it."""
        if self.unfinished or self._leaves_results():
            self._own.leave()
        else:
            self._own.remove()
        for dead in self._dead:
            dead.leave()
        self._dead.clear()

    def _leaves_results(self) -> bool:
        with contextlib.suppress(OSError):
            self.spool.rmdir()
        return self.spool.exists()


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
    spool = Path(state_dir) / "spool" / own.incarnation
    return Incarnation(chosen, own.incarnation, workspaces, spool, own, dead)


def _lock_dead(folder: Path) -> Iterator[_Locked]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if _try_lock(fd) and _still_there(path, fd):
                yield _read(path, fd)
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
    os.write(fd, orjson.dumps({"executor_id": executor_id, "file": _file(fd), "boot": _boot(), "pid": os.getpid()}))
    path = folder / incarnation
    unnamed.rename(path)
    return _Locked(path, fd, executor_id, proves_death=True)


def _read(path: Path, fd: int) -> _Locked:
    try:
        said = dict(orjson.loads(os.pread(fd, 4096, 0)))
    except (orjson.JSONDecodeError, TypeError, ValueError):
        said = {}
    original = said.get("file") == _file(fd)
    executor_id = str(said.get("executor_id", "")) if original else ""
    return _Locked(path, fd, executor_id, proves_death=original and said.get("boot") == _boot())


def _file(fd: int) -> list[int]:
    """Which file it is. A copy is another one."""
    status = os.fstat(fd)
    return [status.st_dev, status.st_ino]


def _boot() -> str:
    """Which boot of which machine this is: of an earlier one no process is alive here."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _fresh_executor_id() -> str:
    return f"{socket.gethostname()}-{secrets.token_hex(4)}"


async def remove_workspaces(state_dir: str, incarnations: list[str]) -> None:
    """Removes working directories that dead incarnations left."""
    for name in incarnations:
        await asyncio.to_thread(shutil.rmtree, Path(state_dir) / "workspaces" / name, ignore_errors=True)
