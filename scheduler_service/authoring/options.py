"""Options of an effect: checked at the line that gives them, written as the fields of an EffectSpec in proto3 JSON."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypedDict

from scheduler_service.authoring.errors import OptionError
from scheduler_service.authoring.results import Session

Seconds = float | dt.timedelta

KEY_BYTES_MAX: Final = 256
SPEC_BYTES_MAX: Final = 1 << 20
PRIORITY_MAX: Final = 100
DURATION_SECONDS_MAX: Final = 10 * 365 * 86_400
_KEY: Final = re.compile(r"[A-Za-z0-9._/#:@+-]{1,256}")
_NOT_KEY: Final = re.compile(r"[^A-Za-z0-9._/:@+-]+")


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed attempt is followed by another one. Pauses are seconds; `non_retryable` holds reason names."""

    max_attempts: int
    initial: Seconds = 1.0
    backoff: float = 2.0
    max_interval: Seconds = 300.0
    non_retryable: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """A concurrency group, counted within the run. Build it with `bb.group`."""

    id: str
    max_concurrency: int = 0
    strategy: Literal["concurrent", "sequential"] = "concurrent"


def group(
    id: str,  # noqa: A002 - the word of the API
    max_concurrency: int = 0,
    strategy: Literal["concurrent", "sequential"] = "concurrent",
) -> Group:
    """A concurrency group: at most `max_concurrency` effects of it run at a time (0: no limit of its own)."""
    return Group(id, max_concurrency, strategy)


class EffectOptions(TypedDict, total=False):
    """Options of `ctx.run` and `ctx.start`. Times are seconds or timedeltas."""

    timeout: Seconds
    queue_timeout: Seconds
    silence_timeout: Seconds
    total_timeout: Seconds
    kill_grace: Seconds
    retry: Retry | int
    priority: int
    group: Group
    labels: Mapping[str, str]
    executor_labels: Mapping[str, str]
    fallbacks: Sequence[str]
    sleep_until: dt.datetime
    on_run_end: Literal["wait", "cancel", "detach"]
    poll_interval: Seconds
    continue_from: Any  # EffectHandle[Any] | Session
    if_session_lost: Literal["fresh", "fail"]


def check_key(key: str) -> str:
    """The key itself. Raises OptionError when it is empty, too long or holds other characters than allowed."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise OptionError(f"key {key!r}: 1 to {KEY_BYTES_MAX} characters of A-Z a-z 0-9 . _ / # : @ + -")
    return key


def key_name(name: str) -> str:
    """A name as part of a generated key: characters that keys cannot have become `_`."""
    return _NOT_KEY.sub("_", name)[:128] or "_"


def duration(value: Seconds, option: str, *, zero: bool = False) -> str:
    """A proto3-JSON Duration with at most 3 decimals. Raises OptionError unless positive and below 10 years."""
    seconds = value.total_seconds() if isinstance(value, dt.timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        raise OptionError(f"{option}={value!r}: expected seconds or a timedelta")
    if seconds < 0 or (seconds == 0 and not zero) or seconds > DURATION_SECONDS_MAX:
        raise OptionError(f"{option}={value!r}: expected more than 0 and at most {DURATION_SECONDS_MAX} seconds")
    millis = max(math.ceil(round(seconds * 1000, 6)), 0 if zero else 1)
    return f"{millis // 1000}s" if millis % 1000 == 0 else f"{millis // 1000}.{millis % 1000:03d}s"


def timestamp(value: dt.datetime) -> str:
    """A proto3-JSON Timestamp: UTC with Z, 0, 3 or 6 decimals."""
    utc = value.astimezone(dt.UTC).replace(tzinfo=None)
    timespec = "microseconds" if utc.microsecond % 1000 else "milliseconds" if utc.microsecond else "seconds"
    return utc.isoformat(timespec=timespec) + "Z"


def spec_fields(options: EffectOptions) -> dict[str, Any]:
    """The EffectSpec fields of these options; fields at their default are absent. Raises OptionError, TypeError."""
    fields: dict[str, Any] = {}
    timeouts = {
        field: duration(options[name], name)  # type: ignore[literal-required]
        for name, field in _TIMEOUTS.items()
        if options.get(name) is not None
    }
    if timeouts:
        fields["timeouts"] = timeouts
    for name, value in options.items():
        if name in _TIMEOUTS or value is None:
            continue
        writer = _WRITERS.get(name)
        if writer is None:
            raise TypeError(f"unknown option {name!r}; known: {', '.join([*_TIMEOUTS, *_WRITERS])}")
        fields |= writer(value)
    return fields


_TIMEOUTS: Final[Mapping[str, str]] = {
    "timeout": "start_to_close",
    "queue_timeout": "schedule_to_start",
    "silence_timeout": "silence",
    "total_timeout": "total",
    "kill_grace": "kill_grace",
}


def _retry(value: Retry | int) -> dict[str, Any]:
    policy = value if isinstance(value, Retry) else Retry(value)
    if isinstance(policy.max_attempts, bool) or not isinstance(policy.max_attempts, int) or policy.max_attempts < 1:
        raise OptionError(f"retry.max_attempts={policy.max_attempts!r}: expected an integer from 1")
    if policy.backoff < 1 or not math.isfinite(policy.backoff):
        raise OptionError(f"retry.backoff={policy.backoff!r}: expected a factor from 1")
    fields: dict[str, Any] = {
        "max_attempts": policy.max_attempts,
        "initial": duration(policy.initial, "retry.initial", zero=True),
        "backoff": float(policy.backoff),
        "max_interval": duration(policy.max_interval, "retry.max_interval"),
    }
    if policy.non_retryable:
        fields["non_retryable"] = list(policy.non_retryable)
    return {"retry": fields}


def _group(value: Group) -> dict[str, Any]:
    if not isinstance(value, Group) or not value.id:
        raise OptionError(f"group={value!r}: expected bb.group(id, max_concurrency, strategy)")
    if value.strategy not in ("concurrent", "sequential") or value.max_concurrency < 0:
        raise OptionError(
            f"group={value!r}: strategy is concurrent or sequential (adaptive is not part of this release); "
            "max_concurrency from 1"
        )
    fields: dict[str, Any] = {"id": value.id, "strategy": f"GROUP_STRATEGY_{value.strategy.upper()}"}
    return {"group": fields | ({"max_concurrency": value.max_concurrency} if value.max_concurrency else {})}


def _priority(value: int) -> dict[str, Any]:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > PRIORITY_MAX:
        raise OptionError(f"priority={value!r}: expected an integer from -{PRIORITY_MAX} to {PRIORITY_MAX}")
    return {"priority": value} if value else {}


def _labels(field: str) -> Any:
    def write(value: Mapping[str, str]) -> dict[str, Any]:
        if not all(isinstance(key, str) and isinstance(item, str) for key, item in value.items()):
            raise OptionError(f"{field}={value!r}: expected text keys and text values")
        return {field: dict(sorted(value.items()))} if value else {}

    return write


def _fallbacks(value: Sequence[str]) -> dict[str, Any]:
    if isinstance(value, str) or not all(isinstance(item, str) and item for item in value):
        raise OptionError(f"fallbacks={value!r}: expected a list of harness names")
    return {"fallbacks": list(value)} if value else {}


def _sleep_until(value: dt.datetime) -> dict[str, Any]:
    if not isinstance(value, dt.datetime) or value.tzinfo is None:
        raise OptionError(f"sleep_until={value!r}: expected a datetime with a time zone, such as ctx.now() + ...")
    return {"sleep_until": timestamp(value)}


def _choice(field: str, choices: Mapping[str, str]) -> Any:
    def write(value: str) -> dict[str, Any]:
        if value not in choices:
            raise OptionError(f"{field}={value!r}: expected {' or '.join(choices)}")
        return {field: choices[value]}

    return write


def _continue_from(value: Any) -> dict[str, Any]:
    effect_id = getattr(value, "effect_id", "")
    if not effect_id or not isinstance(effect_id, str):
        hint = "the session names no effect" if isinstance(value, Session) else "expected a handle or a bb.Session"
        raise OptionError(f"continue_from={value!r}: {hint}")
    return {"continue_from": effect_id}


_WRITERS: Final[Mapping[str, Any]] = {
    "retry": _retry,
    "priority": _priority,
    "group": _group,
    "labels": _labels("labels"),
    "executor_labels": _labels("executor_labels"),
    "fallbacks": _fallbacks,
    "sleep_until": _sleep_until,
    "on_run_end": _choice("on_run_end", {name: f"ON_RUN_END_{name.upper()}" for name in ("wait", "cancel", "detach")}),
    "poll_interval": lambda value: {"poll_interval": duration(value, "poll_interval")},
    "continue_from": _continue_from,
    "if_session_lost": _choice("if_session_lost", {"fresh": "fresh", "fail": "fail"}),
}
