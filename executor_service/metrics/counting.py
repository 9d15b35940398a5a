"""What an executor counts: attempts as they are taken and as the journal has their outcomes, and what they consumed."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, disable_created_metrics

from backburner.journal.v1 import journal_pb2
from executor_service.assignment import Assignment, InvalidWork
from executor_service.invocation import Invocation
from executor_service.metrics.catalog import COUNTED, Series

#: Models that have series of their own.
MODELS_MAX: Final = 50
OTHER: Final = "other"
_KINDS: Final = ("input", "output", "cached_input", "cache_write", "reasoning")
_REASONS: Final = frozenset(
    value.name.removeprefix("EFFECT_REASON_") for value in journal_pb2.EffectReason.DESCRIPTOR.values
)
#: What the journal says of an outcome that counts: that it was written, now or when the answer was lost.
_WRITTEN: Final = ("ok", "already")


class Counting:
    """The series of `catalog.COUNTED`, in a registry of their own. `is_known`: whether a harness of that name is, or
    was, on this executor."""

    def __init__(self, version: str, is_known: Callable[[str], bool]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a gauge beside each counter, which nobody asks for
        self.registry = CollectorRegistry()
        self._by_name: Mapping[str, Any] = {series.name: _made(series, self.registry) for series in COUNTED}
        ProcessCollector(registry=self.registry)
        self._is_known = is_known
        self._models: set[str] = set()
        self._by_name["backburner_build_info"].labels(version).set(1)

    def started(self, assignment: Assignment) -> None:
        """An attempt was taken."""
        self._by_name["backburner_executor_attempts_started_total"].labels(self.harness_of(assignment)).inc()

    def recorded(self, invocation: Invocation, verdict: str) -> None:
        """The journal has taken an outcome; `verdict` is its word, `ok` or why it does not count."""
        outcome, harness = invocation.outcome, self.harness_of(invocation.assignment)
        assert outcome is not None  # noqa: S101 - it was settled
        written = verdict in _WRITTEN
        reason = outcome.reason if outcome.reason in _REASONS or not outcome.reason else OTHER
        labels = (harness, outcome.kind if written else "superseded", reason)
        self._by_name["backburner_executor_attempts_ended_total"].labels(*labels).inc()
        if written:
            self._count_usage(invocation, harness)

    def _count_usage(self, invocation: Invocation, harness: str) -> None:
        usage = invocation.progress.usage
        unknown_agent = invocation.assignment.pool == "agents" and invocation.has_started
        if usage is None and not unknown_agent:
            return
        used = usage or {}
        model = self._model(used.get("model") or _model_asked_for(invocation.assignment))
        tokens = self._by_name["backburner_executor_tokens_total"]
        for kind in _KINDS:
            if count := used.get(f"{kind}_tokens"):
                tokens.labels(harness, model, kind).inc(count)
        if turns := used.get("turns"):
            self._by_name["backburner_executor_turns_total"].labels(harness).inc(turns)
        if "cost_usd" in used:
            self._by_name["backburner_executor_cost_usd_total"].labels(harness, model).inc(used["cost_usd"])
        else:
            self._by_name["backburner_executor_costs_unknown_total"].labels(harness, model).inc()

    def harness_of(self, assignment: Assignment) -> str:
        """Name of its harness: `agent/codex` is codex, `function/a.b` function."""
        kind, _, rest = assignment.harness.partition("/")
        name = rest if kind == "agent" else kind
        return name if self._is_known(name) else OTHER

    def _model(self, name: str) -> str:
        if name not in self._models and len(self._models) < MODELS_MAX:
            self._models.add(name)
        return name if name in self._models else OTHER


def _model_asked_for(assignment: Assignment) -> str:
    """The model that an agent was asked to use. Empty: none, or it is no agent."""
    if assignment.pool != "agents":
        return ""
    try:
        spec, _ = assignment.read_spec()
    except InvalidWork:
        return ""
    return str(spec.get("agent", {}).get("model") or "")


def _made(series: Series, registry: CollectorRegistry) -> Counter | Gauge:
    kind = Counter if series.kind == "counter" else Gauge
    return kind(series.name, series.meaning, series.labels, registry=registry)
