"""Rows as messages: runs, effects, executors."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import operator_service_pb2 as operator_pb
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api.events import parse_into
from scheduler_service.journal.client_views import EffectView, ExecutorView, RunView

RUN_ENDED: Final = frozenset({"COMPLETED", "FAILED", "CANCELLED", "CONTINUED"})
RUN_PARKED: Final = frozenset({"PROCESS_ERROR", "HALTED"})

_COUNTED: Final[Mapping[str, str]] = {
    "QUEUED": "waiting", "WAITING": "waiting", "PARKED": "waiting",
    "DISPATCHED": "running", "RUNNING": "running", "CANCELLING": "running",
    "SUCCEEDED": "succeeded", "FAILED": "failed", "TIMED_OUT": "failed", "CANCELLED": "cancelled",
}  # fmt: skip


def run_message(view: RunView) -> pb.Run:
    """A run; what it waits for is added by `waiting.py`."""
    run = pb.Run(
        run_id=view.run_id,
        namespace=view.namespace,
        key=view.key,
        process=view.process,
        state=enum_value(journal_pb2.RunState, "RUN_STATE_", view.state),
        labels=view.labels,
        create_time=timestamp(view.created_at),
        update_time=timestamp(view.updated_at),
        end_time=timestamp(view.ended_at),
        head_seq=view.head_seq,
        cancel_requested=view.cancel_requested_at is not None,
        cancel_reason=view.cancel_reason,
        parent_run_id=view.parent_run_id,
        parent_effect_id=view.parent_effect_id,
        previous_run_id=view.previous_run_id,
        next_run_id=view.next_run_id,
        client_driven=view.client_driven,
        client_idle=view.client_idle,
        unobserved_failures=view.unobserved_failures,
    )
    for field, stored in (
        ("input", view.input),
        ("result", view.result),
        ("report", view.report),
        ("error", view.error),
        ("usage", view.usage),
    ):
        fill(run, field, stored)
    if view.counts is not None:
        run.effect_counts.CopyFrom(_counts(view.counts))
    return run


def effect_message(view: EffectView) -> pb.Effect:
    """An effect; what it waits for and when to poll are added by `waiting.py`."""
    effect = pb.Effect(
        effect_id=view.effect_id,
        run_id=view.run_id,
        key=view.key,
        kind=enum_value(journal_pb2.EffectKind, "EFFECT_KIND_", view.kind),
        name=view.name,
        state=enum_value(journal_pb2.EffectState, "EFFECT_STATE_", view.state),
        background=view.background,
        attempt=view.attempt,
        harness=view.harness,
        executor_id=view.executor_id,
        request_time=timestamp(view.requested_at),
        dispatch_time=timestamp(view.dispatched_at),
        start_time=timestamp(view.started_at),
        settle_time=timestamp(view.settled_at),
        last_activity_time=timestamp(view.last_activity_at),
        request_seq=view.requested_seq,
        settle_seq=view.settled_seq,
        labels=view.labels,
        cancel_requested=bool(view.cancel_reason),
        cancel_reason=enum_value(journal_pb2.EffectReason, "EFFECT_REASON_", view.cancel_reason),
        child_run_id=view.child_run_id,
    )
    for field, stored in (("spec", view.spec), ("progress", view.progress), ("usage", view.usage)):
        fill(effect, field, stored)
    _settlement_of(effect, view.settled_type, view.settled or {})
    if view.elapsed_s is not None and not effect.HasField("elapsed"):
        effect.elapsed.CopyFrom(duration(view.elapsed_s))
    return effect


def executor_message(view: ExecutorView) -> operator_pb.Executor:
    """An executor; slots taken are added for those that are connected here."""
    executor = operator_pb.Executor(
        executor_id=view.executor_id,
        incarnation=view.incarnation,
        state=enum_value(operator_pb.Executor.State, "STATE_", view.state),
        address=view.address,
        holder=view.holder,
        namespace=view.namespace,
        functions=_named(view.capabilities, "function/"),
        labels=view.labels or {},
        version=view.version,
        connect_time=timestamp(view.connected_at),
        seen_time=timestamp(view.seen_at),
        clock_skew=duration(view.clock_skew_s or 0.0),
        session_no=view.session_no,
    )
    for name, pool in (view.pools or {}).items():
        executor.pools.add(name=name, slots=pool["slots"], background_slots=pool["background_slots"])
    for name in _harnesses(view.capabilities):
        executor.harnesses.add(name=name)
    for check in view.harness_checks:
        parse_into(executor.harness_checks.add(), check)
    return executor


def timestamp(value: datetime | None) -> Timestamp | None:
    """A time, or nothing."""
    if value is None:
        return None
    message = Timestamp()
    message.FromDatetime(value)
    return message


def duration(seconds: float) -> Duration:
    """A span of time, to the microsecond."""
    message = Duration()
    message.FromMicroseconds(round(seconds * 1_000_000))
    return message


def enum_value(kind: Any, prefix: str, name: str) -> Any:
    """The number of a stored name, with or without its prefix; 0 for what this release does not know."""
    full = name if name.startswith(prefix) else prefix + name
    return kind.Value(full) if full in kind.keys() else 0  # noqa: SIM118  # an enum wrapper is no mapping


def fill(message: Any, field: str, stored: Mapping[str, Any] | None) -> None:
    """Fills a field from stored proto3 JSON, when there is any."""
    if stored is not None:
        target = getattr(message, field)
        target.SetInParent()
        parse_into(target, stored)


def _settlement_of(effect: pb.Effect, event_type: str, settled: Mapping[str, Any]) -> None:
    if event_type == "EFFECT_CANCELLED":
        reason = enum_value(journal_pb2.EffectReason, "EFFECT_REASON_", settled.get("reason", ""))
        effect.error.CopyFrom(journal_pb2.EffectError(reason=reason, message=settled.get("message", "")))
        effect.cancel_reason = effect.cancel_reason or reason
        fill(effect, "result", settled.get("partial"))
    else:
        fill(effect, "result", settled.get("result"))
        fill(effect, "error", settled.get("error"))
    effect.death = enum_value(journal_pb2.Death, "DEATH_", settled.get("death", ""))
    if "elapsed" in settled:
        effect.elapsed.FromJsonString(settled["elapsed"])


def _counts(by_state: Mapping[str, int]) -> pb.EffectCounts:
    counts = pb.EffectCounts()
    for state, number in by_state.items():
        field = _COUNTED.get(state)
        if field is not None:
            setattr(counts, field, getattr(counts, field) + number)
    return counts


def _named(capabilities: Any, prefix: str) -> list[str]:
    return sorted(item.removeprefix(prefix) for item in capabilities or () if item.startswith(prefix))


def _harnesses(capabilities: Any) -> list[str]:
    plain = {"function" if item.startswith("function/") else item.removeprefix("agent/") for item in capabilities or ()}
    return sorted(plain)
