"""Judges what is left when everything has ended: journals, acknowledgements, marks outside the database, processes."""

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import psycopg
from psycopg.rows import dict_row

from backburner.scheduler.v1 import operator_service_pb2 as operator_pb
from backburner.scheduler.v1 import operator_service_pb2_grpc as operator_grpc
from scheduler_service.journal.verify import verify
from tests.crash.chaos import agent_checks, agent_records, places
from tests.crash.chaos.clients import Acknowledged
from tests.crash.chaos.processes import mark_path
from tests.crash.chaos.real import Real
from tests.crash.chaos.world import World
from tests.support.journals import alive

_EFFECTS: Final = """
    SELECT e.run_id::text, e.key, e.state, e.max_attempts,
           (SELECT count(*) FROM backburner.journal j WHERE j.effect_id = e.effect_id AND type = 'EFFECT_DISPATCHED')
         - (SELECT count(*) FROM backburner.journal j WHERE j.effect_id = e.effect_id AND type = 'EFFECT_ATTEMPT_LOST'
                                                        AND (data->>'never_started')::bool) AS may_have_started,
           EXISTS (SELECT FROM backburner.journal j WHERE j.effect_id = e.effect_id
                      AND type IN ('EFFECT_CANCEL_REQUESTED', 'EFFECT_RESOLVED', 'EFFECT_CANCELLED')) AS cancelled,
           (SELECT data->'result'->>'choice' FROM backburner.journal j
             WHERE j.effect_id = e.effect_id AND type = 'EFFECT_RESOLVED') AS choice
    FROM backburner.effects e WHERE e.run_id = ANY(%s::uuid[])
"""
_RUNS: Final = "SELECT run_id::text, state FROM backburner.runs WHERE NOT run_id = ANY(%s::uuid[])"
_ROWS: Final = """
    SELECT run_id::text, seq, type, data->'value'->>'value' AS value FROM backburner.journal
    WHERE run_id = ANY(%s::uuid[]) AND type IN ('RUN_CREATED', 'SIGNAL_RECEIVED', 'RUN_CANCEL_REQUESTED')
"""
_WHY: Final = {
    "now": "SELECT clock_timestamp() AS at",
    "head": "SELECT * FROM backburner.run_heads WHERE run_id = %(run_id)s",
    "open effect": """SELECT key, kind, state, attempt, executor_id, incarnation, session_no, dispatched_at, not_before,
        max_attempts, cancel_reason FROM backburner.effects WHERE run_id = %(run_id)s AND settled_seq IS NULL""",
    "row": """SELECT * FROM (SELECT seq, type, effect_key, attempt, recorded_at, writer FROM backburner.journal
        WHERE run_id = %(run_id)s ORDER BY seq DESC LIMIT 8) x ORDER BY seq""",
    "timer": "SELECT * FROM backburner.timers WHERE run_id = %(run_id)s",
    "executor": """SELECT executor_id, incarnation, session_no, holder, state, connected_at, seen_at
        FROM backburner.executors""",
    "shards": "SELECT owner, count(*), max(expires_at) AS lease FROM backburner.shards GROUP BY 1",
}
_ENDED: Final = frozenset({"COMPLETED", "FAILED", "CANCELLED", "CONTINUED"})
_SECONDS: Final = 60.0


@dataclass
class Checked:
    """What was judged so far."""

    runs: set[str] = field(default_factory=set)
    effects: int = 0
    marked: int = 0
    rows: int = 0
    agents: Counter[str] = field(default_factory=Counter)


class Checker:
    """Checks runs once, when they have ended; those that nobody waited for have a little longer."""

    def __init__(self, world: World, real: Real | None = None) -> None:
        self._world = world
        self._real = real
        self._dsn = world.dsn
        self.checked = Checked()

    async def check(self, acknowledged: Acknowledged) -> list[str]:
        """What is wrong with the runs that were not checked before; each of them must end, or it counts as wrong."""
        async with await psycopg.AsyncConnection.connect(
            self._dsn, row_factory=dict_row, autocommit=True
        ) as connection:
            runs = await self._ended(connection)
            ids = [run["run_id"] for run in runs]
            effects = await (await connection.execute(_EFFECTS, [ids])).fetchall()
            rows = await (await connection.execute(_ROWS, [ids])).fetchall()
            found = [await _stuck(connection, run) for run in runs if run["state"] not in _ENDED]
            records = await agent_records.read(connection, self._world.folder, ids)
        found += [found async for found in self._verified(ids)]
        for effect in effects:
            found += self._marks(effect)
        found += _kept(acknowledged, set(ids), rows, {(e["run_id"], e["key"]): e for e in effects})
        found += agent_checks.wrong(records)
        found += [] if self._real is None else self._real.wrong(records)
        self.checked.agents += agent_records.counted(records)
        found += await _orphans(set(ids))
        found += await places.left(self._world.folder)
        found += await _free_slots(self._world)
        self.checked.runs |= set(ids)
        self.checked.effects += len(effects)
        return found

    async def _ended(self, connection: psycopg.AsyncConnection[dict[str, Any]]) -> list[dict[str, Any]]:
        """The runs once they have ended; those that nobody waited for, and children, have some time to go."""
        deadline = asyncio.get_running_loop().time() + _SECONDS
        while True:
            runs = await (await connection.execute(_RUNS, [list(self.checked.runs)])).fetchall()
            late = asyncio.get_running_loop().time() > deadline
            if late or all(run["state"] in _ENDED for run in runs):
                return runs
            await asyncio.sleep(0.2)

    async def _verified(self, ids: list[str]) -> Any:
        async for verified in verify(self._dsn, ids):
            self.checked.rows += verified.rows
            for violation in verified.violations:
                yield f"verify: {violation}"

    def _marks(self, effect: Mapping[str, Any]) -> Iterator[str]:
        """Nothing started more often than the journal says, nor than was asked for; what succeeded did start."""
        path = Path(mark_path(str(self._world.folder), effect["run_id"], effect["key"]))
        starts = len(path.read_text().splitlines()) if path.exists() else 0
        self.checked.marked += starts
        name = f"effect {effect['run_id']}/{effect['key']} ({effect['state']})"
        if starts > effect["may_have_started"]:
            yield f"{name} started {starts} times, the journal knows of {effect['may_have_started']}"
        if starts > effect["max_attempts"]:
            yield f"{name} started {starts} times, at most {effect['max_attempts']} were asked for"


async def _stuck(connection: psycopg.AsyncConnection[dict[str, Any]], run: Mapping[str, Any]) -> str:
    """A run that has not ended, with all that says why."""
    said = [f"run {run['run_id']} is {run['state']}"]
    for title, statement in _WHY.items():
        rows = await (await connection.execute(statement, {"run_id": run["run_id"]})).fetchall()
        said += [f"  {title}: {' '.join(f'{name}={value}' for name, value in row.items())}" for row in rows]
    return "\n".join(said)


def _kept(
    said: Acknowledged, ids: set[str], rows: list[dict[str, Any]], effects: Mapping[tuple[str, str], Mapping[str, Any]]
) -> Iterator[str]:
    """Whatever was acknowledged is in the journal."""
    by_type: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_type[row["type"]].append(row)
    created = {row["run_id"] for row in by_type["RUN_CREATED"]}
    cancelled = {row["run_id"] for row in by_type["RUN_CANCEL_REQUESTED"]}
    for run_id in (said.runs & ids) - created:
        yield f"run {run_id} was acknowledged and has no journal"
    yield from _signals({signal for signal in said.signals if signal[0] in ids}, by_type["SIGNAL_RECEIVED"])
    for run_id in (said.run_cancels & ids) - cancelled:
        yield f"the cancel of run {run_id} was acknowledged and is not in the journal"
    for name in {name for name in said.requests | said.effect_cancels if name[0] in ids}:
        effect = effects.get(name)
        if effect is None or (name in said.effect_cancels and not effect["cancelled"]):
            yield f"what was acknowledged of effect {name} is not in the journal"
    for run_id, key, choice in said.answers:
        if run_id in ids and effects[run_id, key]["choice"] != choice:
            yield f"{run_id}/{key} was answered {choice}; the journal has {effects[run_id, key]['choice']}"


def _signals(said: set[tuple[str, int, str]], rows: list[dict[str, Any]]) -> Iterator[str]:
    """Each signal that was acknowledged is there, once."""
    for signal in said - {(row["run_id"], row["seq"], row["value"]) for row in rows}:
        yield f"signal {signal} was acknowledged and is not in the journal"
    # Of a run that went on as another one, what it had not taken is in both journals.
    received = Counter((row["run_id"], row["value"]) for row in rows)
    for (run_id, value), times in received.items():
        if times > 1:
            yield f"signal {value} was sent once and is in the journal of run {run_id} {times} times"


async def _free_slots(world: World) -> list[str]:
    """Slots that schedulers count as taken though nothing runs; a poll may have to find that first."""
    deadline = asyncio.get_running_loop().time() + _SECONDS
    while True:
        taken = [text for address in world.addresses async for text in _taken(address)]
        if not taken or asyncio.get_running_loop().time() > deadline:
            return taken
        await asyncio.sleep(0.3)


async def _taken(address: str) -> AsyncIterator[str]:
    async with grpc.aio.insecure_channel(address) as channel:
        operator = operator_grpc.OperatorServiceStub(channel)
        answer = await operator.ListExecutors(operator_pb.ListExecutorsRequest(), timeout=20, wait_for_ready=True)
    for executor in answer.executors:
        for pool, taken in executor.slots_taken.items():
            if taken:
                yield f"{taken} slots of {executor.executor_id} for {pool} are taken by nothing"


async def _orphans(ids: set[str]) -> list[str]:
    """Processes of attempts whose runs have ended; what is being killed has some seconds to go."""
    deadline = asyncio.get_running_loop().time() + _SECONDS
    while True:
        found = [f"process {pid} of run {run_id} is alive" for pid, run_id in children() if run_id in ids]
        if not found or asyncio.get_running_loop().time() > deadline:
            return found
        await asyncio.sleep(0.2)


def children() -> Iterator[tuple[int, str]]:
    """Every process that belongs to an attempt, with the run."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(PermissionError, FileNotFoundError, ProcessLookupError):
            for entry in (process / "environ").read_bytes().split(b"\0"):
                name, _, value = entry.partition(b"=")
                if name == b"BACKBURNER_RUN_ID" and alive(int(process.name)):
                    yield int(process.name), value.decode()
