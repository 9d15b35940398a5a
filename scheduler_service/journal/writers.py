"""Who may write what: the one table, by type of event. Nothing else inserts into the journal.

The fences of each function stand in its SQL; the table of the protocol is this one with its reasons. A test reads the
functions' bodies and compares.
"""

from typing import Final

#: Functions that a scheduler replica may call whether or not it owns the run.
ANY_REPLICA: Final = frozenset({
    "create_runs_v1", "request_cancels_v1", "resolve_external_v1", "halt_runs_v1", "resume_runs_v1", "signal_runs_v1",
})  # fmt: skip
#: Functions of the replica that holds an executor's session, fenced by the session's number.
HOLDER: Final = frozenset({"claim_v1"})
#: Functions of the run's owner, fenced by its epoch.
OWNER: Final = frozenset({"append_v1", "attempts_lost_v1"})
#: Functions of executors, fenced by the attempt's token.
EXECUTOR: Final = frozenset({"attempts_started_v1", "attempts_progress_v1", "attempts_settle_v1"})

#: What the owner of a run sends in append_v1; anything else is refused there.
OWNER_SENDS: Final = frozenset({
    "RUN_CLOSING", "RUN_COMPLETED", "RUN_FAILED", "RUN_CANCELLED", "RUN_CONTINUED", "RUN_HALTED",
    "RUN_REPORTED", "PROCESS_RUNTIME_ERROR", "PROCESS_LOG", "PATCH_MARKED", "CHILD_RUN_STARTED", "TIMER_SET",
    "TIMER_FIRED", "EFFECT_REQUESTED", "EFFECT_CANCEL_REQUESTED", "EFFECT_RESOLVED",
})  # fmt: skip

#: Types that are reserved: the schema knows them, no function writes them yet.
RESERVED: Final = frozenset({"EFFECT_PARKED", "EFFECT_REUSED"})

_FURTHER: Final[dict[str, frozenset[str]]] = {
    "RUN_CREATED": frozenset({"create_runs_v1"}),
    "RUN_CANCEL_REQUESTED": frozenset({"request_cancels_v1"}),
    # By the process (ctx.halt), or from outside.
    "RUN_HALTED": frozenset({"append_v1", "halt_runs_v1"}),
    "RUN_RESUMED": frozenset({"resume_runs_v1"}),
    "SIGNAL_RECEIVED": frozenset({"signal_runs_v1"}),
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

#: Event type -> functions that write it: as rows their callers send, or as rows that follow from those.
WRITERS: Final[dict[str, frozenset[str]]] = (
    {type_: frozenset({"append_v1"}) for type_ in OWNER_SENDS} | _FURTHER | {type_: frozenset() for type_ in RESERVED}
)
