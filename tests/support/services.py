"""Both services as real child processes over a real Postgres: what the e2e, crash and benchmark suites drive.

Each service writes its output to a file of its own, which a failed wait quotes. A service that is killed with -9 leaves
what a kill leaves; `stop` ends it as an operator would.
"""

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc

from backburner.scheduler.v1 import operator_service_pb2 as operator_pb
from backburner.scheduler.v1 import operator_service_pb2_grpc as operator_grpc
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from backburner.scheduler.v1 import scheduler_service_pb2_grpc as pb_grpc
from tests.support.eventually import eventually

ROOT = Path(__file__).parents[2]
START_SECONDS = 120.0


def free_port() -> int:
    """A TCP port of loopback that nobody listens on, and that the system gives to nobody by itself.

    A service keeps its port while it is killed and started again. Of the ports that the system hands out, any client
    may get it meanwhile, even the one that dials it: then it has connected to itself.
    """
    while True:
        port = random.SystemRandom().randrange(*_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _below_the_ephemeral() -> tuple[int, int]:
    said = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first = int(said.read_text().split()[0]) if said.exists() else 49_152
    return (10_000, first) if first > 12_000 else (10_000, 65_536)


_PORTS = _below_the_ephemeral()


@dataclass
class Service:
    """One service process."""

    module: str
    env: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it in a process group of its own."""
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                env={**os.environ, "PYTHONHASHSEED": "0", "GRPC_ENABLE_FORK_SUPPORT": "0", **self.env},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None, "not started"
        return self.process.pid

    @property
    def ended(self) -> bool:
        """True when it was started and has ended, for whatever reason."""
        return self.process is not None and self.process.poll() is not None

    def send(self, signum: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self.pid, signum)

    def kill(self) -> None:
        """kill -9, and reaps it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, and waits; returns the exit code."""
        assert self.process is not None, "not started"
        self.process.terminate()
        code = self.process.wait(timeout_s)
        self.process = None
        return code

    @property
    def tail(self) -> str:
        """The end of its log, for messages."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else "(no log)"


@dataclass
class Stack:
    """A scheduler, an executor and a client."""

    dsn: str
    folder: Path
    modules: str = ""
    scheduler_env: Mapping[str, str] = field(default_factory=dict)
    executor_env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.scheduler = Service(
            "scheduler_service",
            {
                "DATABASE_URL": self.dsn,
                "BACKBURNER_LISTEN": self.address,
                "BACKBURNER_PROCESS_MODULES": self.modules,
                "BACKBURNER_LEASE_SECONDS": "2",
                **self.scheduler_env,
            },
            self.folder / "scheduler.log",
        )
        self.executor = self.new_executor("executor-1")
        self.channel = grpc.aio.insecure_channel(self.address)
        self.client = pb_grpc.SchedulerServiceStub(self.channel)
        self.operator = operator_grpc.OperatorServiceStub(self.channel)

    def new_executor(self, executor_id: str, **env: str) -> Service:
        """An executor of this stack, not started yet."""
        return Service(
            "executor_service",
            {
                "DATABASE_URL": self.dsn,
                "BACKBURNER_SCHEDULER": self.address,
                "BACKBURNER_EXECUTOR_ID": executor_id,
                "BACKBURNER_FUNCTION_MODULES": self.modules,
                "BACKBURNER_STATE_DIR": str(self.folder / executor_id),
                **self.executor_env,
                **env,
            },
            self.folder / f"{executor_id}.log",
        )

    async def start(self) -> None:
        """Starts both services and waits until they work together."""
        self.scheduler.start()
        self.executor.start()
        await self.ready()

    async def ready(self) -> None:
        """Waits until the scheduler serves and an executor is connected."""
        health = health_pb2_grpc.HealthStub(self.channel)

        async def serving() -> bool:
            self._still_running()
            try:
                answer = await health.Check(  # type: ignore[attr-defined]  # the stubs leave the rpcs out
                    health_pb2.HealthCheckRequest(), timeout=10, wait_for_ready=True
                )
                executors = await self.operator.ListExecutors(operator_pb.ListExecutorsRequest(), timeout=10)
            except grpc.aio.AioRpcError:
                return False
            connected = operator_pb.Executor.STATE_CONNECTED
            return answer.status == answer.SERVING and any(e.state == connected for e in executors.executors)

        try:
            await eventually(serving, timeout=START_SECONDS, message="the services did not come up")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.scheduler.tail}\n---\n{self.executor.tail}") from error

    def _still_running(self) -> None:
        for service in (self.scheduler, self.executor):
            if service.process is not None and service.process.poll() is not None:
                raise RuntimeError(f"{service.module} has ended with {service.process.returncode}\n{service.tail}")

    async def create(self, process: str, key: str = "", **values: Any) -> str:
        """Creates a run, returns its id."""
        request = pb.CreateRunRequest(process=process, key=key)
        json_format.ParseDict(values, request.input)
        answer = await self.client.CreateRun(request, timeout=30, wait_for_ready=True)
        return str(answer.run.run_id)

    async def result(self, run_id: str, timeout_s: float = 240.0) -> pb.Run:
        """Waits until the run has ended or is parked; survives restarts of the scheduler."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while loop.time() < deadline:
            try:
                answer = await self.client.WaitRun(
                    pb.WaitRunRequest(run_id=run_id), timeout=min(40.0, deadline - loop.time() + 1), wait_for_ready=True
                )
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                await asyncio.sleep(0.05)
                continue
            if not answer.timed_out:
                return answer.run
        raise AssertionError(f"run {run_id} did not end\n{self.scheduler.tail}\n---\n{self.executor.tail}")

    async def close(self) -> None:
        """Kills what still runs."""
        await self.channel.close()
        self.executor.kill()
        self.scheduler.kill()


@asynccontextmanager
async def running_stack(dsn: str, folder: Path, modules: str, **options: Any) -> AsyncIterator[Stack]:
    """A started stack, killed at the end."""
    stack = Stack(dsn, folder, modules, **options)
    try:
        await stack.start()
        yield stack
    finally:
        await stack.close()


def result_value(run: pb.Run) -> Any:
    """The value that a run returned, as plain Python."""
    return json_format.MessageToDict(run.result.value) if run.result.HasField("value") else None
