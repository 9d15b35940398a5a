"""Who may write what: the one table, by type of event. Nothing else inserts into the journal.

The fences of each function stand in its SQL; the table of the protocol is this one with its reasons. A test reads the
functions' bodies and compares.
"""

from typing import Final

#: Functions that a scheduler replica may call whether or not it owns the run.
ANY_REPLICA: Final = frozenset({
    "create_runs_v1", "request_cancels_v1", "resolve_external_v1", "halt_runs_v1", "resume_runs_v1", "signal_runs_v1",
})  # fmt: skip
#: Functions that any replica calls for the client of a client-driven run, fenced by that client's epoch. Its requests
#: may be dispatched in the same commit, to an executor whose session this replica holds.
CLIENT: Final = frozenset({"open_clients_v1", "client_requests_v1", "finish_runs_v1"})
#: Functions of the replica that holds an executor's session, fenced by the session's number.
HOLDER: Final = frozenset({"claim_v1"})
#: Functions of the run's owner, fenced by its epoch.
OWNER: Final = frozenset({"append_v1", "attempts_lost_v1", "halt_idle_v1", "settle_by_hand_v1"})
#: Functions of executors, fenced by the attempt's token.
EXECUTOR: Final = frozenset({"attempts_started_v1", "attempts_progress_v1", "attempts_settle_v1"})

#: What the owner of a run sends in append_v1; anything else is refused there.
OWNER_SENDS: Final = frozenset({
    "RUN_CLOSING", "RUN_COMPLETED", "RUN_FAILED", "RUN_CANCELLED", "RUN_CONTINUED", "RUN_HALTED",
    "RUN_REPORTED", "PROCESS_RUNTIME_ERROR", "PROCESS_LOG", "PATCH_MARKED", "TIMER_SET",
    "TIMER_FIRED", "EFFECT_REQUESTED", "EFFECT_CANCEL_REQUESTED", "EFFECT_RESOLVED",
})  # fmt: skip

#: Types that are reserved: the schema knows them, no function writes them yet.
RESERVED: Final = frozenset[str]()

_FURTHER: Final[dict[str, frozenset[str]]] = {
    # By the owner too: of a child run, and of the run that a run goes on as. Children of clients' runs as well.
    "RUN_CREATED": frozenset({"create_runs_v1", "append_v1", "client_requests_v1"}),
    # By the owner too: of a child run whose effect it cancels, and handed on to the run that a run goes on as.
    "RUN_CANCEL_REQUESTED": frozenset({"request_cancels_v1", "append_v1", "finish_runs_v1"}),
    # By the process (ctx.halt), from outside, or because the client of the run is silent.
    "RUN_HALTED": frozenset({"append_v1", "halt_runs_v1", "halt_idle_v1"}),
    # From outside, or because a silent client has called.
    "RUN_RESUMED": frozenset({"resume_runs_v1", "open_clients_v1", "client_requests_v1", "finish_runs_v1"}),
    "RUN_CLOSING": frozenset({"append_v1", "finish_runs_v1"}),
    "RUN_COMPLETED": frozenset({"append_v1", "finish_runs_v1"}),
    "RUN_FAILED": frozenset({"append_v1", "finish_runs_v1"}),
    # With the child, in the commit of its request.
    "CHILD_RUN_STARTED": frozenset({"append_v1", "client_requests_v1"}),
    # By the owner too: what a run had not taken when it went on as another one.
    "SIGNAL_RECEIVED": frozenset({"signal_runs_v1", "append_v1"}),
    "EFFECT_REQUESTED": frozenset({"append_v1", "client_requests_v1"}),
    "EFFECT_DISPATCHED": frozenset({"append_v1", "claim_v1", "client_requests_v1"}),
    # With the request that it answers.
    "EFFECT_REUSED": frozenset({"append_v1", "client_requests_v1"}),
    "EFFECT_CANCEL_REQUESTED": frozenset({"append_v1", "request_cancels_v1", "finish_runs_v1"}),
    # In an operator's settlement by hand, before it.
    "EFFECT_ATTEMPT_LOST": frozenset({"attempts_lost_v1", "settle_by_hand_v1"}),
    "EFFECT_STARTED": frozenset({"attempts_started_v1"}),
    "EFFECT_PROGRESS": frozenset({"attempts_progress_v1"}),
    "EFFECT_ATTEMPT_FAILED": frozenset({"attempts_settle_v1"}),
    "EFFECT_PARKED": frozenset({"attempts_settle_v1"}),
    "EFFECT_SUPERSEDED": frozenset({"append_v1", "attempts_settle_v1"}),
    # With a request of a child run that cannot be, too.
    "EFFECT_RESOLVED": frozenset({
        "append_v1", "resolve_external_v1", "attempts_lost_v1", "attempts_settle_v1", "client_requests_v1",
        "settle_by_hand_v1",
    }),
    "EFFECT_CANCELLED": frozenset({
        "append_v1", "request_cancels_v1", "attempts_lost_v1", "attempts_settle_v1", "finish_runs_v1",
    }),
}  # fmt: skip

#: Event type -> functions that write it: as rows their callers send, or as rows that follow from those.
WRITERS: Final[dict[str, frozenset[str]]] = (
    {type_: frozenset({"append_v1"}) for type_ in OWNER_SENDS} | _FURTHER | {type_: frozenset() for type_ in RESERVED}
)
