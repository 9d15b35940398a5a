"""A world with clients at work in it, and a judge."""

import random
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.crash.chaos import label_budgets
from tests.crash.chaos.checker import Checker
from tests.crash.chaos.clients import Caller
from tests.crash.chaos.parking import parked_and_back
from tests.crash.chaos.real import real
from tests.crash.chaos.workload import Workload
from tests.crash.chaos.world import World, world

#: How long everything may take to end once nothing is broken any more.
SETTLE_SECONDS: Final = 150.0
#: What must not be in a log, whatever happens. gRPC itself logs a traceback when a client is gone while it is answered.
_BAD: Final = re.compile(r"Traceback|never retrieved|was never awaited|Task was destroyed|Exception in", re.IGNORECASE)
#: What asyncio says of tasks of process code when a coroutine is dropped.
_OF_PROCESSES: Final = "scheduler_service.replay.loop process code:"
#: Where an entry of a log begins.
_ENTRY: Final = re.compile(r"\d{4}-\d\d-\d\d ")


@dataclass
class Arena:
    """Where the attack takes place."""

    world: World
    caller: Caller
    work: Workload
    judge: Checker

    async def judged(self) -> list[str]:
        """Lets everything end, and says what is wrong."""
        ended = await self.work.finish(SETTLE_SECONDS)
        found = list(self.world.died())
        if not ended:
            found += [f"run {run_id} has not ended in {SETTLE_SECONDS:g} s" for run_id in self.work.open]
        else:
            found += await parked_and_back(self.world, self.caller)
        found += self.caller.offences
        found += await self.judge.check(self.caller.acknowledged)
        if ended:
            found += await label_budgets.taken_away(self.world.dsn, self.caller)
        return found + _said(self.world)


@asynccontextmanager
async def arena(
    seed: int, keep: Path | None = None, *, schedulers: int = 2, executors: int = 3, with_real: bool = False
) -> AsyncIterator[Arena]:
    """A running world, and clients that have not begun. `with_real`: with a real agent CLI, where there is one."""
    async with AsyncExitStack() as stack:
        cli = stack.enter_context(real()) if with_real else None

        def prepare(made: World) -> None:
            for executor in made.executors:
                executor.env = {**executor.env, **({} if cli is None else cli.settings(executor.env))}

        made = await stack.enter_async_context(world(keep, schedulers=schedulers, executors=executors, prepare=prepare))
        caller = Caller(random.Random(f"calls {seed}"))
        addresses = [proxy.address for proxy in made.clients]
        await caller.open(addresses, stack)
        work = Workload(caller, addresses, str(made.folder), random.Random(f"work {seed}"), cli)
        stack.push_async_callback(work.stop)
        yield Arena(made, caller, work, Checker(made, cli))


def _said(made: World) -> list[str]:
    """Logs say nothing of bugs."""
    found = []
    for service in made.services:
        lines = service.log.read_text(errors="replace").splitlines()
        bad = next((n for n, line in enumerate(lines) if _is_bad(lines, n)), None)
        if bad is not None:
            found.append(f"{service.log.stem} says:\n" + "\n".join(lines[max(0, bad - 2) : bad + 40]))
    return found


def _is_bad(lines: Sequence[str], number: int) -> bool:
    if not _BAD.search(lines[number]):
        return False
    entry = next((line for line in reversed(lines[:number]) if _ENTRY.match(line)), "")
    return "ExecuteBatchError raised in core" not in entry and _OF_PROCESSES not in lines[number]
