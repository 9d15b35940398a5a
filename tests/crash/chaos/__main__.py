"""`make chaos ROUNDS=300 SEED=s`: random faults to all parts while they work, and a judge afterwards.

A round is some faults at once. Every few rounds everything is let go on to its end and judged: journals, what was
acknowledged, marks that children left outside the database, processes that are still alive, what watchers saw. Fails
with what is wrong; the seed repeats the plans and the faults, as far as the machine plays along.
"""

import argparse
import asyncio
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.crash.chaos.rounds import Chaos, Verdict

ROUNDS: Final = 300


def _show(line: str) -> None:
    print(line, flush=True)


async def _main(rounds: int, seed: int, every: int, clients: int, keep: Path | None) -> int:
    _show(f"seed {seed}: {rounds} rounds, judged every {every}, {clients} clients")
    chaos = Chaos(seed, clients=clients, every=every, show=_show, keep=keep)
    running = asyncio.create_task(chaos.run(rounds))
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, running.cancel)
    try:
        verdict = await running
    except asyncio.CancelledError:
        _show(f"interrupted; seed {seed}\n{chaos.verdict}")
        return 130
    _show(str(verdict))
    return _exit_code(verdict, seed, _show)


def _exit_code(verdict: Verdict, seed: int, show: Callable[[str], None]) -> int:
    for violation in verdict.violations:
        show(f"VIOLATION (seed {seed}): {violation}")
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    arguments.add_argument("--seed", type=int, default=None, help="what to repeat; printed at the start")
    arguments.add_argument("--every", type=int, default=10, help="rounds between two judgements")
    arguments.add_argument("--clients", type=int, default=10, help="runs at a time")
    arguments.add_argument(
        "--keep",
        type=lambda given: Path(given).absolute(),
        default=None,
        help="folder for logs and marks, which is then kept",
    )
    chosen = arguments.parse_args()
    given = secrets.randbits(32) if chosen.seed is None else chosen.seed
    sys.exit(asyncio.run(_main(chosen.rounds, given, chosen.every, chosen.clients, chosen.keep)))
