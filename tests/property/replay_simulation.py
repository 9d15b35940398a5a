"""Random processes in a random world: `python -m tests.property.replay_simulation --schedules N --seed S`.

Each schedule is a process and a world made of one seed: effects that succeed, fail, time out, are retried, report
progress, in any order and many at the same time; signals; a cancel of the run. Pure replay code: a schedule is the same
whenever and wherever it runs, and its seed is all that is needed to see it again.
"""

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from random import Random

from scheduler_service.replay.events import SETTLING_TYPES, TERMINAL_TYPES, Command
from scheduler_service.replay.harness import Driven, Reply, check_prefixes, drive, failed, succeeded
from tests.support.random_processes import random_process

_DELAYS = (0.001, 0.001, 0.5, 1.0, 1.0, 1.002, 2.0, 30.0)
_CANCELLED = {"reason": "EFFECT_REASON_CANCELLED_BY_USER", "death": "DEATH_PROVEN"}


class World:
    """What happens around the process; every effect has a fate of its own, which its key and the seed decide."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def answer(self, command: Command) -> Iterable[Reply]:
        """The replies to one request: perhaps progress and failed attempts, then a settlement."""
        random = Random(f"{self._seed}/{command.effect_key}")
        delay = random.choice(_DELAYS)
        yield Reply("EFFECT_DISPATCHED", {}, delay / 4)
        for percent in sorted(random.sample(range(100), random.choice((0, 0, 1, 3)))):
            yield Reply("EFFECT_PROGRESS", {"percent": float(percent)}, delay / 2)
        if random.random() < 0.2:
            yield Reply("EFFECT_ATTEMPT_FAILED", {"error": {"reason": "EFFECT_REASON_RAISED"}}, delay / 2)
        yield from self._settlement(random, delay)

    @staticmethod
    def _settlement(random: Random, delay: float) -> list[Reply]:
        match random.choices(("succeeded", "failed", "timed out", "cancelled"), (7, 2, 1, 1))[0]:
            case "succeeded":
                return succeeded(random.randint(0, 9), after=delay)
            case "failed":
                return failed(after=delay)
            case "timed out":
                return failed("START_TO_CLOSE_TIMEOUT", after=delay, timed_out=True)
            case _:
                return [Reply("EFFECT_CANCELLED", _CANCELLED, delay)]

    def outside(self) -> list[Reply]:
        """Signals, and sometimes the cancel of the run."""
        random = Random(f"{self._seed}/outside")
        replies = [
            Reply("SIGNAL_RECEIVED", {"name": random.choice(("go", "stop")), "value": {"value": number}}, after)
            for number, after in enumerate(random.choices(_DELAYS, k=random.randint(0, 3)))
        ]
        if random.random() < 0.3:
            replies.append(Reply("RUN_CANCEL_REQUESTED", {"reason": "enough"}, random.choice(_DELAYS)))
        return replies


def simulated(seed: int, *, evictions: bool = False) -> Driven:
    """One schedule, with evictions at random events when asked for."""
    world, evict = World(seed), Random(f"{seed}/evict")
    evicts = (lambda: evict.random() < 0.15) if evictions else (lambda: False)
    return drive(random_process(Random(seed)), {}, world.answer, outside=world.outside(), evicts=evicts)


def check(seed: int) -> Driven:
    """Runs a schedule, and again with evictions, and from every prefix. Raises AssertionError or Divergence."""
    driven = simulated(seed)
    assert driven.end is not None, "the run waits for nothing that would come"
    _check_journal(driven)
    evicted = simulated(seed, evictions=True)
    assert _rows(evicted) == _rows(driven), "a run that was evicted and replayed went another way"
    check_prefixes(driven)
    return driven


def _rows(driven: Driven) -> list[tuple[object, ...]]:
    told = [{name: value for name, value in row.data.items() if name != "error"} for row in driven.events]
    return [
        (row.seq, row.type, row.cause, row.effect_key, row.recorded_at, data)
        for row, data in zip(driven.events, told, strict=True)
    ]


def print_digests(first: int, count: int) -> None:
    """A digest of the journal of each schedule, as JSON: they are to be the same on every Python."""
    digests = {}
    for seed in range(first, first + count):
        told = json.dumps(_rows(simulated(seed)), default=str, sort_keys=True)
        digests[seed] = hashlib.sha256(told.encode()).hexdigest()
    print(json.dumps(digests))


def _check_journal(driven: Driven) -> None:
    """What must hold of any journal, whatever the process does."""
    asked = [row.effect_key for row in driven.rows("EFFECT_REQUESTED")]
    settled = Counter(row.effect_key for row in driven.rows(*SETTLING_TYPES))
    assert len(asked) == len(set(asked)), "a key was asked for twice"
    assert not [key for key, count in settled.items() if count > 1], "an effect settled twice"
    ended = driven.rows(*TERMINAL_TYPES)
    assert len(ended) <= 1, "a run ended twice"
    if ended:
        assert not [row for row in driven.events[ended[0].seq :] if row.cause], "process code asked after its end"
        detached = {row.effect_key for row in driven.rows("EFFECT_REQUESTED")
                    if row.data["spec"].get("on_run_end") == "ON_RUN_END_DETACH"}  # fmt: skip
        assert set(asked) - set(settled) <= detached, "the run ended over an open effect"
    for row in driven.rows("PROCESS_RUNTIME_ERROR"):
        assert "on purpose" in str(row.data["error"]), f"parked by an error nobody made: {row.data['error']}"


def main(argv: list[str] | None = None) -> int:
    """Runs schedules and prints what came of them; 1 when one breaks a rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=5000, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of the first schedule; the next has S + 1")
    given = parser.parse_args(argv)
    began, ends, events = time.monotonic(), Counter[str](), 0
    for seed in range(given.seed, given.seed + given.schedules):
        try:
            driven = check(seed)
        except Exception:
            print(f"schedule {seed} breaks a rule: --schedules 1 --seed {seed} shows it again", file=sys.stderr)
            raise
        ends[driven.end.type if driven.end else ""] += 1
        events += len(driven.events)
    told = ", ".join(f"{name} {count}" for name, count in sorted(ends.items()))
    print(f"{given.schedules} schedules, {events} events, 0 violations in {time.monotonic() - began:.0f} s: {told}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
