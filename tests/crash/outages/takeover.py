"""The owner of runs goes while many of their effects are in flight: killed, or asked to go."""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import psycopg
from google.protobuf.struct_pb2 import Struct

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.crash.chaos.checker import Checker
from tests.crash.chaos.clients import Caller
from tests.crash.chaos.world import World, world
from tests.crash.outages.prepare import prepared, scheduler_name
from tests.crash.outages.probes import Probes, probing
from tests.support.eventually import eventually
from tests.support.services import result_value

Mode = Literal["kill", "term"]
_GONE: Final = scheduler_name(0)
_STAYS: Final = scheduler_name(1)
_PATIENCE: Final = 180.0
_ASSIGN_TRIES: Final = 20
_OWNED: Final = """
    SELECT (SELECT count(*) FROM backburner.executors WHERE holder = %(gone)s) AS executors,
           (SELECT count(*) FROM backburner.effects e JOIN backburner.executors x USING (executor_id)
             WHERE e.run_id = ANY(%(runs)s::uuid[]) AND e.settled_seq IS NULL AND x.holder = %(gone)s) AS effects,
           count(*) FILTER (WHERE owner = %(gone)s) AS gone, count(*) FILTER (WHERE owner = %(stays)s) AS stays,
           coalesce(extract(epoch FROM max(expires_at) FILTER (WHERE owner = %(gone)s) - clock_timestamp()), 0)
    FROM backburner.shards
"""
_SESSIONS: Final = """
    SELECT coalesce(jsonb_object_agg(executor_id, jsonb_build_array(session_no, holder)), '{}')
    FROM backburner.executors WHERE state = 'CONNECTED'
"""
#: An effect is adopted when the session that its executor has with the survivor has taken it over.
_ADOPTED: Final = """
    SELECT (SELECT count(*) FROM backburner.shards WHERE owner = %(stays)s AND expires_at > clock_timestamp()),
           (SELECT count(*) FROM backburner.run_heads h JOIN backburner.shards s USING (shard)
             WHERE h.run_id = ANY(%(runs)s::uuid[]) AND s.owner = %(stays)s AND h.epoch = s.epoch),
           (SELECT count(*) FROM backburner.effects e JOIN backburner.executors x USING (executor_id)
             WHERE e.run_id = ANY(%(runs)s::uuid[]) AND e.settled_seq IS NULL AND x.holder = %(stays)s
               AND x.state = 'CONNECTED' AND x.session_no = e.session_no)
"""


@dataclass(frozen=True)
class Size:
    """How much is in flight, and how long the services wait."""

    runs: int = 100
    functions: int = 964
    shells: int = 36
    probes: int = 6
    lease_s: float = 5.0
    grace_s: float = 20.0

    @property
    def effects(self) -> int:
        """Effects in flight."""
        return self.functions + self.shells

    def of_run(self, number: int) -> dict[str, int]:
        """Effects of one of the runs."""
        return {"functions": _part(self.functions, self.runs, number), "shells": _part(self.shells, self.runs, number)}


def _part(count: int, parts: int, number: int) -> int:
    return count // parts + (number < count % parts)


@dataclass
class Outcome:
    """What came of it. Times count from the signal, in seconds."""

    mode: Mode
    effects: int
    runs: int
    #: Of the replica that goes: its runs, the executors connected to it, and the effects in flight on these.
    owned: int = 0
    executors: int = 0
    held: int = 0
    lease_s: float = 0.0
    shards_s: float = 0.0
    runs_s: float = 0.0
    effects_s: float = 0.0
    exit_s: float = 0.0
    rerun: int = 0
    released_s: float = 0.0
    call_gap_s: float = 0.0
    run_gap_s: float = 0.0
    probes: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        what = "kill -9" if self.mode == "kill" else "SIGTERM"
        errors = "  ".join(f"{code} {count}" for code, count in self.errors.items()) or "none"
        ended = f"lease expired {self.lease_s:.2f} s" if self.mode == "kill" else f"ended {self.exit_s:.2f} s"
        return (
            f"{what} of one of two owners: {self.effects} effects of {self.runs} runs in flight\n"
            f"its own: {self.owned} runs, {self.executors} sessions of executors with {self.held} effects in flight\n"
            f"after the signal: {ended}; all shards {self.shards_s:.2f} s, all runs {self.runs_s:.2f} s, "
            f"all effects {self.effects_s:.2f} s with the other\n"
            f"run again: {self.rerun}; all settled and ended {self.released_s:.2f} s after their release\n"
            f"clients: {self.probes} runs asked for beside; longest call {self.call_gap_s:.2f} s, longest run "
            f"{self.run_gap_s:.2f} s; errors answered: {errors}\n"
            f"verdict: {len(self.violations)} violations"
        )


async def take_over(mode: Mode, size: Size, show: Callable[[str], None], keep: Path | None = None) -> Outcome:
    """Starts all, takes the owner away, and says what was seen."""
    outcome = Outcome(mode, size.effects, size.runs)
    async with _scene(size, keep) as scene:
        await scene.fill()
        show(f"{size.effects} effects are in flight")
        async with probing(scene.world.addresses, str(scene.world.folder), size.probes) as probes:
            await eventually(lambda: probes.done >= 2 * size.probes, 60, "the probes see nothing end")
            probes.forget()
            await scene.strike(outcome)
        outcome.rerun = scene.starts() - size.effects
        await scene.release(outcome)
        _seen(outcome, probes)
        await scene.judge(outcome)
    return outcome


def _seen(outcome: Outcome, probes: Probes) -> None:
    outcome.call_gap_s, outcome.run_gap_s = probes.call_gap_s, probes.run_gap_s
    outcome.probes, outcome.errors = probes.done, dict(probes.errors)
    outcome.violations += probes.offences


@dataclass
class _Scene:
    world: World
    caller: Caller
    size: Size
    run_ids: list[str] = field(default_factory=list)

    async def fill(self) -> None:
        """Two owners with a half each, and everything in flight."""
        await eventually(self._halved, 60, lambda: self.world.schedulers[0].tail)
        await asyncio.gather(*(self._assign(number) for number in range(len(self.world.executors))))
        for number in range(self.size.runs):
            given = Struct()
            given.update({"folder": str(self.world.folder), **self.size.of_run(number)})
            self.run_ids.append((await self.caller.create(process="holds-many", input=given)).run.run_id)
        await eventually(lambda: self.starts() == self.size.effects, _PATIENCE, lambda: f"{self.starts()} have started")

    async def _halved(self) -> bool:
        _, _, gone, stays, _ = await self._query(_OWNED)
        return bool(gone == stays == 8)

    async def _assign(self, number: int) -> None:
        """Starts an executor anew until the replica that answers it first is the one that it names first.

        It may have met only one replica so far, and a slow machine makes it take the other one.
        """
        executor = self.world.executors[number]
        session, holder = 0, ""
        for _ in range(_ASSIGN_TRIES):
            session, holder = await eventually(partial(self._session, number, session), 60, lambda: executor.tail)
            if holder == scheduler_name(number % 2):
                return
            executor.kill()
            executor.start()
        raise AssertionError(f"executor {number} always meets {holder}\n{executor.tail}")

    async def _session(self, number: int, after: int) -> Any:
        """The session of an executor and its replica, once there is one later than `after`."""
        (sessions,) = await self._query(_SESSIONS)
        session, holder = sessions.get(f"executor-{number}", (0, ""))
        return (session, holder) if session > after else None

    def starts(self) -> int:
        """Starts of the effects of the runs, as their marks say."""
        marks = self.world.folder / "marks"
        return sum(
            len(path.read_text().splitlines()) for path in marks.iterdir() if path.name[:36] in set(self.run_ids)
        )

    async def _query(self, statement: str) -> tuple[Any, ...]:
        named = {"gone": _GONE, "stays": _STAYS, "runs": self.run_ids}
        async with await psycopg.AsyncConnection.connect(self.world.dsn, autocommit=True) as connection:
            row = await (await connection.execute(statement.encode(), named)).fetchone()
        assert row is not None
        return tuple(row)

    async def strike(self, outcome: Outcome) -> None:
        """The signal, and then until all is with the other one."""
        owner = self.world.schedulers[0]
        outcome.executors, outcome.held = (await self._query(_OWNED))[:2]
        outcome.owned = self.size.runs - (await self._query(_ADOPTED))[1]
        begun = time.monotonic()
        ended = asyncio.create_task(self._end(outcome, begun))
        if outcome.mode == "kill":
            owner.send(signal.SIGKILL)
            outcome.lease_s = float((await self._query(_OWNED))[4]) + time.monotonic() - begun
        else:
            owner.send(signal.SIGTERM)
        try:
            await eventually(lambda: self._adopted(outcome, begun), _PATIENCE, lambda: self.world.schedulers[1].tail)
        except AssertionError as error:
            outcome.violations.append(str(error))
        await ended

    async def _end(self, outcome: Outcome, begun: float) -> None:
        owner = self.world.schedulers[0]
        await eventually(lambda: owner.ended, _PATIENCE, lambda: owner.tail)
        outcome.exit_s = time.monotonic() - begun
        assert owner.process is not None
        if outcome.mode == "term" and owner.process.returncode != 0:
            outcome.violations.append(f"the replica ended with {owner.process.returncode}\n{owner.tail}")
        owner.kill()

    async def _adopted(self, outcome: Outcome, begun: float) -> bool:
        shards, runs, effects = await self._query(_ADOPTED)
        now = time.monotonic() - begun
        outcome.shards_s = outcome.shards_s or (now if shards == 16 else 0)
        outcome.runs_s = outcome.runs_s or (now if runs == self.size.runs else 0)
        outcome.effects_s = outcome.effects_s or (now if effects == self.size.effects else 0)
        return bool(outcome.shards_s and outcome.runs_s and outcome.effects_s)

    async def release(self, outcome: Outcome) -> None:
        """Lets all effects end, and waits for the value of each run."""
        begun = time.monotonic()
        (self.world.folder / "release").touch()
        await asyncio.gather(*(self._value(outcome, number) for number in range(self.size.runs)))
        outcome.released_s = time.monotonic() - begun

    async def _value(self, outcome: Outcome, number: int) -> None:
        run_id = self.run_ids[number]
        deadline = time.monotonic() + _PATIENCE
        run = None
        while run is None and time.monotonic() < deadline:
            run = await self.caller.ended(run_id)
        expected = sum(self.size.of_run(number).values())
        if run is None or run.state != journal_pb2.RUN_STATE_COMPLETED or result_value(run) != expected:
            outcome.violations.append(f"run {run_id} should have returned {expected}: {_told(run)}")

    async def judge(self, outcome: Outcome) -> None:
        """Journals, marks, processes and slots, once the one that went is back."""
        if outcome.rerun:
            outcome.violations.append(f"{outcome.rerun} effects were run again within the grace")
        self.world.schedulers[0].start()
        outcome.violations += self.world.died() + self.caller.offences
        outcome.violations += await Checker(self.world).check(self.caller.acknowledged)


def _told(run: pb.Run | None) -> str:
    """What became of a run, in a line."""
    if run is None:
        return "it has not ended"
    return f"{journal_pb2.RunState.Name(run.state)} {result_value(run)} {run.error.message}"


@asynccontextmanager
async def _scene(size: Size, keep: Path | None) -> AsyncIterator[_Scene]:
    scheduler = {"BACKBURNER_LEASE_SECONDS": f"{size.lease_s:g}", "BACKBURNER_GRACE_SECONDS": f"{size.grace_s:g}"}
    scheduler["BACKBURNER_DRAIN_SECONDS"] = "5"
    executor = {
        "BACKBURNER_SLOTS_FUNCTIONS": str(size.effects * 2 // 5 + size.probes),
        "BACKBURNER_SLOTS_SHELL": str(size.shells),
    }
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(world(keep, prepare=prepared(scheduler, executor)))
        caller = Caller(random.Random(0))
        await caller.open(made.addresses, stack)
        yield _Scene(made, caller, size)
