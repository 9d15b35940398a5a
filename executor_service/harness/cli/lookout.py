"""Looks for the agent CLIs again and again, so that one that is installed, upgraded, broken or logged in later is seen.

Each is looked at when the executor starts, in a period, and when an attempt has failed in a way that speaks against it:
then at once and, as long as nothing has changed, ever more seldom. No look holds up anything else.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final

from executor_service.harness.cli.adapter import Adapter
from executor_service.harness.cli.discovery import Found, look, not_yet

log = logging.getLogger(__name__)

#: Failures of an attempt after which its CLI is looked at: EffectReason without prefix.
DOUBTS: Final = frozenset({"AUTHENTICATION", "SPAWN_FAILED", "HARNESS_CRASHED"})
#: Shortest time between two looks at one.
PAUSE_SECONDS: Final = 5.0
#: Looks at a time, once all have been looked at: each starts a program.
_AT_A_TIME: Final = 2


class Lookout:
    """What is known of each CLI, and who looks. `run` looks until it is cancelled."""

    def __init__(
        self,
        adapters: Sequence[Adapter],
        paths: Mapping[str, str],
        home_of: Callable[[str], Path],
        *,
        every_s: float,
        starts_children: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.found = {adapter.name: not_yet(adapter) for adapter in adapters}
        self._paths = paths
        self._home_of = home_of
        self._every_s = every_s
        self._starts_children = starts_children
        self._doubted = {name: asyncio.Event() for name in self.found}
        self._once = {name: asyncio.Event() for name in self.found}
        self._room = asyncio.Semaphore(_AT_A_TIME)
        #: Hears of what is new.
        self.on_change: Callable[[Found], None] = lambda found: None

    def doubt(self, name: str, reason: str) -> None:
        """An attempt of a CLI has failed for that reason: it is looked at if that speaks against it."""
        if reason in DOUBTS and name in self._doubted:
            self._doubted[name].set()

    async def looked(self, seconds: float | None) -> None:
        """Waits until each has been looked at, or for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for once in self._once.values():
                    await once.wait()

    async def run(self) -> None:
        """Looks until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for known in self.found.values():
                tasks.create_task(self._watch(known.adapter), name=f"look for {known.adapter.name}")
            await asyncio.Event().wait()

    async def _watch(self, adapter: Adapter) -> None:
        await self._look(adapter)
        every = self._every_s or math.inf
        pause = every
        while True:
            await asyncio.sleep(min(PAUSE_SECONDS, pause))
            doubted = await self._doubted_within(adapter.name, pause - PAUSE_SECONDS)
            async with self._room:
                new = await self._look(adapter)
            usable = self.found[adapter.name].program is not None
            pause = every if new and usable else min(PAUSE_SECONDS if new or doubted else 2 * pause, every)

    async def _doubted_within(self, name: str, seconds: float) -> bool:
        """Waits for so long, or until an attempt gives reason to look sooner: then True."""
        doubted = self._doubted[name]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                await doubted.wait()
        return doubted.is_set()

    async def _look(self, adapter: Adapter) -> bool:
        """Looks at one; True when there is something new."""
        name = adapter.name
        self._doubted[name].clear()
        found = await self._ask(adapter)
        if found.check.path and found.program is None and self.found[name].program is not None:
            found = await self._ask(adapter)  # it did run: this machine may be busy
        new = not found.is_like(self.found[name])
        self.found[name] = found
        self._once[name].set()
        if new:
            _say(found)
            self.on_change(found)
        return new

    async def _ask(self, adapter: Adapter) -> Found:
        with self._starts_children():
            return await look(adapter, self._paths.get(adapter.name, ""), self._home_of(adapter.name))


def _say(found: Found) -> None:
    """What is to be done about a CLI that is here. One that is not here is not missed."""
    check = found.check
    if check.path and check.remedy:
        level = logging.INFO if found.program is not None and check.version_known else logging.WARNING
        log.log(level, "harness %s: %s", check.name, check.remedy)
