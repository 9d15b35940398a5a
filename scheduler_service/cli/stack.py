"""Postgres, scheduler and executor as one thing: started in order, supervised, stopped in the opposite order."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from scheduler_service.cli.address import remove_address, write_address
from scheduler_service.cli.child import Child, LineSink
from scheduler_service.cli.data_dir import DataDir
from scheduler_service.cli.database import migrate_now, service_dsns
from scheduler_service.cli.errors import CliError
from scheduler_service.cli.health import Readiness, wait_until_connected, wait_until_serving
from scheduler_service.postgres import EmbeddedPostgres, EmbeddedPostgresError

STOP_SECONDS: Final = 15.0
_WATCH_SECONDS: Final = 0.2
EXECUTOR_ID: Final = "local"


@dataclass(frozen=True)
class StackOptions:
    """What to start. `env` holds settings of the services (BACKBURNER_*), on top of our own environment."""

    data_dir: Path
    listen: str
    ephemeral: bool = False
    database_url: str | None = None
    process_modules: tuple[str, ...] = ()
    function_modules: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    #: Where the scheduler serves metrics; the executor does on the next port. Empty: neither does, whatever our own
    #: environment says, for two services cannot share an address.
    metrics_address: str = ""


class ChildDied(CliError):
    """A service ended by itself."""


class Stack:
    """The services of one machine. `start`, then `supervise`, then `stop`, whatever happened in between."""

    def __init__(self, options: StackOptions, say: Callable[[str], None], sink: LineSink) -> None:
        self.options = options
        self.dsn = ""
        self.readiness = Readiness()
        self.force = threading.Event()
        """Set it to stop at once instead of in order."""
        self._say = say
        self._sink = sink
        self._postgres: EmbeddedPostgres | None = None
        self._children: list[Child] = []
        self._data_dir = DataDir(options.data_dir)

    @property
    def logs(self) -> Path:
        """Where the services' logs are."""
        return self.options.data_dir / "logs"

    def start(self) -> None:
        """Start everything and wait until it is healthy; on an error `stop` is still to be called."""
        self._data_dir.hold(self.options.listen)
        check_port(self.options.listen)
        if self.options.metrics_address:
            check_port(self.options.metrics_address, "--metrics-address")
            check_port(next_port(self.options.metrics_address), "--metrics-address")
        self.dsn = self.options.database_url or self._start_postgres()
        migrate_now(self.dsn, roles=self.options.database_url is None, say=self._say)
        scheduler_dsn, executor_dsn = service_dsns(self.dsn, embedded=self._postgres is not None)
        self._start_scheduler(scheduler_dsn)
        wait_until_serving(self.options.listen, self.raise_if_died)
        self._start_executor(executor_dsn)
        self.readiness = wait_until_connected(self.options.listen, EXECUTOR_ID, self.raise_if_died)
        write_address(self.options.data_dir, self.options.listen, self.dsn)

    def supervise(self, until: threading.Event) -> None:
        """Wait until `until` is set; raises ChildDied when a service ends before."""
        while not until.wait(_WATCH_SECONDS):
            self.raise_if_died()

    def raise_if_died(self) -> None:
        """Raise ChildDied when a service has ended."""
        for child in self._children:
            if child.exit_code is not None:
                raise ChildDied(child.describe_exit())

    def stop(self) -> None:
        """Stop executor, scheduler and Postgres, in this order, so that each may finish its writes."""
        if self._data_dir.is_held:  # else the address in it is that of another
            remove_address(self.options.data_dir)
        while self._children:
            child = self._children[-1]
            if child.exit_code is None:
                self._say(f"stopping the {child.name}")
            if not child.stop(STOP_SECONDS, self.force) and not self.force.is_set():
                self._say(f"the {child.name} did not stop within {STOP_SECONDS:.0f} s and was killed")
            self._children.pop()
        self._stop_postgres()
        if self.options.ephemeral:
            shutil.rmtree(self.options.data_dir, ignore_errors=True)
        self._data_dir.release()

    def _start_postgres(self) -> str:
        fresh = not (self.options.data_dir / "postgres").exists()
        self._say(f"starting Postgres in {self.options.data_dir}{' (first start: makes it)' if fresh else ''}")
        self._postgres = EmbeddedPostgres()
        try:
            return self._postgres.start(self.options.data_dir / "postgres")
        except EmbeddedPostgresError as error:
            raise CliError(str(error)) from error

    def _stop_postgres(self) -> None:
        if self._postgres is not None:
            self._say("stopping Postgres")
            self._postgres.stop("immediate" if self.force.is_set() else "fast")
            self._postgres = None

    def _start_scheduler(self, dsn: str) -> None:
        self._start_child("scheduler", "scheduler_service", {
            "DATABASE_URL": dsn,
            "BACKBURNER_LISTEN": self.options.listen,
            "BACKBURNER_METRICS_ADDRESS": self.options.metrics_address,
            "BACKBURNER_LEASE_SECONDS": "2",  # one replica: after kill -9 its successor should not wait
            "BACKBURNER_PROCESS_MODULES": ",".join(self.options.process_modules),
        })  # fmt: skip

    def _start_executor(self, dsn: str) -> None:
        self._start_child("executor", "executor_service", {
            "DATABASE_URL": dsn,
            "BACKBURNER_EXECUTOR_DATABASE_URL": dsn,
            "BACKBURNER_SCHEDULER": self.options.listen,
            "BACKBURNER_EXECUTOR_ID": EXECUTOR_ID,
            "BACKBURNER_EXECUTOR_LISTEN": "127.0.0.1:0",
            "BACKBURNER_METRICS_ADDRESS": next_port(self.options.metrics_address),
            "BACKBURNER_DRAIN_SECONDS": "1",  # Ctrl-C means now: what runs is ended and handed back, to be run again
            "BACKBURNER_FUNCTION_MODULES": ",".join(self.options.function_modules),
            "BACKBURNER_STATE_DIR": str((self.options.data_dir / "executor").resolve()),
        })  # fmt: skip

    def _start_child(self, name: str, module: str, settings: Mapping[str, str]) -> None:
        self._say(f"starting the {name}")
        env = {**service_env(), **settings, **self.options.env}
        self._children.append(Child(name, module, env, self.logs / f"{name}.log", self._sink))


def service_env() -> dict[str, str]:
    """The environment of a service: ours, with the order of sets fixed, which reaches the order of requests."""
    return {**os.environ, "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"}


def check_port(listen: str, option: str = "--listen") -> None:
    """Raise CliError when the address cannot be listened on: better now than in a child's log."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise CliError(f"{option} {listen!r} is not HOST:PORT", "such as 127.0.0.1:7233")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            raise CliError(
                f"cannot listen on {listen}: {error.strerror}",
                f"stop what uses it (another `backburner dev`?), or choose another with {option} {host}:PORT",
            ) from error


def next_port(address: str) -> str:
    """The address with the next port; port 0, any free one, and no address stay as they are."""
    host, _, port = address.rpartition(":")
    return address if port in ("", "0") else f"{host}:{int(port) + 1}"


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
