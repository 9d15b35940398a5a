"""One data directory: where its parts are, and who may use it.

    <data_dir>/cluster/       PGDATA
    <data_dir>/socket/        the Unix socket, unless the path is too long for one
    <data_dir>/postgres.log   what the server said
    <data_dir>/password       the superuser's password for TCP clients
    <data_dir>/lock           held while a server runs here; names the process that started it

The lock is inherited by every process of the server. So it is free exactly when all of them are gone, also after the
owner, the guardian or the postmaster was killed.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import Final

import psutil

from scheduler_service.postgres.errors import DataDirectoryInUse, EmbeddedPostgresError

LOG_BYTES_MAX: Final = 8 * 1024 * 1024
ORPHAN_PATIENCE_SECONDS: Final = 45.0  # longer than an ordered shutdown by the guardian of a dead owner takes
POLL_SECONDS: Final = 0.01


class DataDirectory:
    """Paths in a data directory, and its lock."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.cluster = self.root / "cluster"
        self.unfinished_cluster = self.root / "cluster.new"
        self.socket = self.root / "socket"
        self.log = self.root / "postgres.log"
        self.password = self.root / "password"
        self._lock_file = self.root / "lock"

    def lock(self) -> int:
        """Take the directory for this process; return the descriptor that holds it.

        Raises:
            DataDirectoryInUse: a server of another process runs here.
            EmbeddedPostgresError: the directory belongs to another user.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        except PermissionError as error:
            raise EmbeddedPostgresError(
                f"no right to write in {self.root}: choose another with --data-dir, or run as its owner"
            ) from error
        try:
            self._wait_for_lock(descriptor)
            self._forget_dead_postmaster()
        except BaseException:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    def wait_until_unused(self, seconds: float) -> None:
        """Wait until no process of a server is left here."""
        deadline = time.monotonic() + seconds
        with self._lock_file.open() as lock:
            while not _try_lock(lock.fileno()):
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(f"killed processes still use {self.root} after {seconds:.0f} s")
                time.sleep(POLL_SECONDS)

    def _wait_for_lock(self, descriptor: int) -> None:
        """Give a server whose owner died the time to shut down; fail at once when the owner lives."""
        deadline = time.monotonic() + ORPHAN_PATIENCE_SECONDS
        while not _try_lock(descriptor):
            owner = _first_number(os.pread(descriptor, 32, 0).decode())
            if psutil.pid_exists(owner) or time.monotonic() > deadline:
                raise DataDirectoryInUse(self.root, owner)
            time.sleep(POLL_SECONDS)

    def _forget_dead_postmaster(self) -> None:
        """Remove what a killed server left behind.

        Postgres does so itself unless its old process id is in use again, which is common in containers.
        """
        pid = self.postmaster_pid()
        if pid and _is_server_of(pid, self.cluster):
            raise DataDirectoryInUse(self.root, pid)
        self.postmaster_file.unlink(missing_ok=True)

    @property
    def postmaster_file(self) -> Path:
        """Where Postgres writes its process id and whether it is ready."""
        return self.cluster / "postmaster.pid"

    def postmaster_pid(self) -> int:
        """Return the process id that the cluster names, or 0."""
        try:
            return _first_number(self.postmaster_file.read_text())
        except (FileNotFoundError, PermissionError):
            return 0

    def is_ready(self, pid: int) -> bool:
        """Tell whether the server with this process id accepts connections (what `pg_ctl --wait` looks at)."""
        try:
            lines = self.postmaster_file.read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    def open_log(self) -> int:
        """Open the log to append; an old one that grew too long is set aside, replacing the one before."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
            self.log.replace(self.log.with_suffix(".log.1"))
        return os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def log_size(self) -> int:
        """Return how long the log is now, to read later what was added."""
        return self.log.stat().st_size if self.log.exists() else 0

    def log_tail(self, since: int) -> str:
        """Return the last lines that were logged after this offset."""
        with self.log.open("rb") as log:
            log.seek(since)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-20:])


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _first_number(text: str) -> int:
    first = text.split(maxsplit=1)[:1]
    return int(first[0]) if first and first[0].isdecimal() else 0


def _is_server_of(pid: int, cluster: Path) -> bool:
    try:
        process = psutil.Process(pid)
        return process.name() == "postgres" and Path(process.cwd()).resolve() == cluster.resolve()
    except psutil.Error:
        return False
