"""What is attacked: a durable Postgres, two schedulers, three executors, and a bad network between all of them."""

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.crash.chaos import agents
from tests.support.postgres import DisposablePostgres
from tests.support.repositories import repository
from tests.support.services import Service, free_port
from tests.support.tcp_proxy import TcpProxy, tcp_proxy

LEASE_SECONDS: Final = 2.0
GRACE_SECONDS: Final = 4.0
MODULES: Final = "tests.crash.chaos.processes"
#: The last words of a scheduler that has waited in vain for Postgres at its start.
_GAVE_UP: Final = "scheduler: Postgres does not answer"


@dataclass
class World:
    """The services. Everything that dies is started again by whoever killed it."""

    folder: Path
    postgres: DisposablePostgres
    schedulers: list[Service] = field(default_factory=list)
    executors: list[Service] = field(default_factory=list)
    #: Network of each executor to the schedulers, and of clients to each scheduler.
    control: list[TcpProxy] = field(default_factory=list)
    clients: list[TcpProxy] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    #: Starts that ended because Postgres did not answer.
    given_up: int = 0

    @property
    def dsn(self) -> str:
        """Connection string of the database."""
        return self.postgres.dsn

    @property
    def services(self) -> Sequence[Service]:
        """All of them."""
        return [*self.schedulers, *self.executors]

    async def build(
        self, stack: AsyncExitStack, schedulers: int, executors: int, prepare: Callable[["World"], None]
    ) -> None:
        """Makes everything, has it prepared, and starts it."""
        (self.folder / "marks").mkdir(parents=True)
        repository(self.folder / "repo")
        agents.describe(self.folder)
        await self.postgres.migrate()
        for number in range(schedulers):
            self.addresses.append(f"127.0.0.1:{free_port()}")
            self.schedulers.append(self._scheduler(number))
            self.clients.append(await stack.enter_async_context(tcp_proxy(self.addresses[number])))
        for number in range(executors):
            self.control.append(await stack.enter_async_context(tcp_proxy(self.addresses[number % schedulers])))
            self.executors.append(self._executor(number))
        prepare(self)
        for service in self.services:
            service.start()

    def _scheduler(self, number: int) -> Service:
        env = {
            "DATABASE_URL": self.dsn,
            "BACKBURNER_LISTEN": self.addresses[number],
            "BACKBURNER_PROCESS_MODULES": MODULES,
            "BACKBURNER_LEASE_SECONDS": str(LEASE_SECONDS),
            "BACKBURNER_GRACE_SECONDS": str(GRACE_SECONDS),
            "BACKBURNER_POLL_SECONDS": "0.25",
            "BACKBURNER_HEARTBEAT_SECONDS": "0.5",
            "BACKBURNER_DRAIN_SECONDS": "1",
            "BACKBURNER_SESSION_WAIT_SECONDS": "3",
            # A machine that is this busy delays steps; what is attacked here is something else.
            "BACKBURNER_STEP_SECONDS_MAX": "20",
        }
        return self._service("scheduler_service", env, f"scheduler-{number}")

    def _executor(self, number: int) -> Service:
        name = f"executor-{number}"
        env = {
            "DATABASE_URL": self.dsn,
            "BACKBURNER_SCHEDULER": self.control[number].address,
            "BACKBURNER_EXECUTOR_ID": name,
            "BACKBURNER_FUNCTION_MODULES": MODULES,
            "BACKBURNER_STATE_DIR": str(self.folder / name),
            "BACKBURNER_DRAIN_SECONDS": "1",
            "BACKBURNER_AGENTS": ",".join(agents.NAMES),
            "BACKBURNER_HARNESS_COMMANDS": str(self.folder / "harnesses.json"),
            "BACKBURNER_PARK_SECONDS": "1",
            # Sessions are of one executor each: on another one they are lost.
            "HOME": str(self.folder / f"home-{number}"),
        }
        (self.folder / f"home-{number}").mkdir()
        return self._service("executor_service", env, name)

    def _service(self, module: str, env: dict[str, str], name: str) -> Service:
        """A service with a clock of its own."""
        own = {"CHAOS_SERVICE": module, "CHAOS_CLOCK": str(self.folder / f"{name}.clock")}
        return Service("tests.crash.chaos.jumping", {**env, **own}, self.folder / f"{name}.log")

    def redirect(self, number: int, draw: random.Random) -> None:
        """The network of an executor leads to any of the schedulers from its next connection on."""
        self.control[number].target = draw.choice(self.addresses)

    async def supervise(self) -> None:
        """Starts again, until cancelled, what could not begin while Postgres was away: it says so, and ends."""
        while True:
            for service in self.schedulers:
                last_words = service.tail.rstrip().rpartition("\n")[2] if service.ended else ""
                if last_words.startswith(_GAVE_UP):
                    self.given_up += 1
                    service.start()
            await asyncio.sleep(0.2)

    def died(self) -> list[str]:
        """Services that ended though nobody killed them."""
        return [
            f"{service.log.stem} has ended with {service.process.returncode}\n{service.tail}"
            for service in self.services
            if service.process is not None and service.ended
        ]


@asynccontextmanager
async def world(
    keep: Path | None = None,
    *,
    schedulers: int = 2,
    executors: int = 3,
    prepare: Callable[[World], None] = lambda made: None,
) -> AsyncIterator[World]:
    """A running world, killed at the end; its folder is removed unless it is given. `prepare` may change settings."""
    async with AsyncExitStack() as stack:
        place = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bb-chaos-")))
        cluster = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bb-pg-", ignore_cleanup_errors=True)))
        postgres = await asyncio.to_thread(DisposablePostgres, cluster)
        stack.push_async_callback(asyncio.to_thread, postgres.stop, "immediate")
        made = World(place, postgres)
        stack.callback(_kill, made)
        await made.build(stack, schedulers, executors, prepare)
        supervising = asyncio.create_task(made.supervise(), name="supervise")
        try:
            yield made
        finally:
            supervising.cancel()
            await asyncio.gather(supervising, return_exceptions=True)


def _kill(made: World) -> None:
    for service in made.services:
        service.kill()
