"""What a diagnosis can find: stable codes that scripts may look for, and what to do about each."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from backburner.scheduler.v1 import operator_service_pb2 as pb

Row = Mapping[str, Any]
INFO: Final = pb.Finding.SEVERITY_INFO
WARNING: Final = pb.Finding.SEVERITY_WARNING
CRITICAL: Final = pb.Finding.SEVERITY_CRITICAL

#: What can be found, and what to do about it.
REMEDIES: Final[Mapping[str, str]] = {
    "PROCESS_ERRORS": "`backburner show RUN` has the traceback; deploy the fix, then `backburner resume --state "
    "process_error --process NAME`",
    "RUNS_HALTED": "`backburner resume RUN` when the reason is gone",
    "CLIENTS_IDLE": "start the client again",
    "HISTORY_LONG": "let its process use ctx.continue_as_new: the journal ends at 200,000 rows",
    "NO_EXECUTOR": "start an executor that has it, or `backburner undrain` one; `backburner executors` lists them",
    "QUEUE_AGE": "add executors or slots, or halt what may wait",
    "HOLD_IN_FORCE": "`backburner unhold HOLD` when the reason is gone",
    "BREAKER_OPEN": "log in again, pay, or wait for the reset; `backburner breakers reset` closes it when that is done",
    "APPROVALS_OPEN": "`backburner approvals` lists and answers them",
    "EXECUTOR_LOST": "start it again, or leave it",
    "EXECUTOR_AWAY": "does it run, and reach a scheduler? `backburner expire EXECUTOR` when it is dead for certain",
    "EXECUTOR_DRAINING": "`backburner undrain EXECUTOR` ends an operator's order",
    "EXECUTOR_OVER_SLOTS": "its slots were lowered while it had work, or two executors share the id",
    "EXECUTOR_UNREACHABLE": "set BACKBURNER_EXECUTOR_ADDRESS; without it there is no live output of what it runs",
    "EXECUTORS_MIXED": "finish the roll-out",
    "CLOCK_SKEW": "let its machine keep time (NTP)",
    "HARNESS_BROKEN": "run it by hand, as the user of the executor; repair or remove it, or leave it out with --agent. "
    "It is looked at again by itself",
    "HARNESS_NOT_LOGGED_IN": "log in as the user of the executor, or give the executor a key: it is seen by itself. "
    "Or leave the CLI out with --agent",
    "HARNESS_VERSION_UNKNOWN": "it is used all the same: install a version that is known to work when its agents fail, "
    "`backburner harnesses` lists them",
    "EFFECT_SILENT": "its executor should have ended it: look there; `backburner expire` or `settle` end it by hand",
    "SHARDS_UNOWNED": "is a scheduler up, and does it reach the database?",
    "SCHEDULERS_RESTART": "look at their logs for why they end: shards change their owner with each",
    "SCHEDULERS_MIXED": "finish the roll-out",
    "TIMER_LAG": "the owners of these runs are overloaded or away",
    "SHARDS_LOST": "is it overloaded, or the database slow? Its leases (BACKBURNER_LEASE_SECONDS) ran out unrenewed",
    "ITERATION_LAG": "start more schedulers, or find the process whose steps compute for long: its work belongs in a "
    "@bb.function",
    "COMMITS_SLOW": "look at the disk of Postgres, at its synchronous standbys, and at who else works on it",
    "POOL_WAITERS": "start more schedulers, or ask less often: watch instead of polling",
    "SCHEMA_OLD": "run `backburner migrate`",
    "SCHEMA_NEWER": "upgrade this release",
    "WAL_HELD": "bring the standby back that reads the slot, or drop it: SELECT pg_drop_replication_slot('NAME')",
    "ARCHIVER_FAILING": "Postgres' log says why archive_command or archive_library fails; meanwhile WAL fills the disk",
    "DEAD_TUPLES": "let autovacuum keep up (is it on? do old transactions or slots hold it back?), or VACUUM by hand",
    "SIZES": "nothing, as long as the disk has room; `backburner prune` or BACKBURNER_RETENTION_DAYS make some",
}

_SUBJECTS_MAX: Final = 10


def finding(severity: pb.Finding.Severity.ValueType, code: str, message: str, subjects: Iterable[str]) -> pb.Finding:
    """A finding with what to do about it, and the first of its subjects."""
    shown = list(subjects)[:_SUBJECTS_MAX]
    return pb.Finding(severity=severity, code=code, message=message, remedy=REMEDIES[code], subjects=shown)


def builds(code: str, severity: pb.Finding.Severity.ValueType, rows: Iterable[Row]) -> Iterable[pb.Finding]:
    """A finding when rows are of several versions; the code begins with who they are."""
    versions = Counter(row["version"] for row in rows)
    if len(versions) > 1:
        said = ", ".join(f"{version} ({count})" for version, count in sorted(versions.items()))
        who = code.partition("_")[0].lower()
        yield finding(severity, code, f"{who} of several builds are up: {said}", sorted(versions))
