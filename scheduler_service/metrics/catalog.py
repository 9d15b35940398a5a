"""Every series of the scheduler: its name, type, labels, and what it is for."""

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Series:
    """A series as it is scraped; a counter's name ends with `_total`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()


#: What this replica counts of itself.
PROCESS: Final = (
    Series("backburner_build_info", "gauge", "1; the label has the release that runs.", ("version",)),
    Series(
        "backburner_grpc_calls_total", "counter", "Calls that have ended, by their status; a stream counts at its end.",
        ("service", "method", "code"),
    ),
    Series(
        "backburner_grpc_call_seconds", "histogram", "How long calls took; of a stream, its whole life.",
        ("service", "method"),
    ),
    Series("backburner_commit_seconds", "histogram", "How long commits of this replica took, but those of retention."),
    Series("backburner_read_wait_seconds", "histogram", "How long reads waited for a connection to the database."),
    Series("backburner_reads_waiting", "gauge", "Reads that wait for a connection now."),
    Series(
        "backburner_iteration_wait_seconds", "histogram",
        "How long iterations waited for the thread that runs process code; _count is the number of iterations.",
    ),
    Series(
        "backburner_dispatches_total", "counter", "Attempts that this replica sent to executors, by pool of slots.",
        ("pool",),
    ),
    Series(
        "backburner_settlements_total", "counter",
        "Ends of attempts that executors of this replica told; `outcome` is the state of the effect, or FAILED_ATTEMPT "
        "when another attempt follows.",
        ("outcome",),
    ),
    Series("backburner_shards_owned", "gauge", "Shards whose lease this replica has; all replicas together 16."),
    Series("backburner_shards_lost_total", "counter", "Leases that ran out unrenewed: others took the runs over."),
    Series("backburner_sessions", "gauge", "Executors that are connected to this replica."),
    Series("backburner_runs_owned", "gauge", "Runs that this replica drives."),
)  # fmt: skip

_QUEUE: Final = ("namespace", "harness", "waiting_on")
_USAGE: Final = ("namespace", "harness", "model")

#: What the journal has: the same from every replica, so take one of them (`max`), and never their sum.
JOURNAL: Final = (
    Series(
        "backburner_journal_up", "gauge",
        "1 when the journal could be read for this scrape; 0: the series of the journal are missing.",
    ),
    Series("backburner_journal_read_seconds", "gauge", "How long the reads behind the journal's series took."),
    Series(
        "backburner_findings", "gauge", "What `backburner doctor` finds, by code and severity: the number of findings.",
        ("code", "severity"),
    ),
    Series("backburner_queue_effects", "gauge", "Effects that wait for an executor, by what they wait for.", _QUEUE),
    Series(
        "backburner_queue_oldest_seconds", "gauge",
        "For how long the oldest of them could have been dispatched; 0: its time has not come.", _QUEUE,
    ),
    Series(
        "backburner_parked_effects", "gauge", "Effects that are parked, without a slot, until a provider's reset.",
        ("namespace", "harness"),
    ),
    Series("backburner_breakers_open", "gauge", "Circuit breakers that are open, or try (half-open)."),
    Series(
        "backburner_breaker_open", "gauge",
        "1 for each open circuit breaker: nothing is dispatched to the harness for that account, or on that executor.",
        ("namespace", "harness", "account", "executor", "reason"),
    ),
    Series(
        "backburner_breaker_until_timestamp_seconds", "gauge", "When its provider resets, where that is known.",
        ("namespace", "harness", "account", "executor"),
    ),
    Series("backburner_executors", "gauge", "Executors of the last day, by state.", ("state",)),
    Series("backburner_pool_slots", "gauge", "Slots of the connected executors.", ("pool",)),
    Series("backburner_pool_slots_used", "gauge", "Slots of them that attempts have.", ("pool",)),
    Series("backburner_shards_unowned", "gauge", "Shards that no live replica owns: their runs stand still."),
    Series("backburner_timer_lag_seconds", "gauge", "By how much the latest timer of runs that may go on is late."),
    Series("backburner_runs", "gauge", "Runs that have not ended, by state.", ("namespace", "state")),
    Series("backburner_approvals_open", "gauge", "External effects that wait for somebody's answer.", ("namespace",)),
    Series(
        "backburner_usage_hour_tokens", "gauge",
        "Tokens of attempts that ended in the last hour; cached_input is part of input.", (*_USAGE, "kind"),
    ),
    Series("backburner_usage_hour_cost_usd", "gauge", "Known cost of attempts that ended in the last hour.", _USAGE),
    Series(
        "backburner_usage_hour_costs_unknown", "gauge",
        "Attempts of the last hour whose cost nobody knows: the cost is without them.", _USAGE,
    ),
    Series("backburner_usage_hour_attempts", "gauge", "Attempts of the last hour that are counted here.", _USAGE),
    Series(
        "backburner_budget_spent_ratio", "gauge", "Used part of a label's budget, by its scarcest unit: 1 is all.",
        ("namespace", "label"),
    ),
    Series(
        "backburner_journal_bytes", "gauge", "Size in the database: of the journal, large values, output, and all.",
        ("part",),
    ),
)  # fmt: skip
ALL: Final = (*PROCESS, *JOURNAL)
