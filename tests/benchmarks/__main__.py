"""`make bench`: figures of the whole system, both services as processes of their own, fsync on.

Each figure is one JSON line {name, value, unit, rounds, ...}; value is the median of the rounds. Uses DATABASE_URL when
it is set, else the embedded Postgres in a temporary directory.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from backburner.journal.v1 import journal_pb2
from scheduler_service.journal.migrate import migrate
from scheduler_service.postgres import EmbeddedPostgres, ServerOptions
from tests.benchmarks import children
from tests.benchmarks.figures import cycles, effects_per_second, median_ms
from tests.support.children import HIDDEN, program
from tests.support.services import Stack, running_stack

MODULES = "tests.benchmarks.processes"
Figure = Callable[[Stack, str, int], Awaitable[None]]


def show(name: str, values: list[float], unit: str, **more: object) -> None:
    """Prints one figure."""
    value = round(statistics.median(values), 3)
    spread = [round(min(values), 3), round(max(values), 3)]
    print(json.dumps({"name": name, "value": value, "unit": unit, "rounds": len(values), "spread": spread, **more}))
    sys.stdout.flush()


async def run(stack: Stack, process: str, timeout_s: float = 300.0, **values: Any) -> str:
    """Runs a process to its end; returns the run's id."""
    run_id = await stack.create(process, **values)
    ended = await stack.result(run_id, timeout_s)
    assert ended.state == journal_pb2.RUN_STATE_COMPLETED, ended
    return run_id


async def roundtrip(stack: Stack, dsn: str, rounds: int) -> None:
    """A durable no-op effect after another: request to resumed process."""
    await run(stack, "bench-serial", effects=200)
    medians = [median_ms(await cycles(dsn, await run(stack, "bench-serial", effects=500))) for _ in range(rounds)]
    show("effect_roundtrip_p50", medians, "ms", target=3.5)


async def fanout(stack: Stack, dsn: str, rounds: int) -> None:
    """10 runs of 200 effects each, all at once."""
    rates = []
    for _ in range(rounds + 1):
        runs = await asyncio.gather(*(run(stack, "bench-fanout", effects=200) for _ in range(10)))
        rates.append(await effects_per_second(dsn, list(runs)))
    show("fanout_effects_per_s", rates[1:], "1/s", target=3000)


async def beside(stack: Stack, dsn: str, rounds: int) -> None:
    """Foreground no-ops with 1,000 background effects of 5 s queued, against none; 8 slots in one pool."""
    alone: list[float] = []
    crowded: list[float] = []
    for _ in range(rounds):
        for count, medians in ((0, alone), (1000, crowded)):
            run_id = await run(stack, "bench-beside", background=count, effects=200, seconds=5)
            medians.append(median_ms(await cycles(dsn, run_id)))
    ratios = [with_background / without for without, with_background in zip(alone, crowded, strict=True)]
    show("foreground_alone_p50", alone, "ms")
    show("foreground_beside_background_p50", crowded, "ms", background=1000, slots=8)
    show("foreground_latency_ratio", ratios, "1")


async def long_run(stack: Stack, dsn: str, rounds: int) -> None:
    """One run of 20,000 effects: cost of an iteration near its start and near its end, memory of the scheduler."""
    before = psutil.Process(stack.scheduler.pid).memory_info().rss
    measured = await cycles(dsn, await run(stack, "bench-serial", timeout_s=900, effects=20_000))
    after = psutil.Process(stack.scheduler.pid).memory_info().rss
    early, late = median_ms(measured[16:216]), median_ms(measured[-200:])
    show("long_run_iteration_early_p50", [early], "ms", near_seq=measured[16].seq)
    show("long_run_iteration_late_p50", [late], "ms", near_seq=measured[-1].seq)
    show("long_run_iteration_ratio", [late / early], "1")
    show("long_run_scheduler_rss", [after / 2**20], "MiB", before_mib=round(before / 2**20, 1))


async def cancel(stack: Stack, dsn: str, rounds: int) -> None:
    """From the commit that acknowledges a cancel to the one that says the child is dead; then a child that resists:
    deaf to TERM, with a daemon by double fork and setsid, without a trace in its environment, that holds its pipes.
    """
    await children.cancels(stack, dsn, {"argv": ["sleep", "300"]}, 20)
    taken = [ms for ms, _ in await children.cancels(stack, dsn, {"argv": ["sleep", "300"]}, 40 * rounds)]
    show("cancel_p50", [children.quantile(taken, 0.5)], "ms", cancels=len(taken))
    show("cancel_p99", [children.quantile(taken, 0.99)], "ms", target=1000)
    grace = 0.1
    stubborn = await children.cancels(
        stack, dsn, program(HIDDEN, "stay"), 5 * rounds, timeouts={"kill_grace": f"{grace}s"}
    )
    beyond = [ms - grace * 1000 for ms, _ in stubborn]
    proven = sum(death == "DEATH_PROVEN" for _, death in stubborn) / len(stubborn)
    show("proof_of_death_after_grace", beyond, "ms", proven=proven, left_alive=children.living("time.sleep(300)"))


async def flood(stack: Stack, dsn: str, rounds: int) -> None:
    """No-ops and cancels beside a child that writes 100 MB/s, and one that writes all it can, against none."""
    sleeper = {"argv": ["sleep", "300"]}
    figures: dict[str, list[float]] = {}

    async def look(name: str) -> None:
        figures.setdefault(f"noop_{name}", []).append(
            median_ms(await cycles(dsn, await run(stack, "bench-serial", effects=200)))
        )
        taken = [ms for ms, _ in await children.cancels(stack, dsn, sleeper, 10)]
        figures.setdefault(f"cancel_{name}", []).append(statistics.median(taken))
        figures.setdefault(f"cpu_{name}", []).append(await children.cpu_of(stack, 2.0))

    await run(stack, "bench-serial", effects=200)
    for _ in range(rounds):
        await look("quiet")
        for name, rate in (("flood_100", 100), ("flood_all", 0)):
            async with children.flooded(stack, rate):
                await look(name)
    for name, values in figures.items():
        show(name, values, "cores" if name.startswith("cpu") else "ms")
    for what in ("noop", "cancel"):
        for name in ("flood_100", "flood_all"):
            pairs = zip(figures[f"{what}_quiet"], figures[f"{what}_{name}"], strict=True)
            show(f"{what}_{name}_ratio", [beside / alone for alone, beside in pairs], "1")


FIGURES: dict[str, tuple[Figure, dict[str, str]]] = {
    "roundtrip": (roundtrip, {}),
    "fanout": (fanout, {}),
    "beside": (beside, {"BACKBURNER_SLOTS_FUNCTIONS": "8"}),
    "long": (long_run, {}),
    "cancel": (cancel, {}),
    "flood": (flood, {}),
}


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """DATABASE_URL, or an embedded server with fsync on."""
    given = os.environ.get("DATABASE_URL")
    if given:
        yield given
        return
    server = EmbeddedPostgres(ServerOptions(durable=True))
    try:
        yield server.start(folder / "postgres")
    finally:
        server.stop("immediate")


async def measure(dsn: str, folder: Path, names: list[str], rounds: int) -> None:
    """Runs the named figures, each on services of its own."""
    await migrate(dsn)
    for name in names:
        figure, executor_env = FIGURES[name]
        place = folder / name
        place.mkdir()
        async with running_stack(dsn, place, MODULES, executor_env=executor_env) as stack:
            await figure(stack, dsn, rounds)


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which figures: {', '.join(FIGURES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each figure (default 5)")
    options = parser.parse_args()
    names = options.names or list(FIGURES)
    if unknown := set(names) - set(FIGURES):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    with tempfile.TemporaryDirectory(prefix="bb-bench-") as place, postgres(Path(place)) as dsn:
        asyncio.run(measure(dsn, Path(place), names, options.rounds))


if __name__ == "__main__":
    main()
