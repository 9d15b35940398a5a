"""What is known of agents when all has ended: the journal's rows, what was counted, and what they wrote themselves."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg

from tests.crash.chaos.agents import NAMES

Row = Mapping[str, Any]

_EFFECTS: Final = """
    SELECT effect_id::text, run_id::text, key, state, budget, harness FROM backburner.effects
    WHERE run_id = ANY(%(ids)s::uuid[]) AND kind = 'AGENT'
"""
_ROWS: Final = """
    SELECT j.run_id::text, j.seq, j.type, j.effect_id::text, j.attempt, j.writer, j.data FROM backburner.journal j
    JOIN backburner.effects e ON e.effect_id = j.effect_id
    WHERE j.run_id = ANY(%(ids)s::uuid[]) AND e.kind = 'AGENT' ORDER BY j.run_id, j.seq
"""
_USAGE: Final = """
    SELECT run_id::text, effect_id::text, attempt, input_tokens, output_tokens FROM backburner.attempt_usage
    WHERE run_id = ANY(%(ids)s::uuid[])
"""
_BUDGETS: Final = """
    SELECT b.run_id::text, b.limits[1] AS tokens, b.used[1] AS used FROM backburner.run_budgets b
    JOIN backburner.runs r ON r.run_id = b.run_id
    WHERE b.run_id = ANY(%(ids)s::uuid[]) AND b.limits[1] IS NOT NULL AND r.previous_run_id IS NULL
"""
_TRANSCRIPTS: Final = """
    SELECT effect_id::text, attempt, offset_, data FROM backburner.effect_output
    WHERE run_id = ANY(%(ids)s::uuid[]) AND stream = 3 ORDER BY 1, 2, 3
"""
_ENDS: Final = frozenset(
    f"EFFECT_{name}" for name in ("RESOLVED", "CANCELLED", "ATTEMPT_FAILED", "ATTEMPT_LOST", "PARKED")
)


@dataclass
class Attempt:
    """One attempt. `ledger` is what the program wrote; `end` the row that ended it."""

    number: int
    dispatched: Row | None = None
    end: Row | None = None
    counted: int | None = None
    ledger: Sequence[Mapping[str, Any]] = ()
    transcript: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def reported(self) -> bool:
        """True when its executor has told its end: then it knows all that was consumed."""
        return self.end is not None and self.end["writer"].startswith("executor/")

    @property
    def starts(self) -> list[Mapping[str, Any]]:
        """The times that the program was started, but for turns that mend an answer."""
        return [entry for entry in self.ledger if "start" in entry and not entry["mends"]]

    def tokens(self, moment: str) -> int:
        """Tokens that were `begun` to be told, or `done` so."""
        return sum(sum(entry[moment]) for entry in self.ledger if moment in entry)


@dataclass
class Effect:
    """An effect of an agent."""

    row: Row
    attempts: dict[int, Attempt] = field(default_factory=dict)
    #: What was asked of the agent.
    spec: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"agent {self.row['run_id']}/{self.row['key']} ({self.row['effect_id']}, {self.row['state']})"

    @property
    def tokens_most(self) -> float | None:
        """Its own budget of tokens."""
        return (self.row["budget"] or {}).get("tokens")

    def attempt(self, number: int) -> Attempt:
        """That attempt, known or not."""
        return self.attempts.setdefault(number, Attempt(number))

    def ended(self) -> Row | None:
        """The row that settled it."""
        rows = [a.end for a in self.attempts.values() if a.end is not None]
        return next((row for row in rows if row["type"] in ("EFFECT_RESOLVED", "EFFECT_CANCELLED")), None)


@dataclass
class Records:
    """All of some runs."""

    effects: dict[str, Effect]
    #: Run, its limit of tokens, and what is counted of it.
    budgets: Sequence[Row]
    usage: Sequence[Row]

    def of_run(self, run_id: str) -> list[Effect]:
        """Its agents."""
        return [effect for effect in self.effects.values() if effect.row["run_id"] == run_id]


async def read(connection: psycopg.AsyncConnection[dict[str, Any]], folder: Path, ids: list[str]) -> Records:
    """The records of these runs, and what their agents wrote into the ledger."""
    found = {}
    for name, statement in _STATEMENTS.items():
        found[name] = await (await connection.execute(statement, {"ids": ids})).fetchall()
    effects = {row["effect_id"]: Effect(row) for row in found["effects"]}
    for row in found["rows"]:
        _take(effects[row["effect_id"]], row)
    for row in found["usage"]:
        if row["effect_id"] in effects:
            effects[row["effect_id"]].attempt(row["attempt"]).counted = row["input_tokens"] + row["output_tokens"]
    for row in found["transcripts"]:
        effects[row["effect_id"]].attempt(row["attempt"]).transcript.append((row["offset_"], bytes(row["data"])))
    for path in (folder / "ledger").iterdir():
        effect_id, _, number = path.name.partition("~")
        if effect_id in effects:
            effects[effect_id].attempt(int(number)).ledger = _entries(path)
    return Records(effects, found["budgets"], found["usage"])


_STATEMENTS: Final = {
    "effects": _EFFECTS, "rows": _ROWS, "usage": _USAGE, "budgets": _BUDGETS, "transcripts": _TRANSCRIPTS,
}  # fmt: skip


def _take(effect: Effect, row: Row) -> None:
    if row["type"] == "EFFECT_REQUESTED":
        effect.spec = row["data"]["spec"]["agent"]
    elif row["type"] == "EFFECT_DISPATCHED":
        effect.attempt(row["attempt"]).dispatched = row
    elif row["type"] in _ENDS and row["attempt"]:
        attempt = effect.attempt(row["attempt"])
        attempt.end = attempt.end or row  # what is lost and settled in one commit was lost


def _entries(path: Path) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def by_run(rows: Sequence[Row]) -> Mapping[str, list[Row]]:
    """Rows of each run."""
    found = defaultdict(list)
    for row in rows:
        found[row["run_id"]].append(row)
    return found


def counted(records: Records) -> Counter[str]:
    """What there was, for people."""
    attempts = [attempt for effect in records.effects.values() for attempt in effect.attempts.values()]
    ends = [attempt.end for attempt in attempts if attempt.end is not None]
    results = [end["data"].get("result", {}) for end in ends]
    return Counter(
        effects=len(records.effects),
        real=sum(effect.row["harness"] not in NAMES for effect in records.effects.values()),
        starts=sum(len(attempt.starts) for attempt in attempts),
        lost=sum(end["type"] == "EFFECT_ATTEMPT_LOST" and not end["data"].get("never_started") for end in ends),
        tokens=sum(int(attempt.counted or 0) for attempt in attempts),
        succeeded=sum(effect.row["state"] == "SUCCEEDED" for effect in records.effects.values()),
        parked=sum(end["type"] == "EFFECT_PARKED" for end in ends),
        failed_over=sum("next_harness" in end["data"] for end in ends),
        over_budget=sum("REASON_BUDGET" in str(end["data"].get("error", "")) for end in ends),
        mended=sum(result.get("repair_turns", 0) for result in results),
        continued=sum("continued_session_id" in result for result in results),
        workspaces=sum("workspace" in result for result in results),
    )
