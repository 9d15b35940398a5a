"""Options of an effect: checked at the line that gives them, written as the fields of an EffectSpec in proto3 JSON."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypedDict, get_args

from scheduler_service.authoring.bounds import LABEL_NAME_BYTES_MAX, LABEL_VALUE_BYTES_MAX, LABELS_MAX
from scheduler_service.authoring.budgets import Budget, budget_fields
from scheduler_service.authoring.durations import Seconds, duration
from scheduler_service.authoring.errors import REASONS, OptionError
from scheduler_service.authoring.results import SESSION_FIELDS, Session
from scheduler_service.authoring.values import encode
from scheduler_service.authoring.work import check_name, check_text

KEY_BYTES_MAX: Final = 256
CLEANUP_SECONDS_DEFAULT: Final = 60.0
PRIORITY_MAX: Final = 100
KILL_GRACE_SECONDS_MAX: Final = 60
ATTEMPTS_MAX: Final = 1_000
FALLBACKS_MAX: Final = 10
BACKOFF_MAX: Final = 1_000
#: Times between these are times in every time zone, and after every rounding.
TIME_MIN: Final = dt.datetime(1, 1, 3, tzinfo=dt.UTC)
TIME_MAX: Final = dt.datetime(9999, 12, 29, tzinfo=dt.UTC)
_KEY: Final = re.compile(r"[A-Za-z0-9._/#:@+-]{1,256}")
_LABEL_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?")
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NOT_KEY: Final = re.compile(r"[^A-Za-z0-9._/:@+-]+")


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed attempt is followed by another one. Pauses are seconds; `non_retryable` holds reason names."""

    max_attempts: int
    initial: Seconds = 1.0
    backoff: float = 2.0
    max_interval: Seconds = 300.0
    non_retryable: Sequence[str] = ()


GroupStrategy = Literal["concurrent", "sequential", "adaptive"]


@dataclass(frozen=True, slots=True)
class Group:
    """A concurrency group, counted within the run. Build it with `bb.group`."""

    id: str
    max_concurrency: int = 0
    strategy: GroupStrategy = "concurrent"


def group(
    id: str,  # noqa: A002 - the word of the API
    max_concurrency: int = 0,
    strategy: GroupStrategy = "concurrent",
) -> Group:
    """A concurrency group: at most `max_concurrency` effects of it run at a time (0: no limit of its own).

    `sequential` is one at a time. `adaptive` starts at `max_concurrency`; each attempt that fails as RATE_LIMITED or
    OVERLOADED halves the limit (down to 1), each 10 successes since its last change raise it by one again. A group is
    declared alike by all effects of a run that name it: another declaration raises GroupConflict at the line.
    """
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
    on_quota: Literal["fail_over", "park", "fail"]
    sleep_until: dt.datetime
    budget: Budget
    on_run_end: Literal["wait", "cancel", "detach"]
    poll_interval: Seconds
    continue_from: Any  # EffectHandle[Any] | Session
    if_session_lost: Literal["fresh", "fail"]
    retry_session: Literal["continue", "fresh"]


def check_key(key: str) -> str:
    """The key itself. Raises OptionError when it is empty, too long or holds other characters than allowed."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise OptionError(f"key {key!r}: 1 to {KEY_BYTES_MAX} characters of A-Z a-z 0-9 . _ / # : @ + -")
    return key


def key_name(name: str) -> str:
    """A name as part of a generated key: characters that keys cannot have become `_`."""
    return _NOT_KEY.sub("_", name)[:128] or "_"


def timestamp(value: dt.datetime) -> str:
    """A proto3-JSON Timestamp: UTC with Z, 0, 3 or 6 decimals."""
    try:
        utc = value.astimezone(dt.UTC).replace(tzinfo=None)
    except OverflowError:
        raise OptionError(f"{value!r} is no time in UTC") from None
    timespec = "microseconds" if utc.microsecond % 1000 else "milliseconds" if utc.microsecond else "seconds"
    return utc.isoformat(timespec=timespec) + "Z"


def point_in_time(value: dt.datetime, option: str) -> str:
    """The Timestamp of a time that an author gives. Raises OptionError."""
    if not isinstance(value, dt.datetime) or value.tzinfo is None:
        raise OptionError(f"{option}={value!r}: expected a datetime with a time zone, such as ctx.now() + ...")
    if not TIME_MIN <= value <= TIME_MAX:
        raise OptionError(f"{option}={value!r}: expected a time between the years 1 and 9999")
    return timestamp(value)


def spec_fields(options: EffectOptions) -> dict[str, Any]:
    """The EffectSpec fields of these options; fields at their default are absent. Raises OptionError, TypeError."""
    fields: dict[str, Any] = {}
    timeouts = {
        field: duration(options[name], name)  # type: ignore[literal-required]
        for name, field in _TIMEOUTS.items()
        if options.get(name) is not None
    }
    grace = options.get("kill_grace")
    if grace is not None:
        timeouts["kill_grace"] = duration(grace, "kill_grace", zero=True, most=KILL_GRACE_SECONDS_MAX)
    if timeouts:
        fields["timeouts"] = timeouts
    for name, value in options.items():
        if name in _TIMEOUTS or name == "kill_grace" or value is None:
            continue
        writer = _WRITERS.get(name)
        if writer is None:
            raise TypeError(f"unknown option {name!r}; known: {', '.join([*_TIMEOUTS, 'kill_grace', *_WRITERS])}")
        fields |= writer(value)
    return fields


#: Kinds of effects that no executor takes: they begin with their request, and what they wait for is elsewhere.
KINDS_WITHOUT_EXECUTOR: Final = frozenset({"external", "run", "timer"})
#: What means nothing to them: where the EffectSpec has it, and the option that it is. A run's effects have their own.
OF_EXECUTORS: Final[Mapping[str, str]] = {
    "timeouts.schedule_to_start": "queue_timeout", "timeouts.silence": "silence_timeout",
    "timeouts.kill_grace": "kill_grace", "retry": "retry", "priority": "priority", "group": "group",
    "executor_labels": "executor_labels", "fallbacks": "fallbacks", "on_quota": "on_quota",
    "sleep_until": "sleep_until",
    "continue_from": "continue_from", "continue_session": "continue_from", "if_session_lost": "if_session_lost",
    "retry_session": "retry_session",
    "budget": "budget",
}  # fmt: skip


def without_executor(kind: str) -> str:
    """Why the options OF_EXECUTORS are not for this kind of effect, one of KINDS_WITHOUT_EXECUTOR."""
    if kind == "run":
        return (
            "not for a child run, which begins at once and takes no slot; give it to the effects in the child, and "
            "start a failed child again under a new key"
        )
    return (
        f"not for an effect of kind {kind}, which begins at once and takes no slot; timeout and total_timeout bound it"
    )


def check_options_of(kind: str, fields: Mapping[str, Any]) -> None:
    """Raises OptionError for options that an effect of this kind cannot have."""
    if kind not in KINDS_WITHOUT_EXECUTOR:
        return
    given = fields.keys() | {f"timeouts.{name}" for name in fields.get("timeouts", {})}
    refused = dict.fromkeys(option for field, option in OF_EXECUTORS.items() if field in given)
    if refused:
        raise OptionError(f"{', '.join(refused)}: {without_executor(kind)}")


_TIMEOUTS: Final[Mapping[str, str]] = {
    "timeout": "start_to_close",
    "queue_timeout": "schedule_to_start",
    "silence_timeout": "silence",
    "total_timeout": "total",
}


def _retry(value: Retry | int) -> dict[str, Any]:
    policy = value if isinstance(value, Retry) else Retry(value)
    most = policy.max_attempts
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= ATTEMPTS_MAX:
        raise OptionError(f"retry.max_attempts={most!r}: expected an integer from 1 to {ATTEMPTS_MAX}")
    if not isinstance(policy.backoff, (int, float)) or not 1 <= policy.backoff <= BACKOFF_MAX:
        raise OptionError(f"retry.backoff={policy.backoff!r}: expected a factor from 1 to {BACKOFF_MAX}")
    fields: dict[str, Any] = {
        "max_attempts": most,
        "initial": duration(policy.initial, "retry.initial", zero=True),
        "backoff": float(policy.backoff),
        "max_interval": duration(policy.max_interval, "retry.max_interval"),
    }
    if policy.non_retryable:
        fields["non_retryable"] = _reasons(policy.non_retryable)
    return {"retry": fields}


def _reasons(names: Sequence[str]) -> list[str]:
    unknown = [name for name in names if name not in REASONS]
    if isinstance(names, str) or unknown:
        raise OptionError(
            f"retry.non_retryable={names!r}: expected names of reasons, without a prefix: {', '.join(REASONS)}"
        )
    return list(names)


def _group(value: Group) -> dict[str, Any]:
    if not isinstance(value, Group) or not value.id:
        raise OptionError(f"group={value!r}: expected bb.group(id, max_concurrency, strategy)")
    check_name(encode(value.id, "group id"), "group: id")
    most = value.max_concurrency
    if value.strategy not in get_args(GroupStrategy):
        raise OptionError(f"group={value!r}: strategy is {', '.join(get_args(GroupStrategy))}")
    if isinstance(most, bool) or not isinstance(most, int) or not 0 <= most < 2**31:
        raise OptionError(f"group={value!r}: max_concurrency is an integer from 1, or 0 for no limit")
    if value.strategy == "adaptive" and not most:
        raise OptionError(f"group={value!r}: an adaptive group needs the max_concurrency that it starts at")
    fields: dict[str, Any] = {"id": value.id, "strategy": f"GROUP_STRATEGY_{value.strategy.upper()}"}
    return {"group": fields | ({"max_concurrency": value.max_concurrency} if value.max_concurrency else {})}


def _priority(value: int) -> dict[str, Any]:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > PRIORITY_MAX:
        raise OptionError(f"priority={value!r}: expected an integer from -{PRIORITY_MAX} to {PRIORITY_MAX}")
    return {"priority": value} if value else {}


def _check_label(name: str, text: str, place: str) -> None:
    if not isinstance(name, str) or len(name) > LABEL_NAME_BYTES_MAX or not _LABEL_NAME.fullmatch(name):
        wanted = f"at most {LABEL_NAME_BYTES_MAX} of A-Z a-z 0-9 . _ / -, a letter or digit at both ends"
        raise OptionError(f"{place}: the name must be {wanted}")
    check_text(text, place)
    if len(encode(text, place).encode()) > LABEL_VALUE_BYTES_MAX:
        raise OptionError(f"{place}: more than {LABEL_VALUE_BYTES_MAX} bytes")


def _labels(field: str) -> Any:
    def write(value: Mapping[str, str]) -> dict[str, Any]:
        if not isinstance(value, Mapping) or len(value) > LABELS_MAX:
            raise OptionError(f"{field}={value!r}: expected a dict of at most {LABELS_MAX} labels")
        for name, text in value.items():
            _check_label(name, text, f"{field}[{name!r}]")
        return {field: dict(sorted(value.items()))} if value else {}

    return write


def _fallbacks(value: Sequence[str]) -> dict[str, Any]:
    if isinstance(value, str) or len(value) > FALLBACKS_MAX:
        raise OptionError(f"fallbacks={value!r}: expected a list of at most {FALLBACKS_MAX} harness names")
    for index, name in enumerate(value):
        check_name(encode(name, "fallbacks"), f"fallbacks[{index}]")
    return {"fallbacks": list(value)} if value else {}


def _sleep_until(value: dt.datetime) -> dict[str, Any]:
    return {"sleep_until": point_in_time(value, "sleep_until")}


def _choice(field: str, choices: Mapping[str, str]) -> Any:
    def write(value: str) -> dict[str, Any]:
        if not isinstance(value, str) or value not in choices:
            raise OptionError(f"{field}={value!r}: expected {' or '.join(choices)}")
        return {field: choices[value]}

    return write


def _continue_from(value: Any) -> dict[str, Any]:
    if isinstance(value, Session):
        return _continued(value.effect_id, value, value)
    effect_id = getattr(value, "effect_id", "")
    if not effect_id or not isinstance(effect_id, str):
        raise OptionError(f"continue_from={value!r}: expected a handle or a bb.Session")
    if not value.done():
        raise OptionError(f"continue_from={value!r}: it has not settled; await it first")
    return _continued(effect_id, value.session, value)


def _continued(effect_id: str, session: Session | None, given: Any) -> dict[str, Any]:
    """The fields of the spec: the effect, and its session when it left one."""
    if not effect_id and (session is None or not session.session_id):
        raise OptionError(f"continue_from={given!r}: the session names neither an effect nor a session")
    fields: dict[str, Any] = {"continue_from": effect_id} if effect_id else {}
    if effect_id and not _UUID.fullmatch(effect_id):
        raise OptionError(f"continue_from={given!r}: effect_id {effect_id!r} is no id of an effect")
    if session is not None and session.session_id:
        for name in SESSION_FIELDS:
            check_text(encode(getattr(session, name), name), f"continue_from: {name}")
        stored = {name: getattr(session, name) for name in SESSION_FIELDS}
        fields["continue_session"] = {name: item for name, item in stored.items() if item}
    return fields


_WRITERS: Final[Mapping[str, Any]] = {
    "retry": _retry,
    "priority": _priority,
    "group": _group,
    "labels": _labels("labels"),
    "executor_labels": _labels("executor_labels"),
    "fallbacks": _fallbacks,
    "on_quota": _choice("on_quota", {name: f"ON_QUOTA_{name.upper()}" for name in ("fail_over", "park", "fail")}),
    "sleep_until": _sleep_until,
    "budget": lambda value: {"budget": budget_fields(value)},
    "on_run_end": _choice("on_run_end", {name: f"ON_RUN_END_{name.upper()}" for name in ("wait", "cancel", "detach")}),
    "poll_interval": lambda value: {"poll_interval": duration(value, "poll_interval")},
    "continue_from": _continue_from,
    "if_session_lost": _choice("if_session_lost", {"fresh": "fresh", "fail": "fail"}),
    "retry_session": _choice("retry_session", {"continue": "continue", "fresh": "fresh"}),
}
