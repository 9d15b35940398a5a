"""Settings of the scheduler service: one frozen dataclass, read from the environment.

Each field is named with its unit. The variable of a field is `BACKBURNER_` and the field's name in upper case, except
`DATABASE_URL`; the command line has a flag of the same name for each.
"""

import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from scheduler_service.metrics.endpoint import parse_address


class SettingsError(Exception):
    """A setting is missing or malformed; the message names the variable and the remedy."""


def _scheduler_id() -> str:
    return f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an operator may choose. Defaults suit production unless the comment says otherwise."""

    database_url: str
    #: `host:port` that clients and executors dial.
    listen: str = "127.0.0.1:7233"
    #: `host:port` where other replicas reach this one; by default what it listens on, unless that is a wildcard.
    advertise: str = ""
    #: Name of this replica; fresh at every start by default, so that a restart is a new owner.
    scheduler_id: str = field(default_factory=_scheduler_id)
    #: Python modules that define processes.
    process_modules: tuple[str, ...] = ()
    #: How long an owned shard stays ours without a renewal.
    lease_seconds: float = 5.0
    #: How long an executor may be away before its attempts are lost.
    grace_seconds: float = 20.0
    #: How long an effect that goes on with a session is left to the executor that has it, when that is away or full.
    session_wait_seconds: float = 60.0
    #: Period of the polls that are the truth behind every wake; jittered by a quarter.
    poll_seconds: float = 0.5
    #: How often control streams carry a frame, both ways.
    heartbeat_seconds: float = 3.0
    #: Longest a step of process code may take before its run is parked as BLOCKED.
    step_seconds_max: float = 1.0
    #: Coroutines kept alive between iterations; the least recently used idle ones are evicted beyond it.
    cache_runs_max: int = 2000
    #: Longest a graceful stop takes to hand its shards over, and then as long again for calls in flight.
    drain_seconds: float = 5.0
    #: Days after which runs that have ended are removed whole; 0, the default, removes none.
    retention_days: float = 0.0
    #: Idle time after which a watch carries a heartbeat.
    watch_heartbeat_seconds: float = 15.0
    #: Shortest lifetime of a watch; the longest is half as long again.
    watch_lifetime_seconds: float = 1200.0
    #: Watches at a time on this replica.
    watchers_max: int = 1000
    #: Which live steps of process code are watched for forbidden calls of clocks and randomness: sampled, all, off.
    check_calls: str = "sampled"
    #: `host:port` that metrics are served on, for Prometheus; port 0 takes a free one. Empty: nowhere.
    metrics_address: str = ""
    #: DEBUG, INFO, WARNING or ERROR.
    log_level: str = "INFO"


def settings_from_env(env: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Reads the settings; raises SettingsError that names the variable when one is missing or malformed."""
    source = os.environ if env is None else env
    values: dict[str, Any] = {}
    hints = get_type_hints(Settings)
    for item in fields(Settings):
        raw = source.get(variable(item.name))
        if item.name in overrides and overrides[item.name] is not None:
            values[item.name] = overrides[item.name]
        elif raw is not None and raw != "":
            # where 0 is the default, it switches something off
            values[item.name] = _parse(variable(item.name), hints[item.name], raw, may_be_0=item.default == 0)
    if values.get("check_calls", "sampled") not in ("sampled", "all", "off"):
        raise SettingsError(f"BACKBURNER_CHECK_CALLS={values['check_calls']!r}: use sampled, all or off")
    _check_metrics_address(values.get("metrics_address", ""))
    if "database_url" not in values:
        raise SettingsError("DATABASE_URL is not set: give the Postgres to use, or run `backburner dev`")
    return Settings(**values)


def _check_metrics_address(address: str) -> None:
    try:
        if address:
            parse_address(address)
    except ValueError as error:
        raise SettingsError(f"BACKBURNER_METRICS_ADDRESS: {error}") from error


def variable(name: str) -> str:
    """Name of the environment variable of a field."""
    return "DATABASE_URL" if name == "database_url" else f"BACKBURNER_{name.upper()}"


def _parse(name: str, kind: Any, raw: str, *, may_be_0: bool) -> Any:
    if kind is bool:
        return _parse_bool(name, raw)
    if kind in (int, float):
        return _parse_number(name, kind, raw, may_be_0=may_be_0)
    if kind == tuple[str, ...]:
        return tuple(part.strip() for part in raw.split(",") if part.strip())
    return raw


def _parse_bool(name: str, raw: str) -> bool:
    lowered = raw.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off"):
        return False
    raise SettingsError(f"{name}={raw!r} is not a boolean: use true or false")


def _parse_number(name: str, kind: type[int] | type[float], raw: str, *, may_be_0: bool) -> int | float:
    try:
        value = kind(raw)
    except ValueError as error:
        raise SettingsError(f"{name}={raw!r} is not a number") from error
    if not (value > 0 or (may_be_0 and value == 0)):
        raise SettingsError(f"{name}={raw!r} must be greater than 0")
    return value
