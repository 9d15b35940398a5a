"""Postgres comes and goes under load: what was acknowledged, how often things ran, and how throughput came back."""

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

import psycopg
from google.protobuf.struct_pb2 import Struct

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.crash.chaos import processes
from tests.crash.chaos.checker import Checker
from tests.crash.chaos.clients import Caller
from tests.crash.chaos.processes import mark_path
from tests.crash.chaos.world import World, world
from tests.crash.outages.prepare import prepared
from tests.support.client_program import function
from tests.support.eventually import eventually
from tests.support.services import result_value

#: Effects of each run.
_EFFECTS: Final = 10
#: A mark is so long in flight, so that stops meet work.
_SECONDS: Final = 0.05
_MARK: Final = f"{processes.__name__}.mark"
_ENDED: Final = journal_pb2.RUN_STATE_COMPLETED
#: How long everything may take to end once Postgres stays.
_SETTLE_SECONDS: Final = 150.0
#: Times of settlements, and of commits of any kind, as seconds since 1970.
_SETTLED: Final = """
    SELECT extract(epoch FROM recorded_at)::float8 FROM backburner.journal
    WHERE type = 'EFFECT_RESOLVED' ORDER BY recorded_at
"""
_COMMITS: Final = """
    SELECT min(extract(epoch FROM recorded_at))::float8 FROM backburner.journal
    WHERE recorded_at > to_timestamp(%s)
"""
_LOST: Final = """
    SELECT CASE WHEN (data->>'never_started')::bool THEN 'NEVER_STARTED' ELSE type END, count(*)
    FROM backburner.journal
    WHERE type = 'EFFECT_ATTEMPT_LOST' OR type = 'EFFECT_RESOLVED' AND data->>'state' <> 'EFFECT_STATE_SUCCEEDED'
    GROUP BY 1
"""
#: A dispatch whose answer the stop swallowed is taken back and given anew; nothing ran for it.
_TAKEN_BACK: Final = "NEVER_STARTED"


@dataclass(frozen=True)
class Storm:
    """How long, how often, how much, and how long it is calm before and after."""

    seconds: float = 120.0
    period: float = 8.0
    clients: int = 16
    calm: float = 15.0
    #: Longest that Postgres is away between a stop and the next start.
    away: float = 1.5


@dataclass
class Outage:
    """One of them, by this machine's clock, which is the database's too."""

    stopped: float
    started: float = 0.0
    accepts: float = 0.0
    first_commit_s: float | None = None
    #: None: not before the next stop.
    recovered_s: float | None = None


@dataclass
class Outcome:
    """What came of it. Rates are settlements a second, by the journal."""

    seconds: float = 0.0
    before: float = 0.0
    during: float = 0.0
    after: float = 0.0
    outages: list[Outage] = field(default_factory=list)
    requests: int = 0
    runs: int = 0
    effects: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        errors = "  ".join(f"{code} {count}" for code, count in self.errors.items())
        accepts = [outage.accepts - outage.started for outage in self.outages]
        commits = [outage.first_commit_s for outage in self.outages]
        recovered = [outage.recovered_s for outage in self.outages]
        return (
            f"Postgres was stopped {len(self.outages)} times in {self.seconds:.0f} s\n"
            f"effects/s: {self.before:.0f} before, {self.during:.0f} during ({self.during / self.before:.0%}), "
            f"{self.after:.0f} after ({self.after / self.before:.0%})\n"
            f"from the start of Postgres: it accepts {_times(accepts)}; first commit {_times(commits)}; "
            f"90 % of the rate before {_times(recovered)}\n"
            f"acknowledged: {self.requests} requests of clients, {self.runs} runs with their value; "
            f"{self.effects} effects judged; attempts and effects that did not end well: {self.lost or 'none'}\n"
            f"calls: {errors}\n"
            f"verdict: {len(self.violations)} violations"
        )


def _times(values: list[float] | list[float | None]) -> str:
    known = sorted(value for value in values if value is not None)
    if not known:
        return "never"
    late = f", not before the next stop {len(values) - len(known)} times" if len(known) < len(values) else ""
    return f"{statistics.median(known):.2f} s (up to {known[-1]:.2f} s{late})"


class Load:
    """Clients that ask for effects and note what they are answered, until told to stop."""

    def __init__(self, caller: Caller, folder: str) -> None:
        self._caller = caller
        self._folder = folder
        self.stopping = False
        self.open: set[str] = set()
        self.runs = 0
        self.offences: list[str] = []

    async def of_process(self) -> None:
        """Runs of a process: each must return its value."""
        given = Struct()
        given.update({"folder": self._folder, "count": _EFFECTS})
        while not self.stopping:
            run_id = (await self._caller.create(process="marks-many", input=given)).run.run_id
            await self._value(run_id, _EFFECTS)

    async def of_client(self) -> None:
        """Runs of a client: what it was told to be requested must be there."""
        while not self.stopping:
            answer = await self._caller.create(client=pb.ClientDriven())
            run_id, epoch = answer.run.run_id, answer.client_epoch
            self.open.add(run_id)
            keys = [f"mark/{n}" for n in range(_EFFECTS)]
            request = pb.RequestEffectsRequest(run_id=run_id, client_epoch=epoch)
            for key in keys:
                spec = function(_MARK, mark_path(self._folder, run_id, key), _SECONDS)
                request.effects.append(pb.EffectRequest(key=key, spec=spec))
            await self._caller.call("RequestEffects", request)
            self._caller.acknowledged.requests |= {(run_id, key) for key in keys}
            wait = pb.WaitEffectsRequest(run_id=run_id, keys=keys)
            wait.max_wait.FromSeconds(4)
            while (await self._caller.call("WaitEffects", wait)).timed_out:
                continue
            finish = pb.FinishRunRequest(run_id=run_id, client_epoch=epoch)
            finish.succeeded.number_value = _EFFECTS
            await self._caller.call("FinishRun", finish)
            await self._value(run_id, _EFFECTS)

    async def _value(self, run_id: str, expected: int) -> None:
        self.open.add(run_id)
        run = None
        while run is None:
            run = await self._caller.ended(run_id)
        if run.state != _ENDED or result_value(run) != expected:
            self.offences.append(f"run {run_id} should have returned {expected}: {run}")
        self.open.discard(run_id)
        self.runs += 1


async def storm(plan: Storm, show: Callable[[str], None], keep: Path | None = None) -> Outcome:
    """The whole of it: calm, storm, calm, and the judge."""
    outcome = Outcome()
    slots = {"BACKBURNER_SLOTS_FUNCTIONS": str(plan.clients * _EFFECTS)}
    scheduler = {"BACKBURNER_LEASE_SECONDS": "5", "BACKBURNER_GRACE_SECONDS": "60"}
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(world(keep, prepare=prepared(scheduler, slots)))
        caller = Caller(random.Random(0))
        await caller.open(made.addresses, stack)
        load = Load(caller, str(made.folder))
        kinds = [load.of_process, load.of_client]
        clients = [asyncio.create_task(kinds[number % 2]()) for number in range(plan.clients)]
        try:
            await eventually(lambda: load.runs > plan.clients, 90, "no run ends")
            phases = await _phases(made, plan, outcome, show)
            await _ended(load, clients, outcome)
        finally:
            for client in clients:
                client.cancel()
        await _measure(made.dsn, phases, outcome)
        outcome.violations += made.died() + load.offences + caller.offences
        judge = Checker(made)
        outcome.violations += await judge.check(caller.acknowledged)
        outcome.requests, outcome.runs = len(caller.acknowledged.requests), load.runs
        outcome.effects, outcome.errors = judge.checked.effects, dict(caller.calls)
    return outcome


async def _phases(made: World, plan: Storm, outcome: Outcome, show: Callable[[str], None]) -> list[float]:
    """Ends of the phases: begin, storm, calm, end."""
    at = [time.time()]
    await asyncio.sleep(plan.calm)
    at.append(time.time())
    draw = random.Random(0)
    while time.time() < at[1] + plan.seconds:
        outage = Outage(time.time())
        await asyncio.to_thread(made.postgres.stop, "immediate")
        await asyncio.sleep(draw.uniform(0, plan.away))
        outage.started = time.time()
        await asyncio.to_thread(made.postgres.start)
        outage.accepts = time.time()
        outcome.outages.append(outage)
        show(f"outage {len(outcome.outages)}: away {outage.accepts - outage.stopped:.1f} s")
        await asyncio.sleep(max(0.0, outage.stopped + plan.period - time.time()))
    at.append(time.time())
    await asyncio.sleep(plan.calm)
    return [*at, time.time()]


async def _ended(load: Load, clients: list[asyncio.Task[None]], outcome: Outcome) -> None:
    load.stopping = True
    done, pending = await asyncio.wait(clients, timeout=_SETTLE_SECONDS)
    for client in done:
        client.result()
    if pending:
        outcome.violations += [f"run {run_id} has not ended in {_SETTLE_SECONDS:g} s" for run_id in load.open]


async def _measure(dsn: str, at: list[float], outcome: Outcome) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        settled = [moment for (moment,) in await (await connection.execute(_SETTLED)).fetchall()]
        outcome.lost = dict(await (await connection.execute(_LOST)).fetchall())
        for outage in outcome.outages:
            row = await (await connection.execute(_COMMITS, [outage.started])).fetchone()
            outage.first_commit_s = row[0] - outage.started if row and row[0] else None
    if outcome.lost.keys() - {_TAKEN_BACK}:
        outcome.violations.append(f"within the grace nothing should be lost: {outcome.lost}")
    outcome.seconds = at[2] - at[1]
    outcome.before, outcome.during, outcome.after = (
        sum(begin <= moment < end for moment in settled) / (end - begin) for begin, end in pairwise(at)
    )
    by_tenth = Counter(int(moment * 10) for moment in settled)
    ends = [outage.stopped for outage in outcome.outages[1:]] + [at[3]]
    for outage, end in zip(outcome.outages, ends, strict=True):
        outage.recovered_s = _recovered(by_tenth, outage.started, end, outcome.before * 0.9)


def _recovered(by_tenth: Counter[int], started: float, end: float, rate: float) -> float | None:
    """When the second that follows a moment has this rate for the first time, counted from the start of Postgres."""
    for tenth in range(int(started * 10), int(end * 10) - 10):
        if sum(by_tenth[tenth + n] for n in range(10)) >= rate:
            return max(0.0, tenth / 10 - started)
    return None
