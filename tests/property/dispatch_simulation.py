"""Dispatch under random schedules: `python -m tests.property.dispatch_simulation --schedules N --seed S`.

Streams break and are noticed late on either side, schedulers and executors die and come back, the database goes away in
the middle of commits. Time is made up, so that a schedule takes milliseconds and is the same each time: its seed is all
that is needed to see it again.
"""

import argparse
import asyncio
import logging
import sys
import time
from random import Random
from typing import Final

from tests.property.dispatch_model import Effect
from tests.property.dispatch_world import GRACE_SECONDS, World
from tests.support import virtual_time

#: Made-up seconds of mischief, and how long everything may take to come to rest after it.
MISCHIEF_SECONDS: Final = 12.0
REST_SECONDS: Final = 60.0
EFFECTS: Final = 14


async def schedule(seed: int) -> int:
    """Plays one schedule; the number of starts in it. Raises AssertionError for what must not be."""
    world = World(Random(seed))
    try:
        await _mischief(world)
        await _rest(world)
        found = list(world.violations())
        assert not found, "\n".join(found)
        return len(world.starts)
    finally:
        await world.close()


async def _mischief(world: World) -> None:
    draw, loop = world.draw, asyncio.get_running_loop()
    until = loop.time() + MISCHIEF_SECONDS
    pending = {world.spawn(_requests(world))}
    while loop.time() < until:
        await asyncio.sleep(draw.uniform(0, 1.5))
        kind = draw.random()
        if kind < 0.5 and world.wires:
            draw.choice(list(world.wires)).cut()
        elif kind < 0.65:
            pending.add(world.spawn(world.restart_executor(draw.randrange(2), draw.choice((0.0, GRACE_SECONDS + 2)))))
        elif kind < 0.8:
            pending.add(world.spawn(world.restart_replica(draw.randrange(2), draw.uniform(0, 2))))
        elif kind >= 0.8:
            world.model.away = True
            await asyncio.sleep(draw.uniform(0, 2))
            world.model.away = False
    await asyncio.gather(*pending)


async def _requests(world: World) -> None:
    """Requests come in, one after another, at the replica that owns the run."""
    for number in range(EFFECTS):
        effect = Effect(f"e{number}", world.draw.choice((1, 1, 2, 4)), world.draw.random() < 0.4)
        if world.owner is not None:
            world.spawn(world.owner.request(effect))
        await asyncio.sleep(world.draw.choice((0.0, world.draw.uniform(0, 1.2))))


async def _rest(world: World) -> None:
    """Waits until all has settled and all slots are free, or until that has taken too long."""
    loop = asyncio.get_running_loop()
    until = loop.time() + REST_SECONDS
    while loop.time() < until and (not world.model.settled or any(world.violations())):  # noqa: ASYNC110 - in made-up time
        await asyncio.sleep(1.0)


def play(first: int, schedules: int) -> int:
    """Plays so many schedules, from a seed on; the number of starts. Names the seed of one that fails."""
    starts = 0
    for seed in range(first, first + schedules):
        try:
            starts += virtual_time.run(schedule(seed), seed)
        except AssertionError as error:
            raise AssertionError(f"schedule {seed}: {error}") from error
    return starts


def main() -> int:
    """The command."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--schedules", type=int, default=2000)
    arguments.add_argument("--seed", type=int, default=1, help="of the first schedule")
    chosen = arguments.parse_args()
    logging.disable(logging.ERROR)
    begun = time.monotonic()
    starts = play(chosen.seed, chosen.schedules)
    print(f"{chosen.schedules} schedules from seed {chosen.seed}, {starts} starts, in {time.monotonic() - begun:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
