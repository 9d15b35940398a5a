"""A run with children and child runs is cancelled: how long until each of its leaves is told, and until it is dead.

Told: the child's own handler of TERM. Dead: the commit that settles its effect with the proof. Both count from the
acknowledgement of the cancel; what is told before that has waited for nothing.
"""

import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
from google.protobuf.struct_pb2 import Struct

from backburner.journal.v1 import journal_pb2
from tests.crash.chaos.checker import Checker
from tests.crash.chaos.clients import Caller
from tests.crash.chaos.world import World, world
from tests.crash.outages.prepare import prepared
from tests.support.eventually import eventually

_PATIENCE: Final = 120.0
#: Runs below a root, and what became of their leaves; seconds from the commit of the root's cancel.
_LEAVES: Final = """
    WITH RECURSIVE family(run_id) AS (
        SELECT %(root)s::uuid UNION ALL
        SELECT r.run_id FROM family f JOIN backburner.runs r ON r.parent_run_id = f.run_id
    )
    SELECT j.run_id::text || '~' || replace(j.effect_key, '/', '~'), j.data->>'reason', j.data->>'death',
           extract(epoch FROM j.recorded_at - asked.recorded_at)::float8
    FROM family JOIN backburner.journal j USING (run_id)
         JOIN backburner.journal asked ON asked.run_id = %(root)s::uuid AND asked.type = 'RUN_CANCEL_REQUESTED'
    WHERE j.type IN ('EFFECT_CANCELLED', 'EFFECT_RESOLVED') AND j.effect_key LIKE 'leaf/%%'
"""


@dataclass(frozen=True)
class Tree:
    """Roots, one after the other; below each, so many child runs a run, so deep; so many leaves a run."""

    roots: int = 5
    depth: int = 2
    fan: int = 3
    leaves: int = 3

    @property
    def runs(self) -> int:
        """Runs of one root, itself included."""
        return sum(self.fan**level for level in range(self.depth + 1))

    @property
    def children(self) -> int:
        """Leaves of one root."""
        return self.runs * self.leaves


@dataclass
class Outcome:
    """What came of it, in seconds."""

    tree: Tree
    told_s: list[float] = field(default_factory=list)
    dead_s: list[float] = field(default_factory=list)
    ended_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        tree = self.tree
        return (
            f"cancel of {tree.roots} runs, each with {tree.runs - 1} child runs {tree.depth} deep and "
            f"{tree.children} children\n"
            f"acknowledgement to each child's TERM: {figures(self.told_s)}\n"
            f"to the proof of each one's death in the journal: {figures(self.dead_s)}\n"
            f"to the end of the run: {figures(self.ended_s)}\n"
            f"verdict: {len(self.violations)} violations"
        )


def figures(seconds: Sequence[float]) -> str:
    """p50, p99 and the longest, in milliseconds."""
    if not seconds:
        return "nothing was seen"
    ranked = sorted(seconds)
    at = {"p50": ranked[len(ranked) // 2], "p99": ranked[min(len(ranked) - 1, len(ranked) * 99 // 100)]}
    shown = "  ".join(f"{name} {value * 1000:.0f} ms" for name, value in at.items())
    return f"{shown}  longest {ranked[-1] * 1000:.0f} ms  ({len(ranked)})"


async def cascade(tree: Tree, show: Callable[[str], None], keep: Path | None = None) -> Outcome:
    """Cancels root after root, each when all its leaves run, and judges."""
    outcome = Outcome(tree)
    async with _scene(tree, keep) as (made, caller):
        for number in range(tree.roots):
            await _one(made, caller, outcome)
            show(f"run {number + 1} of {tree.roots} is cancelled")
        outcome.violations += made.died() + caller.offences
        outcome.violations += await Checker(made).check(caller.acknowledged)
    return outcome


async def _one(made: World, caller: Caller, outcome: Outcome) -> None:
    given = Struct()
    tree = outcome.tree
    given.update({"folder": str(made.folder), "depth": tree.depth, "fan": tree.fan, "leaves": tree.leaves})
    before = _leaves(made)
    root = (await caller.create(process="cascades", input=given)).run.run_id
    await eventually(lambda: len(_leaves(made)) == len(before) + tree.children, _PATIENCE, "not all leaves run")
    await caller.cancel_run(root)
    acknowledged = time.monotonic()
    ended = await eventually(lambda: caller.ended(root), _PATIENCE, f"run {root} does not end")
    outcome.ended_s.append(time.monotonic() - acknowledged)
    assert ended is not None
    if ended.state != journal_pb2.RUN_STATE_CANCELLED:
        outcome.violations.append(f"run {root} is {journal_pb2.RunState.Name(ended.state)}")
    await _settled(made, root, acknowledged, _leaves(made) - before, outcome)


async def _settled(made: World, root: str, acknowledged: float, leaves: set[str], outcome: Outcome) -> None:
    rows = {name: ends for name, *ends in await _query(made.dsn, root)}
    for name in sorted(leaves | set(rows)):
        reason, death, seconds = rows.get(name, ("", "", 0.0))
        if (reason, death) != ("EFFECT_REASON_RUN_CANCELLED", "DEATH_PROVEN"):
            outcome.violations.append(f"leaf {name} ended by {reason or 'nothing'}, {death or 'no word of its death'}")
            continue
        told = made.folder / "told" / name
        if not told.exists():
            outcome.violations.append(f"leaf {name} was killed without being told")
            continue
        outcome.told_s.append(max(0.0, float(told.read_text()) - acknowledged))
        outcome.dead_s.append(seconds)


def _leaves(made: World) -> set[str]:
    """The leaves that have begun."""
    return {path.name for path in (made.folder / "marks").iterdir()}


async def _query(dsn: str, root: str) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        return await (await connection.execute(_LEAVES.encode(), {"root": root})).fetchall()


@asynccontextmanager
async def _scene(tree: Tree, keep: Path | None) -> AsyncIterator[tuple[World, Caller]]:
    executor = {"BACKBURNER_SLOTS_SHELL": str(tree.children)}  # any of the executors may get all of them
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(world(keep, prepare=prepared({}, executor)))
        (made.folder / "told").mkdir()
        caller = Caller(random.Random(0))
        await caller.open(made.addresses, stack)
        yield made, caller
