"""Every series of the executor: its name, type, labels, and what it is for."""

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Series:
    """A series as it is scraped; a counter's name ends with `_total`."""

    name: str
    kind: Literal["counter", "gauge"]
    meaning: str
    labels: tuple[str, ...] = ()


_CONSUMED: Final = ("harness", "model")

#: What is counted as it happens.
COUNTED: Final = (
    Series("backburner_build_info", "gauge", "1; the label has the release that runs.", ("version",)),
    Series("backburner_executor_attempts_started_total", "counter", "Attempts that were taken.", ("harness",)),
    Series(
        "backburner_executor_attempts_ended_total", "counter",
        "Attempts whose outcome the journal has, with the reason of those that did not succeed; outcome `superseded`: "
        "it came too late and is kept as evidence.",
        ("harness", "outcome", "reason"),
    ),
    Series(
        "backburner_executor_tokens_total", "counter",
        "Tokens of attempts that ended; cached_input and cache_write are part of input, reasoning of output.",
        (*_CONSUMED, "kind"),
    ),
    Series("backburner_executor_cost_usd_total", "counter", "Known cost of attempts that ended.", _CONSUMED),
    Series(
        "backburner_executor_costs_unknown_total", "counter",
        "Attempts that ended and whose cost nobody knows: the cost is without them.", _CONSUMED,
    ),
    Series("backburner_executor_turns_total", "counter", "Turns of agents whose attempts ended.", ("harness",)),
)  # fmt: skip

#: What is looked at for each scrape.
LOOKED_AT: Final = (
    Series(
        "backburner_executor_up", "gauge",
        "1 when the executor could be looked at for this scrape; 0: it is stuck, and what is looked at is missing.",
    ),
    Series(
        "backburner_executor_harness_info", "gauge",
        "1 for each agent CLI that is looked for, with its version and whether it was found when last looked at.",
        ("name", "version", "found"),
    ),
    Series("backburner_executor_attempts_running", "gauge", "Attempts that run now.", ("harness",)),
    Series("backburner_executor_slots", "gauge", "Slots of a pool; background work may have a part of them.",
           ("pool", "class")),
    Series("backburner_executor_slots_used", "gauge", "Slots of a pool that attempts have.", ("pool", "class")),
    Series(
        "backburner_executor_session", "gauge",
        "1 for the state of the session with a scheduler: connected, draining, away (it dials), taken_over (by another "
        "executor of the same name).",
        ("state",),
    ),
    Series("backburner_executor_journal_up", "gauge", "1 while the journal answers, 0 while outcomes wait for it."),
    Series("backburner_executor_results_waiting", "gauge", "Results that wait to be recorded in the journal."),
    Series("backburner_executor_spool_files", "gauge", "Of those: flushed to disk, as the journal does not answer."),
    Series("backburner_executor_spool_bytes", "gauge", "Bytes of these files."),
    Series(
        "backburner_executor_spool_taken_bytes", "gauge",
        "Bytes of BACKBURNER_SPOOL_BYTES that are taken: by results, and for those of what runs.",
    ),
)  # fmt: skip
ALL: Final = (*COUNTED, *LOOKED_AT)
