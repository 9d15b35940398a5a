"""Makes the cluster and starts the server, each program under a guardian and in the right account."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scheduler_service.postgres import guardian
from scheduler_service.postgres.account import Account
from scheduler_service.postgres.binaries import MAJOR, Binaries
from scheduler_service.postgres.data_directory import POLL_SECONDS, DataDirectory
from scheduler_service.postgres.errors import EmbeddedPostgresError, StartFailed
from scheduler_service.postgres.options import DATABASE, SUPERUSER, ServerOptions

SOCKET_PATH_BYTES_MAX: Final = 100  # systems stop at 104 or 108, with the socket's own name in it
START_SECONDS: Final = 60.0
NOTHING: Final = Path(os.devnull)


@dataclass(frozen=True)
class Launched:
    """A server that accepts connections."""

    guardian: subprocess.Popen[bytes]
    pid: int
    socket_dir: Path


@dataclass(frozen=True)
class Launcher:
    """Runs the Postgres programs on one data directory, whose lock the caller holds."""

    directory: DataDirectory
    binaries: Binaries
    account: Account | None
    lock: int

    def ensure_cluster(self) -> None:
        """Make the cluster unless there is one.

        It is made aside and renamed when complete, so that a half-made one of a killed start is never used.
        """
        if not self.directory.cluster.exists():
            self._make_cluster()
        elif (found := (self.directory.cluster / "PG_VERSION").read_text().strip()) != str(MAJOR):
            raise EmbeddedPostgresError(
                f"{self.directory.root} was made by Postgres {found} and this is Postgres {MAJOR}: "
                "choose another with --data-dir, or move the data with pg_dump"
            )

    def _make_cluster(self) -> None:
        unfinished = self.directory.unfinished_cluster
        shutil.rmtree(unfinished, ignore_errors=True)
        self._make_private_folder(unfinished)
        # The builtin locale sorts alike on every system, whatever the C library has installed.
        locale = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
        access = (f"--username={SUPERUSER}", "--auth-local=trust", "--auth-host=scram-sha-256")
        self._run_to_end([self.binaries.initdb, "-D", unfinished, "--no-instructions", *locale, *access])
        self._set_up(unfinished)
        unfinished.rename(self.directory.cluster)

    def _set_up(self, cluster: Path) -> None:
        """Make our database and the password for TCP in single-user mode, before anybody can connect."""
        password = secrets.token_urlsafe(24)
        _write_private(self.directory.password, password)
        script = self.directory.root / "setup.sql"
        _write_private(script, f"CREATE DATABASE {DATABASE};\nALTER USER {SUPERUSER} PASSWORD '{password}';\n")
        try:
            single_user = ("--single", "-D", str(cluster), "-c", "exit_on_error=on", "postgres")
            self._run_to_end([self.binaries.postgres, *single_user], stdin=script)
        finally:
            script.unlink()

    def run_server(self, options: ServerOptions) -> Launched:
        """Start the server and wait until it accepts connections."""
        socket_dir = self._make_socket_dir()
        log_start = self.directory.log_size()
        settings = options.arguments(socket_dir)
        process = self._spawn([self.binaries.postgres, "-D", self.directory.cluster, *settings], NOTHING)
        try:
            pid = _told_pid(process)
            self._wait_until_ready(process, pid, log_start)
        except BaseException:
            close_pipes(process)  # the guardian takes this for the end of its owner
            process.wait()
            raise
        return Launched(process, pid, socket_dir)

    def _wait_until_ready(self, process: subprocess.Popen[bytes], pid: int, log_start: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.directory.is_ready(pid):
            if process.poll() is not None:
                raise self._failure(f"Postgres ended with code {process.returncode} at its start", log_start)
            if time.monotonic() > deadline:
                raise self._failure(f"Postgres was not ready within {START_SECONDS:.0f} s", log_start)
            time.sleep(POLL_SECONDS)

    def _run_to_end(self, argv: list[Path | str], stdin: Path = NOTHING) -> None:
        log_start = self.directory.log_size()
        process = self._spawn(argv, stdin)
        try:
            process.wait(START_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise self._failure(f"{Path(argv[0]).name} took over {START_SECONDS:.0f} s", log_start) from error
        finally:
            close_pipes(process)
            process.wait()
        if process.returncode != 0:
            raise self._failure(f"{Path(argv[0]).name} ended with code {process.returncode}", log_start)

    def _spawn(self, argv: list[Path | str], stdin: Path) -> subprocess.Popen[bytes]:
        order: guardian.Order = {
            "argv": [str(part) for part in argv],
            "account": None if self.account is None else (self.account.uid, self.account.gid),
            "pass_permissions": not self._account_reaches_files(),
            "pass_fds": [self.lock],
            "stdin": str(stdin),
        }
        log = self.directory.open_log()
        try:
            return subprocess.Popen(
                # -I and -S: nothing of the user's environment and no site packages, so it starts in no time
                [sys.executable, "-I", "-S", guardian.__file__, json.dumps(order)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=[self.lock],
                start_new_session=True,
                cwd="/",
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            )
        finally:
            os.close(log)

    def _account_reaches_files(self) -> bool:
        if self.account is None:
            return True
        return self.account.reaches(self.binaries.postgres) and self.account.reaches(self.directory.cluster)

    def _make_socket_dir(self) -> Path:
        folder = self.directory.socket
        if len(os.fsencode(folder / ".s.PGSQL.65535.lock")) > SOCKET_PATH_BYTES_MAX:
            folder = Path(tempfile.mkdtemp(prefix="backburner-"))
        self._make_private_folder(folder)
        return folder

    def _make_private_folder(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        if self.account is not None:
            self.account.owns(folder)

    def _failure(self, what: str, log_start: int) -> StartFailed:
        return StartFailed(what, self.directory.log, self.directory.log_tail(log_start))


def close_pipes(process: subprocess.Popen[bytes]) -> None:
    """Close our ends of the pipes to a guardian."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _told_pid(process: subprocess.Popen[bytes]) -> int:
    """Read the process id that the guardian tells; 0 when it failed before it had one."""
    return int(process.stdout.readline().strip() or 0) if process.stdout else 0


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
