"""What the journal has, as samples: the findings of the doctor, the queue, breakers, executors, shards, usage."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from backburner.scheduler.v1 import operator_service_pb2 as pb
from backburner.scheduler.v1 import scheduler_service_pb2 as client_pb
from scheduler_service.api.diagnosis import diagnose
from scheduler_service.api.eta import no_history
from scheduler_service.api.waiting import Situations, effect_waiting
from scheduler_service.journal.breakers import Breaker
from scheduler_service.journal.metrics import MetricsReads
from scheduler_service.metrics.samples import OTHER, Sample, bounded, labelled

#: Combinations of what users named (namespace, harness, model, account, label) that a series shows on their own.
NAMED_MAX: Final = 50
#: Classes of the queue that are told apart: of each, one effect is asked what it waits for.
CLASSES_MAX: Final = 200
_TOKENS: Final = ("input", "output", "cached_input")


async def read_figures(reads: MetricsReads) -> list[Sample]:
    """All samples of the journal but `backburner_journal_up`. Raises JournalUnavailable or JournalRefused."""
    began = time.monotonic()
    samples = [sample for part in _PARTS async for sample in part(reads)]
    return [*samples, Sample("backburner_journal_read_seconds", (), time.monotonic() - began)]


async def _findings(reads: MetricsReads) -> AsyncIterator[Sample]:
    severity = pb.Finding.Severity.Name
    found = Counter((one.code, severity(one.severity).removeprefix("SEVERITY_")) for one in await diagnose(reads))
    for labels, count in found.items():
        yield Sample("backburner_findings", labels, float(count))


async def _queue(reads: MetricsReads) -> AsyncIterator[Sample]:
    """Each class of the queue waits for what its oldest member waits for."""
    situation = await Situations(reads.clients, no_history, reads.clock).now()
    classes = await reads.figures("queue", most=CLASSES_MAX)
    oldest = await reads.examples([row["oldest_id"] for row in classes])
    counts, ages = [], []
    for row in classes:
        example = oldest.get(row["oldest_id"])
        waiting = effect_waiting(example, situation) if example is not None else None
        if waiting is None:
            continue  # it was dispatched meanwhile
        cause = client_pb.WaitingOn.Cause.Name(waiting.cause).removeprefix("CAUSE_")
        labels = (row["namespace"], row["harness"], cause)
        counts.append((labels, row["waiting"]))
        ages.append((labels, row["due_s"] or 0.0))
    if len(classes) == CLASSES_MAX:
        [row] = await reads.figures("queue_size")
        counts.append(((OTHER, OTHER, "UNSPECIFIED"), max(0, row["waiting"] - sum(count for _, count in counts))))
    for sample in bounded(labelled("backburner_queue_effects", counts), NAMED_MAX, named=2):
        yield sample
    for sample in bounded(labelled("backburner_queue_oldest_seconds", ages), NAMED_MAX, named=2, merge=max):
        yield sample
    for sample in _breakers(situation.breakers, reads):
        yield sample


def _breakers(breakers: Sequence[Breaker], reads: MetricsReads) -> Iterable[Sample]:
    now = reads.clock.read()
    stops = [breaker for breaker in breakers if breaker.until > now or not breaker.reset_known]
    yield Sample("backburner_breakers_open", (), float(len(stops)))
    for breaker in stops[:NAMED_MAX]:
        labels = (breaker.namespace, breaker.harness, breaker.account, breaker.executor_id)
        yield Sample("backburner_breaker_open", (*labels, breaker.reason), 1.0)
        if breaker.reset_known:
            yield Sample("backburner_breaker_until_timestamp_seconds", labels, breaker.until.timestamp())


async def _executors(reads: MetricsReads) -> AsyncIterator[Sample]:
    rows = await reads.rows("executors")
    for state, count in Counter(row["state"] for row in rows).items():
        yield Sample("backburner_executors", (state,), float(count))
    slots: Counter[str] = Counter()
    used: Counter[str] = Counter()
    for row in rows:
        if row["state"] == "CONNECTED":
            slots.update({pool: has["slots"] for pool, has in row["pools"].items()})
            used.update({pool: row["attempts"].get(pool, 0) for pool in row["pools"]})
    for pool in slots:
        yield Sample("backburner_pool_slots", (pool,), float(slots[pool]))
        yield Sample("backburner_pool_slots_used", (pool,), float(used[pool]))


async def _schedulers(reads: MetricsReads) -> AsyncIterator[Sample]:
    yield Sample("backburner_shards_unowned", (), float(len(await reads.rows("unowned"))))
    [late] = await reads.figures("timer_lag")
    yield Sample("backburner_timer_lag_seconds", (), late["lag_s"])
    for row in await reads.rows("sizes"):
        for part in ("journal", "blobs", "output", "database"):
            yield Sample("backburner_journal_bytes", (part,), float(row[part]))


async def _counts(reads: MetricsReads) -> AsyncIterator[Sample]:
    for statement, name, labels, value in _COUNTED:
        rows = [([row[label] for label in labels], row[value]) for row in await reads.figures(statement)]
        named = len([label for label in labels if label != "state"])
        for sample in bounded(labelled(name, rows), NAMED_MAX, named=named):
            yield sample


#: Statement, series, labels, and column of the value.
_COUNTED: Final = (
    ("parked", "backburner_parked_effects", ("namespace", "harness"), "effects"),
    ("runs", "backburner_runs", ("namespace", "state"), "runs"),
    ("approvals", "backburner_approvals_open", ("namespace",), "waiting"),
)


async def _usage(reads: MetricsReads) -> AsyncIterator[Sample]:
    rows = await reads.figures("usage_hour")
    samples = [sample for row in rows for sample in _consumed(row)]
    for sample in bounded(samples, NAMED_MAX, named=3):
        yield sample
    for row in await reads.figures("budgets", most=NAMED_MAX):
        yield Sample("backburner_budget_spent_ratio", (row["namespace"], row["label"]), row["spent"])


def _consumed(row: Mapping[str, Any]) -> Iterable[Sample]:
    labels = (row["namespace"], row["harness"], row["model"])
    for kind in _TOKENS:
        yield Sample("backburner_usage_hour_tokens", (*labels, kind), float(row[kind]))
    yield Sample("backburner_usage_hour_cost_usd", labels, float(row["cost_usd"]))
    yield Sample("backburner_usage_hour_costs_unknown", labels, float(row["costs_unknown"]))
    yield Sample("backburner_usage_hour_attempts", labels, float(row["attempts"]))


_PARTS: Final[Sequence[Callable[[MetricsReads], AsyncIterator[Sample]]]] = (
    _findings,
    _queue,
    _executors,
    _schedulers,
    _counts,
    _usage,
)
