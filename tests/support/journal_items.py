"""Builds items of the journal's functions and calls them, for the tests of the journal.

A `Scene` is one connection to a migrated database. It numbers the iterations of its runs, keeps the tokens of what it
has claimed, and answers with rows as dicts.
"""

import hashlib
import json
import secrets
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

Row = dict[str, Any]
OWNER: Final = "scheduler/test"

_EFFECT: Final[Row] = {
    "kind": "SHELL", "name": "make", "harness": "shell", "pool": "shell", "capabilities": ["shell"],
    "background": False, "priority": 0, "group_id": None, "group_max": None, "group_strategy": None, "not_before": None,
    "queue_timeout_s": None, "total_timeout_s": None, "max_attempts": 3, "initial_s": 0.0, "backoff": 2.0,
    "max_interval_s": 60.0, "non_retryable": [], "on_run_end": "WAIT", "labels": {}, "executor_labels": {},
    "poll_interval_s": 1.0, "dispatch": None,
}  # fmt: skip


@dataclass(frozen=True)
class Session:
    """A session of an executor."""

    executor_id: str
    incarnation: str
    session_no: int
    capabilities: tuple[str, ...] = ("shell",)
    labels: tuple[tuple[str, str], ...] = ()
    namespace: str = "default"


@dataclass(frozen=True)
class Attempt:
    """A dispatched attempt and its secret."""

    run_id: str
    effect_id: str
    key: str
    attempt: int
    token: str
    seq: int
    row: Mapping[str, Any]

    @property
    def identity(self) -> Row:
        """What every item of an executor carries."""
        return {"run_id": self.run_id, "effect_id": self.effect_id, "attempt": self.attempt, "token": self.token}


def new_id() -> str:
    """A fresh id."""
    return str(uuid.uuid4())


def run_item(run_id: str | None = None, **changes: Any) -> Row:
    """An item of create_runs_v1."""
    item = {
        "run_id": run_id or new_id(), "namespace": "default", "key": None, "process": "build", "client_driven": False,
        "labels": {}, "input_digest": "d1", "actor": "api/test", "data": {"process": "build"}, "owner": None,
    }  # fmt: skip
    return item | changes


def request_row(key: str, effect_id: str | None = None, **x: Any) -> Row:
    """A row of append_v1 that asks for an effect; `x` changes what is known of it."""
    return {
        "type": "EFFECT_REQUESTED", "cause": 1, "effect_id": effect_id or new_id(), "effect_key": key,
        "data": {"spec": {"shell": {"command": key}}}, "x": _EFFECT | x,
    }  # fmt: skip


def external_row(key: str, **x: Any) -> Row:
    """A row that asks for an effect which no executor has."""
    waits = {"kind": "EXTERNAL", "harness": "", "pool": "", "capabilities": []}
    return request_row(key, **(waits | x))


def cancel_row(effect_id: str, key: str, reason: str = "EFFECT_REASON_CANCELLED_BY_PROCESS") -> Row:
    """A row that asks for the cancel of an effect."""
    data = {"reason": reason, "message": "enough"}
    return {"type": "EFFECT_CANCEL_REQUESTED", "cause": 1, "effect_id": effect_id, "effect_key": key, "data": data}


def resolve_row(effect_id: str, key: str, state: str = "TIMED_OUT") -> Row:
    """A row of the owner that settles an effect."""
    data = {"state": f"EFFECT_STATE_{state}", "error": {"reason": "EFFECT_REASON_TIMEOUT_TOTAL", "message": "late"}}
    return {"type": "EFFECT_RESOLVED", "cause": 0, "effect_id": effect_id, "effect_key": key, "data": data}


def plain_row(type_: str, **data: Any) -> Row:
    """A row about the run itself."""
    return {"type": type_, "cause": 1, "data": data}


class Scene:
    """One connection, and what the callers of the functions keep in memory."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.connection = psycopg.connect(dsn, autocommit=True, row_factory=dict_row)
        self.iterations: dict[str, int] = defaultdict(int)

    def query(self, statement: str, *parameters: Any) -> list[Row]:
        """Rows of a statement."""
        cursor = self.connection.execute(cast("Any", statement), parameters or None)
        return cursor.fetchall() if cursor.description else []

    def one(self, statement: str, *parameters: Any) -> Row:
        """The only row of a statement."""
        [row] = self.query(statement, *parameters)
        return row

    def call(self, function: str, items: Any) -> list[Row]:
        """Calls a function that takes one jsonb; rows in the order of the items."""
        statement = sql.SQL("SELECT * FROM backburner.{}(%s::jsonb)").format(sql.Identifier(function))
        rows = self.connection.execute(statement, [json.dumps(items)]).fetchall()
        return sorted(rows, key=lambda row: row["ord"]) if rows and "ord" in rows[0] else rows

    # -- runs --------------------------------------------------------------------------------------------------

    def run(self, **changes: Any) -> str:
        """A new run."""
        [row] = self.call("create_runs_v1", [run_item(**changes)])
        assert (row["outcome"], row["created"]) == ("ok", True)
        return str(row["run_id"])

    def append_item(self, run_id: str, rows: Sequence[Row], epoch: int = 0) -> Row:
        """The next iteration of a run."""
        self.iterations[run_id] += 1
        return {
            "run_id": run_id, "epoch": epoch, "iteration": self.iterations[run_id], "actor": OWNER, "rows": rows,
        }  # fmt: skip

    def append(self, run_id: str, *rows: Row, epoch: int = 0) -> Row:
        """Appends the rows of the next iteration."""
        [answer] = self.call("append_v1", [self.append_item(run_id, rows, epoch)])
        return answer

    def request(self, run_id: str, key: str, **x: Any) -> str:
        """Asks for one effect; answers with its id."""
        row = request_row(key, **x)
        assert self.append(run_id, row)["outcome"] == "ok"
        return str(row["effect_id"])

    def cancel(self, run_id: str, effect_id: str | None = None) -> Row:
        """A cancel from outside."""
        item = {
            "run_id": run_id, "effect_id": effect_id, "reason": "EFFECT_REASON_CANCELLED_BY_USER", "message": "stop",
            "actor": "api/test",
        }  # fmt: skip
        [answer] = self.call("request_cancels_v1", [item])
        return answer

    def resume(self, run_id: str) -> Row:
        """A halted or parked run goes on."""
        item = {"run_id": run_id, "reason": "", "actor": "api/test", "call_id": new_id()}
        [answer] = self.call("resume_runs_v1", [item])
        return answer

    def resolve(self, run_id: str, effect_id: str, state: str = "SUCCEEDED", **values: Any) -> Row:
        """An answer from outside."""
        item = {
            "run_id": run_id, "effect_id": effect_id, "actor": "api/test", "state": f"EFFECT_STATE_{state}",
            "result": {"value": 1}, "error": None,
        }  # fmt: skip
        [answer] = self.call("resolve_external_v1", [item | values])
        return answer

    # -- executors ---------------------------------------------------------------------------------------------

    def hello(self, executor_id: str = "e1", incarnation: str = "i1", **changes: Any) -> Session:
        """A new session."""
        hello: Row = {
            "executor_id": executor_id, "incarnation": incarnation, "holder": "s1", "address": "", "pools": {},
            "namespace": "default", "capabilities": ["shell"], "labels": {}, "version": "1", "draining": False,
            "clock_skew_s": 0.0, "succeeds": [],
        }  # fmt: skip
        hello |= changes
        [row] = self.call("executor_hello_v1", hello)
        labels = tuple(hello["labels"].items())
        capabilities = tuple(hello["capabilities"])
        return Session(executor_id, incarnation, row["session_no"], capabilities, labels, hello["namespace"])

    def claim_item(self, session: Session, pools: Sequence[Row], tokens: Sequence[str]) -> Row:
        """The argument of claim_v1."""
        return {
            "executor_id": session.executor_id, "incarnation": session.incarnation, "session_no": session.session_no,
            "namespace": session.namespace, "capabilities": session.capabilities, "labels": dict(session.labels),
            "pools": pools, "token_hashes": [token_hash(token) for token in tokens], "limit": len(tokens),
            "actor": "s1",
        }  # fmt: skip

    def claim(
        self, session: Session, foreground: int = 100, background: int | None = None, pool: str = "shell"
    ) -> list[Attempt]:
        """Takes queued effects for a session."""
        tokens = [secrets.token_hex(16) for _ in range(foreground)]
        slots = {"pool": pool, "foreground": foreground, "background": foreground if background is None else background}
        rows = self.call("claim_v1", self.claim_item(session, [slots], tokens))
        # a row without attempt says that some runs were busy
        return [_attempt(row, tokens[row["token_index"]]) for row in rows if row["token_index"] >= 0]

    def dispatched(self, session: Session, run_id: str, key: str = "a", **x: Any) -> Attempt:
        """An effect that is asked for and claimed."""
        effect_id = self.request(run_id, key, **x)
        [attempt] = [a for a in self.claim(session) if a.effect_id == effect_id]
        return attempt

    def fast(self, session: Session, run_id: str, key: str, **x: Any) -> tuple[Row, Attempt]:
        """An effect whose dispatch is part of its request: the append's answer, and the attempt if it was granted."""
        token = secrets.token_hex(16)
        row = request_row(key, dispatch=fast_dispatch(session, token), **x)
        answer = self.append(run_id, row)
        return answer, Attempt(run_id, row["effect_id"], key, 1, token, 0, row)

    def started(self, attempt: Attempt, pid: int = 1) -> Row:
        """The attempt's child runs."""
        [row] = self.call("attempts_started_v1", [attempt.identity | {"pid": pid}])
        return row

    def progress(self, attempt: Attempt, ordinal: int, *, durable: bool = True) -> Row:
        """Progress of the attempt."""
        values = {"ordinal": ordinal, "progress": {"percent": ordinal}, "usage": None, "durable": durable}
        [row] = self.call("attempts_progress_v1", [attempt.identity | values])
        return row

    def settle(self, attempt: Attempt, outcome: str = "succeeded", **values: Any) -> Row:
        """The attempt's outcome."""
        [row] = self.call("attempts_settle_v1", [settle_item(attempt, outcome, **values)])
        return row

    def lost(self, attempt: Attempt, *, never_started: bool = False, epoch: int = 0) -> Row:
        """The owner declares the attempt lost."""
        [row] = self.call("attempts_lost_v1", [lost_item(attempt, never_started=never_started, epoch=epoch)])
        return row

    # -- looking -----------------------------------------------------------------------------------------------

    def journal(self, run_id: str) -> list[Row]:
        """All rows of a run."""
        return self.query("SELECT * FROM backburner.journal WHERE run_id = %s ORDER BY seq", run_id)

    def types(self, run_id: str) -> list[str]:
        """Types of all rows of a run."""
        return [row["type"] for row in self.journal(run_id)]

    def effect(self, effect_id: str) -> Row:
        """The projection of an effect."""
        return self.one("SELECT * FROM backburner.effects WHERE effect_id = %s", effect_id)

    def head(self, run_id: str) -> Row:
        """The head of a run."""
        return self.one("SELECT * FROM backburner.run_heads WHERE run_id = %s", run_id)

    def queued(self) -> set[str]:
        """Effects in the queue."""
        return {str(row["effect_id"]) for row in self.query("SELECT effect_id FROM backburner.dispatch_queue")}

    def rows_written(self) -> int:
        """Rows in the journal."""
        count: int = self.one("SELECT count(*) AS n FROM backburner.journal")["n"]
        return count


def settle_item(attempt: Attempt, outcome: str = "succeeded", **values: Any) -> Row:
    """An item of attempts_settle_v1."""
    failed = {"reason": "EFFECT_REASON_EXITED_NONZERO", "message": "exit code 1"}
    item: Row = {
        "executor_id": "e1", "outcome": outcome, "reason": None, "message": "", "result": None, "error": None,
        "death": "DEATH_PROVEN", "elapsed_s": 1.5, "retry_after_s": None, "final": False,
    }  # fmt: skip
    item |= {"result": {"value": attempt.key}} if outcome == "succeeded" else {"error": failed, **failed}
    return attempt.identity | item | values


def lost_item(attempt: Attempt, *, never_started: bool = False, epoch: int = 0) -> Row:
    """An item of attempts_lost_v1."""
    return {
        "run_id": attempt.run_id, "epoch": epoch, "effect_id": attempt.effect_id, "attempt": attempt.attempt,
        "never_started": never_started, "reason": "EFFECT_REASON_EXECUTOR_LOST", "message": "gone", "actor": OWNER,
    }  # fmt: skip


def fast_dispatch(session: Session, token: str) -> Row:
    """The wish for a dispatch in the request's own commit."""
    return {
        "executor_id": session.executor_id, "incarnation": session.incarnation, "session_no": session.session_no,
        "token_hash": token_hash(token), "harness": "shell",
    }  # fmt: skip


def token_hash(token: str) -> str:
    """What the database keeps of a token."""
    return hashlib.sha256(bytes.fromhex(token)).hexdigest()


@contextmanager
def scene_at(dsn: str) -> Iterator[Scene]:
    """A scene, closed at the end."""
    scene = Scene(dsn)
    try:
        yield scene
    finally:
        scene.connection.close()


def _attempt(row: Row, token: str) -> Attempt:
    ids = str(row["run_id"]), str(row["effect_id"])
    return Attempt(*ids, row["effect_key"], row["attempt"], token, row["seq"], row)
