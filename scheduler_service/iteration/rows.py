"""Turns what process code asked for (commands) into rows of an append.

An EFFECT_REQUESTED row carries, beside its journal data, the columns of the effect's projection, so that the database
need not take the spec apart. The spec is the proto3 JSON of `backburner.journal.v1.EffectSpec`.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from scheduler_service.dispatch.work import POOLS, Work, harness_of
from scheduler_service.journal.payloads import stored
from scheduler_service.replay.events import Command

_DEFAULT_MAX_INTERVAL_SECONDS = 300.0
_DEFAULT_POLL_SECONDS = 5.0
#: What a group without a limit of its own has: the greatest value of the column.
_UNLIMITED = 2**31 - 1


def row_of(command: Command) -> dict[str, Any]:
    """The row that a command becomes."""
    row: dict[str, Any] = {"type": command.type, "cause": command.cause, "data": command.data}
    if command.effect_id:
        row["effect_id"] = command.effect_id
        row["effect_key"] = command.effect_key
    if command.type == "EFFECT_REQUESTED":
        row["x"] = projection(command.data["spec"])
    elif command.type in ("RUN_CLOSING", "RUN_COMPLETED") and "result" in command.data:
        payload, row["blob_text"] = stored(command.data["result"])
        row["data"] = {**command.data, "result": payload}
    return row


def projection(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of the effect's row, from its spec."""
    kind, work = _kind_and_work(spec)
    timeouts, retry = spec.get("timeouts", {}), spec.get("retry", {})
    group = spec.get("group", {})
    total = seconds(timeouts.get("total"))
    if not POOLS.get(kind):  # it begins with its request, so all bounds in time are one
        total = min((t for t in (total, seconds(timeouts.get("start_to_close"))) if t is not None), default=None)
    capabilities = _capabilities(kind, work, spec.get("fallbacks", ()))
    return {
        "kind": kind,
        "name": spec.get("name", ""),
        "harness": harness_of(capabilities[0]) if capabilities else "",
        "pool": POOLS.get(kind, ""),
        "capabilities": list(capabilities),
        "background": spec.get("background", False),
        "priority": spec.get("priority", 0),
        "group_id": group.get("id"),
        "group_max": _group_max(group),
        "group_strategy": group.get("strategy", "GROUP_STRATEGY_CONCURRENT").removeprefix("GROUP_STRATEGY_"),
        "not_before": work["fire_at"] if kind == "TIMER" else spec.get("sleep_until"),
        "queue_timeout_s": seconds(timeouts.get("schedule_to_start")),
        "total_timeout_s": total,
        "max_attempts": max(1, retry.get("max_attempts", 1)),
        "initial_s": _seconds_or(retry.get("initial"), 1.0),
        "backoff": retry.get("backoff", 2.0),
        "max_interval_s": _seconds_or(retry.get("max_interval"), _DEFAULT_MAX_INTERVAL_SECONDS),
        "non_retryable": list(retry.get("non_retryable", ())),
        "on_quota": spec.get("on_quota", "ON_QUOTA_FAIL_OVER").removeprefix("ON_QUOTA_"),
        "on_run_end": spec.get("on_run_end", "ON_RUN_END_WAIT").removeprefix("ON_RUN_END_"),
        "labels": spec.get("labels", {}),
        "executor_labels": spec.get("executor_labels", {}),
        "poll_interval_s": _seconds_or(spec.get("poll_interval"), _DEFAULT_POLL_SECONDS),
        "continues_on": spec.get("continue_session", {}).get("executor_id", ""),
        "resumes": spec.get("retry_session") != "fresh",
        "dispatch": None,
        "budget": spec.get("budget"),
    }


def work_of(x: Mapping[str, Any], namespace: str) -> Work:
    """What dispatch has to know, from the projection's columns."""
    return Work(
        kind=x["kind"],
        name=x["name"],
        pool=x["pool"],
        capabilities=tuple(x["capabilities"]),
        background=x["background"],
        executor_labels=x["executor_labels"],
        total_timeout_s=x["total_timeout_s"],
        sleeps=x["not_before"] is not None,
        namespace=namespace,
        continues_on=x["continues_on"],
    )


def seconds(duration: str | None) -> float | None:
    """Seconds of a proto3 JSON duration (`3.500s`), None for none."""
    return None if duration is None else float(duration.removesuffix("s"))


def _seconds_or(duration: str | None, default: float) -> float:
    return default if duration is None else float(duration.removesuffix("s"))


def timestamp(value: str) -> datetime:
    """Aware datetime of a proto3 JSON timestamp."""
    return datetime.fromisoformat(value.replace("Z", "+00:00"))


def _kind_and_work(spec: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    for field in ("shell", "function", "agent", "external", "run", "timer"):
        if field in spec:
            return field.upper(), spec[field]
    raise ValueError(f"effect {spec.get('name')!r} has no work")


def _capabilities(kind: str, work: Mapping[str, Any], fallbacks: Any) -> tuple[str, ...]:
    if kind == "SHELL":
        return ("shell",)
    if kind == "FUNCTION":
        return (f"function/{work['function']}",)
    if kind == "AGENT":
        return tuple(f"agent/{harness}" for harness in (work["harness"], *fallbacks))
    return ()


def _group_max(group: Mapping[str, Any]) -> int | None:
    if not group:
        return None
    if group.get("strategy") == "GROUP_STRATEGY_SEQUENTIAL":
        return 1
    return int(group.get("max_concurrency", 0)) or _UNLIMITED
