"""Who may write what: the one table, by type of event. Nothing else inserts into the journal.

The fences of each function stand in its SQL; the table of the protocol is this one with its reasons. A test reads the
functions' bodies and compares.
"""

from typing import Final

#: Functions that a scheduler replica may call whether or not it owns the run.
ANY_REPLICA: Final = frozenset({"create_runs_v1", "request_cancels_v1", "resolve_external_v1"})
#: Functions of the replica that holds an executor's session, fenced by the session's number.
HOLDER: Final = frozenset({"claim_v1"})
#: Functions of the run's owner, fenced by its epoch.
OWNER: Final = frozenset({"append_v1", "attempts_lost_v1"})
#: Functions of executors, fenced by the attempt's token.
EXECUTOR: Final = frozenset({"attempts_started_v1", "attempts_progress_v1", "attempts_settle_v1"})

_OWNER_ROWS: Final = frozenset({"append_v1"})

#: Event type -> functions that write it. `append_v1` writes what its caller sends, and its own follow-up rows.
WRITERS: Final[dict[str, frozenset[str]]] = {
    "RUN_CREATED": frozenset({"create_runs_v1"}),
    "RUN_CANCEL_REQUESTED": frozenset({"request_cancels_v1"}),
    "RUN_CLOSING": _OWNER_ROWS,
    "RUN_COMPLETED": _OWNER_ROWS,
    "RUN_FAILED": _OWNER_ROWS,
    "RUN_CANCELLED": _OWNER_ROWS,
    "RUN_CONTINUED": _OWNER_ROWS,
    "RUN_HALTED": _OWNER_ROWS,
    "RUN_RESUMED": _OWNER_ROWS,
    "RUN_REPORTED": _OWNER_ROWS,
    "PROCESS_RUNTIME_ERROR": _OWNER_ROWS,
    "PROCESS_LOG": _OWNER_ROWS,
    "PATCH_MARKED": _OWNER_ROWS,
    "SIGNAL_RECEIVED": _OWNER_ROWS,
    "CHILD_RUN_STARTED": _OWNER_ROWS,
    "TIMER_SET": _OWNER_ROWS,
    "TIMER_FIRED": _OWNER_ROWS,
    "EFFECT_REQUESTED": _OWNER_ROWS,
    "EFFECT_REUSED": _OWNER_ROWS,
    "EFFECT_PARKED": _OWNER_ROWS,
    "EFFECT_DISPATCHED": frozenset({"append_v1", "claim_v1"}),
    "EFFECT_CANCEL_REQUESTED": frozenset({"append_v1", "request_cancels_v1"}),
    "EFFECT_ATTEMPT_LOST": frozenset({"attempts_lost_v1"}),
    "EFFECT_STARTED": frozenset({"attempts_started_v1"}),
    "EFFECT_PROGRESS": frozenset({"attempts_progress_v1"}),
    "EFFECT_ATTEMPT_FAILED": frozenset({"attempts_settle_v1"}),
    "EFFECT_SUPERSEDED": frozenset({"append_v1", "attempts_settle_v1"}),
    "EFFECT_RESOLVED": frozenset({"append_v1", "resolve_external_v1", "attempts_lost_v1", "attempts_settle_v1"}),
    "EFFECT_CANCELLED": frozenset({"append_v1", "request_cancels_v1", "attempts_lost_v1", "attempts_settle_v1"}),
}
