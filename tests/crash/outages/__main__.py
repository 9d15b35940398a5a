"""`make takeover`, `make storm`, `make failover`, `make cascade`: an owner or the database goes, or the work is
cancelled, while much is going on, and figures are printed.

takeover: 1,000 effects are in flight on two schedulers and three executors; one of the schedulers is killed with -9,
and in a second round asked to go by SIGTERM. storm: Postgres is stopped at once, as at a loss of power, and started
again every few seconds under load. failover: a primary is killed with -9 and its synchronous standby promoted, again
and again. cascade: runs with child runs and children are cancelled. Exits with 1 when anything was lost, ran twice or
did not end.
"""

import argparse
import asyncio
import sys

from tests.crash.outages.cascade import Tree, cascade
from tests.crash.outages.failover import failovers
from tests.crash.outages.storm import Storm, storm
from tests.crash.outages.takeover import Size, take_over


def _show(line: str) -> None:
    print(line, flush=True)


async def _takeover(size: Size) -> list[str]:
    found: list[str] = []
    for mode in ("kill", "term"):
        outcome = await take_over(mode, size, _show)
        _show(str(outcome))
        found += outcome.violations
    return found


async def _storm(plan: Storm) -> list[str]:
    outcome = await storm(plan, _show)
    _show(str(outcome))
    return outcome.violations


async def _cascade(tree: Tree) -> list[str]:
    outcome = await cascade(tree, _show)
    _show(str(outcome))
    return outcome.violations


def main() -> int:
    """Parses the command line and measures; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    takeover = commands.add_parser("takeover")
    takeover.add_argument("--effects", type=int, default=1000, help="in flight, one in 28 of them a child (1000)")
    takeover.add_argument("--runs", type=int, default=100, help="that they belong to (100)")
    stormy = commands.add_parser("storm")
    stormy.add_argument("--seconds", type=float, default=120, help="how long Postgres comes and goes (120)")
    stormy.add_argument("--period", type=float, default=8, help="from one stop to the next (8)")
    stormy.add_argument("--clients", type=int, default=16, help="runs at a time (16)")
    cascading = commands.add_parser("cascade")
    cascading.add_argument("--roots", type=int, default=5, help="runs that are cancelled, one after the other (5)")
    cascading.add_argument("--depth", type=int, default=2, help="levels of child runs below each (2)")
    cascading.add_argument("--fan", type=int, default=3, help="child runs of each run (3)")
    cascading.add_argument("--leaves", type=int, default=3, help="children of each run (3)")
    failing = commands.add_parser("failover")
    failing.add_argument("--rounds", type=int, default=5, help="each with servers and services of its own (5)")
    chosen = parser.parse_args()
    if chosen.command == "takeover":
        shells = max(1, chosen.effects // 28)
        found = asyncio.run(_takeover(Size(chosen.runs, chosen.effects - shells, shells)))
    elif chosen.command == "cascade":
        found = asyncio.run(_cascade(Tree(chosen.roots, chosen.depth, chosen.fan, chosen.leaves)))
    elif chosen.command == "failover":
        found = asyncio.run(failovers(chosen.rounds, _show))
    else:
        found = asyncio.run(_storm(Storm(chosen.seconds, chosen.period, chosen.clients)))
    for violation in found:
        _show(f"VIOLATION: {violation}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
