"""Items of the journal's SQL functions, as the services send them. Pure: the same arguments give the same item."""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final, LiteralString

SCHEDULER: Final = "s1"
EXECUTOR: Final = "e1"
INCARNATION: Final = "7b0f4f0e-2f0e-4f43-9d4c-1f3d2b7f0a11"
NAMESPACE: Final = "default"
CAPABILITIES: Final = ("shell", "function/noop", "agent/codex")
NOWHERE: Final = "01890a5d-ac96-774b-bcce-b302099a8057"
WAITING_KINDS: Final = ("EXTERNAL", "RUN", "TIMER")

#: Columns of a requested effect, as an engine fills them in when nothing else was asked for.
DEFAULTS: Final[Mapping[str, Any]] = {
    "kind": "FUNCTION", "name": "noop", "harness": "function", "pool": "functions", "capabilities": ["function/noop"],
    "background": False, "priority": 0, "group_id": None, "group_max": None, "group_strategy": None, "not_before": None,
    "queue_timeout_s": None, "total_timeout_s": None, "max_attempts": 1, "initial_s": 0.0, "backoff": 2.0,
    "max_interval_s": 300.0, "non_retryable": [], "on_run_end": "WAIT", "labels": {}, "executor_labels": {},
    "poll_interval_s": 5.0, "dispatch": None,
}  # fmt: skip

Item = dict[str, Any]


def calling(function: LiteralString) -> LiteralString:
    """The statement that calls one of the array functions."""
    return "SELECT * FROM backburner." + function + "(%s::jsonb)"


def effect_id(run_id: str, key: str) -> str:
    """Id of an effect: its run and key, as the context derives it."""
    return str(uuid.uuid5(uuid.UUID(run_id), key))


def token_of(run_id: str, key: str, attempt: int = 1) -> bytes:
    """The secret of an attempt. A real one is random; here a test can name it."""
    return hashlib.sha256(f"{run_id}/{key}/{attempt}".encode()).digest()[:16]


def hash_of(token: bytes) -> str:
    """What the database is told of a token."""
    return hashlib.sha256(token).hexdigest()


def created(run_id: str, **fields: Any) -> Item:
    """An item of create_runs_v1."""
    return {
        "run_id": run_id, "namespace": NAMESPACE, "key": None, "process": "p", "client_driven": False, "labels": {},
        "input_digest": "d", "actor": "client/t", "data": {"process": "p"}, "owner": {"scheduler_id": SCHEDULER},
    } | fields  # fmt: skip


def requested(run_id: str, key: str, *, cause: int = 1, **columns: Any) -> Item:
    """An EFFECT_REQUESTED row of an append."""
    x = {**DEFAULTS, **columns}
    work = {"external": {}} if x["kind"] in WAITING_KINDS else {"function": {"function": "noop"}}
    return about(run_id, key, "EFFECT_REQUESTED", {"spec": {"name": x["name"], **work}, "digest": "d"}, cause) | {
        "x": x
    }


def child(run_id: str, key: str, child_id: str = "", *, cause: int = 1, **columns: Any) -> Item:
    """An EFFECT_REQUESTED row for a child run."""
    made = requested(run_id, key, cause=cause, kind="RUN", capabilities=[], pool="", **columns)
    made["data"]["spec"] = {"name": "p", "run": {"process": "p"}}
    data = {"process": "p", "parent_run_id": run_id, "parent_effect_id": made["effect_id"]}
    made["x"]["child"] = {"run_id": child_id or later_than(run_id), "input_digest": "d", "data": data}
    return made


def continued(run_id: str, new_run_id: str = "", cause: int = 1, **data: Any) -> Item:
    """A RUN_CONTINUED row."""
    return row("RUN_CONTINUED", cause, new_run_id=new_run_id or later_than(run_id), input={"n": 2}, **data)


def later_than(run_id: str) -> str:
    """A fresh id that is greater than this one, as ids of later runs are."""
    fresh = uuid.uuid4().int >> 64
    return str(uuid.UUID(int=(uuid.UUID(run_id).int >> 64 << 64) + (1 << 64) + fresh))


def dispatch(run_id: str, key: str, session_no: int) -> Item:
    """The executor that a request is to go to at once."""
    return {
        "executor_id": EXECUTOR, "incarnation": INCARNATION, "session_no": session_no, "harness": "function",
        "token_hash": hash_of(token_of(run_id, key)),
    }  # fmt: skip


def about(run_id: str, key: str, type_: str, data: Mapping[str, Any], cause: int = 1) -> Item:
    """A row about an effect."""
    named = {"effect_id": effect_id(run_id, key), "effect_key": key}
    return {"type": type_, "cause": cause, "data": dict(data), **named}


def row(type_: str, cause: int = 1, **data: Any) -> Item:
    """A row about the run itself."""
    return {"type": type_, "cause": cause, "data": data}


def cancel(run_id: str, key: str, reason: str = "RACE_LOST", cause: int = 1) -> Item:
    """A cancel that process code asks for."""
    return about(run_id, key, "EFFECT_CANCEL_REQUESTED", {"reason": f"EFFECT_REASON_{reason}"}, cause)


def resolved(run_id: str, key: str, state: str = "TIMED_OUT", reason: str = "TIMEOUT_TOTAL") -> Item:
    """A settlement by the owner."""
    data = {"state": f"EFFECT_STATE_{state}", "error": {"reason": f"EFFECT_REASON_{reason}"}}
    return about(run_id, key, "EFFECT_RESOLVED", data, 0)


def settled(run_id: str, key: str, outcome: str = "succeeded", attempt: int = 1, **fields: Any) -> Item:
    """An item of attempts_settle_v1."""
    why = fields.pop("why", "EXIT_CODE")
    reason = None if outcome == "succeeded" else f"EFFECT_REASON_{why}"
    return attempt_of(run_id, key, attempt) | {
        "executor_id": EXECUTOR, "outcome": outcome, "reason": reason, "message": None,
        "result": {"value": {"value": key}}, "error": reason and {"reason": reason}, "death": None, "elapsed_s": 0.25,
        "retry_after_s": None, "final": False,
    } | fields  # fmt: skip


def attempt_of(run_id: str, key: str, attempt: int = 1, **fields: Any) -> Item:
    """What every item of an executor's function begins with."""
    return {
        "run_id": run_id,
        "effect_id": effect_id(run_id, key),
        "attempt": attempt,
        "token": token_of(run_id, key, attempt).hex(),
    } | fields


def lost(run_id: str, key: str, epoch: int, attempt: int = 1, **fields: Any) -> Item:
    """An item of attempts_lost_v1."""
    return {
        "run_id": run_id, "epoch": epoch, "effect_id": effect_id(run_id, key), "attempt": attempt,
        "never_started": False, "reason": "EFFECT_REASON_EXECUTOR_LOST", "message": "gone", "actor": "scheduler/s1",
    } | fields  # fmt: skip


def cancel_request(run_id: str, key: str | None = None, **fields: Any) -> Item:
    """An item of request_cancels_v1."""
    return {
        "run_id": run_id, "effect_id": key and effect_id(run_id, key), "reason": "EFFECT_REASON_REQUESTED",
        "message": "enough", "actor": "client/t",
    } | fields  # fmt: skip


def control(run_id: str, **fields: Any) -> Item:
    """An item of halt_runs_v1 or resume_runs_v1."""
    return {"run_id": run_id, "reason": "look", "actor": "client/t", "call_id": uuid.uuid4().hex} | fields


def signal(run_id: str, request_id: str = "", **fields: Any) -> Item:
    """An item of signal_runs_v1."""
    return {
        "run_id": run_id, "namespace": NAMESPACE, "request_id": request_id or uuid.uuid4().hex, "digest": "d",
        "data": {"name": "go", "value": {"value": 1}}, "actor": "client/t",
    } | fields  # fmt: skip


def client_start(run_id: str, **fields: Any) -> Item:
    """An item of open_clients_v1: another start."""
    return {"run_id": run_id, "start_id": uuid.uuid4().hex, "idle_timeout_s": 3600.0, "actor": "client/t"} | fields


def client_request(
    run_id: str,
    *keys: str,
    client_epoch: int = 1,
    session_no: int | None = None,
    digest: str = "d",
    use_recorded: bool = False,
    **columns: Any,
) -> Item:
    """An item of client_requests_v1; with a session the effects are to go to the executor at once."""
    rows = []
    for key in keys:
        given = columns | ({"dispatch": dispatch(run_id, key, session_no)} if session_no else {})
        row_ = requested(run_id, key, cause=0, **given) | {"use_recorded": use_recorded}
        row_["data"] = row_["data"] | {"digest": digest}
        rows.append(row_)
    names = {"actor": "client/t", "owner": f"scheduler/{SCHEDULER}"}
    return {"run_id": run_id, "client_epoch": client_epoch, "rows": rows} | names


def finish(run_id: str, *, state: str = "COMPLETED", value: Any = 1, **fields: Any) -> Item:
    """An item of finish_runs_v1."""
    data = {"error": {"message": value}} if state == "FAILED" else {"result": {"value": value}}
    return {
        "run_id": run_id, "client_epoch": 1, "state": state, "data": data, "wait": False, "actor": "client/t",
    } | fields  # fmt: skip


def idle(run_id: str, epoch: int) -> Item:
    """An item of halt_idle_v1."""
    return {"run_id": run_id, "epoch": epoch, "actor": "scheduler/s1"}


def answer(run_id: str, key: str, **fields: Any) -> Item:
    """An item of resolve_external_v1."""
    return {
        "run_id": run_id, "effect_id": effect_id(run_id, key), "actor": "client/t",
        "state": "EFFECT_STATE_SUCCEEDED", "result": {"value": {"value": 1}}, "error": None,
    } | fields  # fmt: skip


def hello(executor_id: str = EXECUTOR, **fields: Any) -> Item:
    """The argument of executor_hello_v1."""
    return {
        "executor_id": executor_id, "incarnation": INCARNATION, "holder": SCHEDULER, "address": "",
        "namespace": NAMESPACE, "pools": {}, "capabilities": list(CAPABILITIES), "labels": {}, "version": "t",
        "draining": False, "clock_skew_s": 0.0, "succeeds": [],
    } | fields  # fmt: skip


def claiming(session_no: int, hashes: Sequence[str], *, slots: int = 10, background: int = 10, **fields: Any) -> Item:
    """The argument of claim_v1."""
    return {
        "executor_id": EXECUTOR, "incarnation": INCARNATION, "session_no": session_no, "namespace": NAMESPACE,
        "capabilities": list(CAPABILITIES), "labels": {}, "token_hashes": list(hashes), "limit": len(hashes),
        "pools": [{"pool": "functions", "foreground": slots, "background": background}], "actor": SCHEDULER,
    } | fields  # fmt: skip
