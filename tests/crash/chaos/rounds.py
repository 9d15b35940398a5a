"""Rounds of faults, and the verdict."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.crash.chaos import label_budgets
from tests.crash.chaos.arena import Arena, arena
from tests.crash.chaos.checker import Checked
from tests.crash.chaos.faults import FAULTS, chosen
from tests.crash.chaos.replays import replayed
from tests.crash.chaos.world import World

#: Share of the batches of rounds with a budget of a label.
_LABEL_BUDGETS_SHARE: Final = 0.4


@dataclass
class Verdict:
    """What came of it."""

    rounds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    checked: Checked = field(default_factory=Checked)
    runs: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    watchers: int = 0
    reconnects: int = 0
    replayed: str = "not replayed"
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        def listed(counted: Counter[str]) -> str:
            return "  ".join(f"{name} {count}" for name, count in counted.most_common())

        return (
            f"{self.rounds} rounds in {self.seconds:.0f} s\n"
            f"faults: {self.faults.total()}: {listed(self.faults)}\n"
            f"runs: {len(self.checked.runs)} judged: {listed(self.runs)}\n"
            f"effects: {self.checked.effects}, of which {self.checked.marked} starts were counted outside the "
            f"database; {self.checked.rows} rows of journals\n"
            f"agents: {listed(self.checked.agents)}\n"
            f"replay-check: {self.replayed}\n"
            f"calls: {listed(self.calls)}\n"
            f"watchers: {self.watchers}, which came back {self.reconnects} times\n"
            f"verdict: {len(self.violations)} violations"
        )


class Chaos:
    """One session of rounds against one world."""

    def __init__(
        self, seed: int, *, clients: int = 10, every: int = 10, show: Callable[[str], None], keep: Path | None = None
    ) -> None:
        self._seed = seed
        self._clients = clients
        self._every = every
        self._show = show
        self._keep = keep
        self.verdict = Verdict()

    async def run(self, rounds: int) -> Verdict:
        """So many rounds, judged every few and at the end; ends early with the first violation."""
        begun = time.monotonic()
        draw = random.Random(f"faults {self._seed}")
        try:
            async with arena(self._seed, self._keep, with_real=True) as place:
                self.verdict.checked, self.verdict.calls = place.judge.checked, place.caller.calls
                self.verdict.runs = place.work.runs
                while self.verdict.rounds < rounds and not self.verdict.violations:
                    if draw.random() < _LABEL_BUDGETS_SHARE:
                        await label_budgets.set_one(place.caller)
                    place.work.start(self._clients)
                    for _ in range(min(self._every, rounds - self.verdict.rounds)):
                        await self._round(place.world, draw)
                    await self._judge(place)
                if not self.verdict.violations:
                    self.verdict.replayed, self.verdict.violations = await replayed(place.world.dsn)
        finally:
            self.verdict.seconds = time.monotonic() - begun
        return self.verdict

    async def _round(self, made: World, draw: random.Random) -> None:
        self.verdict.rounds += 1
        names = chosen(draw)
        self.verdict.faults.update(names)
        begun = time.monotonic()

        async def later(name: str, seed: int, after_s: float) -> None:
            await asyncio.sleep(after_s)
            await FAULTS[name](made, random.Random(seed))

        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(later(name, draw.getrandbits(32), draw.uniform(0, 1)))
        await asyncio.sleep(draw.uniform(0, 1))  # sometimes the next fault meets a system that has come back
        self._show(f"round {self.verdict.rounds}: {', '.join(names)} ({time.monotonic() - begun:.1f} s)")

    async def _judge(self, place: Arena) -> None:
        begun = time.monotonic()
        found = await place.judged()
        self.verdict.watchers = len(place.work.watchers)
        self.verdict.reconnects = sum(watcher.broken for watcher in place.work.watchers)
        self.verdict.violations += found
        took = time.monotonic() - begun
        checked = place.judge.checked
        self._show(
            f"judged after round {self.verdict.rounds}: {len(checked.runs)} runs, {checked.effects} effects, "
            f"{checked.agents['effects']} of agents, {len(found)} violations ({took:.1f} s)"
        )
