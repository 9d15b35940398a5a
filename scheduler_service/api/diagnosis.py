"""Diagnose: what is wrong and what to do about it. Each finding has a stable code that scripts may look for.

Works on what the database has, so that `backburner doctor` says the same when no service is up.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Final

from backburner.scheduler.v1 import operator_service_pb2 as pb
from backburner.scheduler.v1 import scheduler_service_pb2 as client_pb
from scheduler_service.api.breakers import described as breaker_described
from scheduler_service.api.diagnosis_services import database, schedulers
from scheduler_service.api.eta import no_history
from scheduler_service.api.findings import CRITICAL, INFO, WARNING, Row, builds, finding
from scheduler_service.api.holds import described
from scheduler_service.api.waiting import Situations, effect_waiting
from scheduler_service.journal.diagnosis import DiagnosisReads

_QUEUE_SECONDS: Final = 300.0
_SILENT_SECONDS: Final = 30.0
_SKEW_SECONDS: Final = 2.0
_APPROVAL_SECONDS: Final = 86_400.0
#: What is a finding of its own.
_FOUND_ALREADY: Final = (client_pb.WaitingOn.CAUSE_HOLD, client_pb.WaitingOn.CAUSE_BREAKER)


async def diagnose(reads: DiagnosisReads) -> list[pb.Finding]:
    """All findings, gravest first."""
    found = [one for check in _CHECKS async for one in check(reads)]
    return sorted(found, key=lambda one: -one.severity)


async def _runs(reads: DiagnosisReads) -> AsyncIterator[pb.Finding]:
    for row in await reads.rows("process_errors"):
        build = row["build"] or "unknown"
        message = f"{row['runs']} runs of {_process(row)} (build {build}) are parked: {row['kind']}"
        yield finding(CRITICAL, "PROCESS_ERRORS", message, row["subjects"])
    for row in await reads.rows("halted"):
        idle = row["halt_reason"] == "CLIENT_IDLE"
        why = "their client is silent" if idle else row["halt_reason"] or "no reason was given"
        code = "CLIENTS_IDLE" if idle else "RUNS_HALTED"
        yield finding(WARNING, code, f"{row['runs']} runs of {_process(row)} are halted: {why}", row["subjects"])
    for row in await reads.rows("long_histories"):
        message = f"the journal of run {row['run_id']} has {row['seq']:,} rows"
        yield finding(WARNING, "HISTORY_LONG", message, [row["run_id"]])


async def _queue(reads: DiagnosisReads) -> AsyncIterator[pb.Finding]:
    situation = await Situations(reads.clients, no_history, reads.clock).now()
    for hold in situation.holds:
        yield finding(WARNING, "HOLD_IN_FORCE", described(hold), [hold.hold_id])
    now = reads.clock.read()
    for breaker in situation.breakers:
        if breaker.until > now or not breaker.reset_known:
            yield finding(WARNING, "BREAKER_OPEN", breaker_described(breaker, now), [breaker.harness])
    for row in await reads.rows("queued"):
        filters = {"namespace": row["namespace"], "effect_id": row["oldest_id"]}
        page = await reads.clients.effects(limit=1, filters=filters)
        waiting = effect_waiting(page.rows[0], situation) if page.rows else None
        if waiting is None or waiting.cause in _FOUND_ALREADY:
            continue
        message = (
            f"{row['waiting']} effects of {row['capability']} in namespace {row['namespace']} wait, the oldest for "
            f"{row['age_s']:.0f} s: {waiting.message}"
        )
        if waiting.cause == client_pb.WaitingOn.CAUSE_NO_EXECUTOR:
            yield finding(CRITICAL, "NO_EXECUTOR", message, [row["oldest_id"]])
        elif row["age_s"] > _QUEUE_SECONDS:
            yield finding(WARNING, "QUEUE_AGE", message, [row["oldest_id"]])
    for row in await reads.rows("approvals"):
        if row["waiting"]:
            severity = WARNING if row["age_s"] > _APPROVAL_SECONDS else INFO
            message = f"{row['waiting']} external effects wait for an answer, the oldest for {row['age_s']:.0f} s"
            yield finding(severity, "APPROVALS_OPEN", message, row["subjects"])


async def _executors(reads: DiagnosisReads) -> AsyncIterator[pb.Finding]:
    rows = await reads.rows("executors")
    for row in rows:
        for found in (*_presence(row), *_condition(row), *_harnesses(row)):
            yield found
    for found in builds("EXECUTORS_MIXED", INFO, [row for row in rows if row["state"] == "CONNECTED"]):
        yield found
    for row in await reads.rows("silent"):
        message = (
            f"effect {row['key']} of run {row['run_id']} on executor {row['executor_id']} has been silent for "
            f"{row['silent_s']:.0f} s, its limit is {row['limit_s']:.0f} s"
        )
        yield finding(WARNING, "EFFECT_SILENT", message, [row["effect_id"]])


def _presence(row: Row) -> Iterable[pb.Finding]:
    name, attempts = row["executor_id"], sum(row["attempts"].values())
    if row["state"] == "LOST":
        message = f"executor {name} was declared dead; {attempts} attempts are not lost yet"
        yield finding(INFO, "EXECUTOR_LOST", message, [name])
    elif row["state"] == "DISCONNECTED" or row["silent_s"] > _SILENT_SECONDS:
        message = f"executor {name} was last heard of {row['silent_s']:.0f} s ago and has {attempts} attempts"
        yield finding(CRITICAL if attempts else WARNING, "EXECUTOR_AWAY", message, [name])
    if row["state"] == "DRAINING" or row["ordered_drain"] is not None:
        why = f": {row['ordered_drain']}" if row["ordered_drain"] else ""
        message = f"executor {name} takes nothing new{why}; it has {attempts} attempts"
        yield finding(INFO, "EXECUTOR_DRAINING", message, [name])


def _condition(row: Row) -> Iterable[pb.Finding]:
    name = row["executor_id"]
    if row["state"] == "CONNECTED":
        slots = {pool: has["slots"] for pool, has in row["pools"].items()}
        over = [pool for pool, count in row["attempts"].items() if count > slots.get(pool, 0)]
        if over:
            message = f"executor {name} has more attempts than slots: {', '.join(over)}"
            yield finding(WARNING, "EXECUTOR_OVER_SLOTS", message, [name])
        if not row["address"]:
            yield finding(INFO, "EXECUTOR_UNREACHABLE", f"executor {name} cannot be dialled", [name])
    if abs(row["clock_skew_s"]) > _SKEW_SECONDS:
        message = f"the clock of executor {name} is {row['clock_skew_s']:+.1f} s off"
        yield finding(WARNING, "CLOCK_SKEW", message, [name])


def _harnesses(row: Row) -> Iterable[pb.Finding]:
    """What the executor has said of the agent CLIs that are there; one that is not is no fault."""
    for check in row["harness_checks"] if row["state"] == "CONNECTED" else ():
        where = f"{check['name']} on executor {row['executor_id']}"
        subjects = [row["executor_id"], check["name"]]
        if not check.get("found"):
            if check.get("path"):
                message = f"{where} is there and cannot be used: {check.get('remedy', '')}"
                yield finding(WARNING, "HARNESS_BROKEN", message, subjects)
            continue
        if not check.get("version_known"):
            known = f": known are {check['known_versions']}" if check.get("known_versions") else ""
            message = f"{where} has version {check.get('version', '')}, which is not known to work{known}"
            yield finding(INFO, "HARNESS_VERSION_UNKNOWN", message, subjects)
        if check.get("login") == "HARNESS_LOGIN_MISSING":
            message = f"{where} is offered, and nobody is logged in: its agents will fail"
            yield finding(WARNING, "HARNESS_NOT_LOGGED_IN", message, subjects)


_CHECKS: Final[Sequence[Callable[[DiagnosisReads], AsyncIterator[pb.Finding]]]] = (
    _runs,
    _queue,
    _executors,
    schedulers,
    database,
)


def _process(row: Row) -> str:
    return f"process {row['process']}" if row["process"] else "clients"
