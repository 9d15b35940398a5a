"""The embedded server: three verbs, `start`, `stop` and `kill`.

Who starts a server owns it: it lives until the owner stops it or is gone, however the owner goes (`guardian.py`).
The calls block (the first start on a directory takes about a second): from asyncio use `asyncio.to_thread`.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import psutil

from scheduler_service.postgres.account import borrowed_account
from scheduler_service.postgres.binaries import find_binaries
from scheduler_service.postgres.data_directory import DataDirectory
from scheduler_service.postgres.errors import EmbeddedPostgresError
from scheduler_service.postgres.launcher import Launched, Launcher, close_pipes
from scheduler_service.postgres.options import ServerOptions

STOP_SECONDS: Final = 30.0

StopMode = Literal["fast", "immediate"]
_STOP_SIGNALS: Final[Mapping[StopMode, signal.Signals]] = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class EmbeddedPostgres:
    """A Postgres server that belongs to this process."""

    def __init__(self, options: ServerOptions | None = None) -> None:
        self._options = options or ServerOptions()
        self._running: _Running | None = None

    def start(self, data_dir: Path) -> str:
        """Start the server on `data_dir`, which is made on first use, and return its connection string.

        Raises:
            BinariesMissing: the extra `embedded` is not installed.
            DataDirectoryInUse: another process runs a server there.
            StartFailed: a Postgres program said why not.
        """
        if self._running is not None:
            raise EmbeddedPostgresError("this server is already started: stop it first")
        self._running = _start(DataDirectory(data_dir), self._options)
        return self.dsn

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server and wait until it is gone; without a running server, do nothing.

        `fast` rolls open transactions back and writes a checkpoint; `immediate` drops everything, and the next start
        recovers from the log.
        """
        running, self._running = self._running, None
        if running is not None:
            running.stop(_STOP_SIGNALS[mode])

    def kill(self) -> None:
        """Kill every process of the server with -9 and wait until they are gone."""
        running, self._running = self._running, None
        if running is not None:
            running.kill()

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._need_running().launched.pid

    @property
    def dsn(self) -> str:
        """The connection string of the Unix socket."""
        return self._options.socket_dsn(self._need_running().launched.socket_dir)

    @property
    def tcp_dsn(self) -> str:
        """The connection string for clients that cannot use a Unix socket; needs the option `tcp_port`."""
        if self._options.tcp_port is None:
            raise EmbeddedPostgresError("the server does not listen on TCP: start it with a port")
        return self._options.tcp_dsn(self._need_running().directory.password.read_text())

    def _need_running(self) -> "_Running":
        if self._running is None:
            raise EmbeddedPostgresError("the server is not started")
        return self._running


@dataclass(frozen=True)
class _Running:
    """One life of the server."""

    directory: DataDirectory
    launched: Launched

    def stop(self, number: signal.Signals) -> None:
        if self.launched.guardian.poll() is None:  # else the number may be another process by now
            with suppress(ProcessLookupError):
                os.kill(self.launched.pid, number)
        try:
            self.launched.guardian.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._clean_up()

    def kill(self) -> None:
        with suppress(psutil.NoSuchProcess):
            postmaster = psutil.Process(self.launched.pid)
            for process in (postmaster, *postmaster.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.launched.guardian.wait(STOP_SECONDS)
        self.directory.wait_until_unused(STOP_SECONDS)
        self._clean_up()

    def _clean_up(self) -> None:
        close_pipes(self.launched.guardian)
        if self.launched.socket_dir != self.directory.socket:
            shutil.rmtree(self.launched.socket_dir, ignore_errors=True)


def _start(directory: DataDirectory, options: ServerOptions) -> _Running:
    binaries = find_binaries()
    lock = directory.lock()
    try:
        launcher = Launcher(directory, binaries, borrowed_account(directory.cluster), lock)
        launcher.ensure_cluster()
        return _Running(directory, launcher.run_server(options))
    finally:
        os.close(lock)  # from here on the server's processes hold it
