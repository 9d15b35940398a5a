"""Settings of the executor service: one frozen dataclass, read from the environment.

Each field is named with its unit. The variable of a field is `BACKBURNER_` and the field's name in upper case, except
`DATABASE_URL`, which `BACKBURNER_EXECUTOR_DATABASE_URL` overrides so that both services can share one environment; the
command line has a flag of the same name for each.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from executor_service.metrics.endpoint import parse_address
from executor_service.targets import TargetError, parse_targets


class SettingsError(Exception):
    """A setting is missing or malformed; the message names the variable and the remedy."""


def _state_dir() -> str:
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return str(Path(base) / "backburner" / "executor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an operator may choose. Defaults suit production unless the comment says otherwise."""

    database_url: str
    #: `host:port` of a scheduler, or several separated by commas: see `targets.py`.
    scheduler: str = "127.0.0.1:7233"
    #: Stable name of this executor. Empty: the name that a dead one left in `state_dir`, else a fresh one.
    executor_id: str = ""
    #: `host:port` that this executor serves progress on; port 0 takes a free one.
    executor_listen: str = "127.0.0.1:0"
    #: Address under which others reach it. Empty: what it listens on.
    executor_address: str = ""
    #: Namespace that it works for.
    namespace: str = "default"
    #: Labels as `name=value`, matched with the executor labels of effects.
    labels: tuple[str, ...] = ()
    #: Python modules that define functions.
    function_modules: tuple[str, ...] = ()
    #: Python modules that bring harnesses of agents: see `harness/agent.py`.
    harness_modules: tuple[str, ...] = ()
    #: Agent CLIs that it offers: their names, `all` that are found, or `none`.
    agents: tuple[str, ...] = ("all",)
    #: Programs of agent CLIs that are not on PATH, as `name=/path/to/it`.
    harness_paths: tuple[str, ...] = ()
    #: JSON file that describes further agent CLIs: see `harness/cli/command.py`. Empty: none.
    harness_commands: str = ""
    #: How often it looks whether agent CLIs were installed, upgraded or logged in; 0: at its start, and when one fails.
    harness_check_seconds: float = 600.0
    #: `user`: agents have the executor's HOME, its logins and sessions; `tenant`: a HOME of the namespace's own.
    agent_homes: Literal["user", "tenant"] = "user"
    #: JSON file of prices that goes over the shipped one: see `harness/cli/prices.json`. Empty: none.
    prices: str = ""
    #: Folder of secrets that effects may ask for by name, one file each: see `secret_values.py`. Empty: none.
    secrets_dir: str = ""
    #: Functions that may run at a time.
    slots_functions: int = 256
    #: Shell commands that may run at a time.
    slots_shell: int = 8
    #: Agents that may run at a time.
    slots_agents: int = 4
    #: Share of each pool that background effects may hold.
    background_share: float = 0.75
    #: Folder of locks, of results that wait for Postgres, and of the attempts' own working directories.
    state_dir: str = ""
    #: Worktrees and copies of effects that are kept there, and for how many days after they were last used.
    workspaces_max: int = 100
    workspaces_days: float = 30.0
    #: Bytes of results on disk while Postgres is away; each attempt takes at least 100 KiB of it from its start.
    spool_bytes: int = 1024 * 1024 * 1024
    #: Attempts and results that wait, at a time.
    spool_entries: int = 10_000
    #: Processes and threads of one attempt at a time, where control groups (cgroup v2, `pids`) allow; 0: no bound.
    processes_max: int = 4096
    #: Further variables of its environment that children inherit.
    env_allow: tuple[str, ...] = ()
    #: True: running attempts are ended when the scheduler has not been heard for half of its grace.
    kill_when_cut_off: bool = False
    #: A reset of a provider that is so far away, or farther, parks the effect: it waits for it without a slot.
    park_seconds: float = 60.0
    #: Longest a graceful stop waits for running attempts before it hands them back.
    drain_seconds: float = 30.0
    #: Bytes kept of each output stream of an attempt, half from the head and half from the tail, by default.
    output_bytes: int = 1024 * 1024
    #: Most that an effect may ask for instead.
    output_bytes_max: int = 16 * 1024 * 1024
    #: Subscribers of progress at a time.
    watchers_max: int = 200
    #: Idle time after which a progress stream carries a heartbeat.
    watch_heartbeat_seconds: float = 15.0
    #: Shortest lifetime of a progress stream; the longest is half as long again.
    watch_lifetime_seconds: float = 1200.0
    #: `host:port` that metrics are served on, for Prometheus; port 0 takes a free one. Empty: nowhere.
    metrics_address: str = ""
    #: DEBUG, INFO, WARNING or ERROR.
    log_level: str = "INFO"

    def pools(self) -> Mapping[str, int]:
        """Slots by pool."""
        return {"functions": self.slots_functions, "shell": self.slots_shell, "agents": self.slots_agents}

    def background_slots(self, slots: int) -> int:
        """How many of so many slots background effects may hold: one of two or more is left to foreground."""
        most = slots - 1 if slots > 1 else slots
        return max(min(1, slots), min(int(slots * self.background_share), most))

    def label_map(self) -> Mapping[str, str]:
        """The labels by name."""
        pairs = (label.partition("=") for label in self.labels)
        return {name.strip(): value.strip() for name, _, value in pairs}


def settings_from_env(env: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Reads the settings; raises SettingsError that names the variable when one is missing or malformed."""
    source = os.environ if env is None else env
    values: dict[str, Any] = {}
    hints = get_type_hints(Settings)
    for item in fields(Settings):
        raw = _raw(source, item.name)
        if overrides.get(item.name) is not None:
            values[item.name] = overrides[item.name]
        elif raw:
            values[item.name] = _parse(variable(item.name), hints[item.name], raw)
    if "database_url" not in values:
        raise SettingsError("DATABASE_URL is not set: give the Postgres to use, or run `backburner dev`")
    values.setdefault("state_dir", _state_dir())
    return _checked(Settings(**values))


def variable(name: str) -> str:
    """Name of the environment variable of a field."""
    return "DATABASE_URL" if name == "database_url" else f"BACKBURNER_{name.upper()}"


def _raw(source: Mapping[str, str], name: str) -> str | None:
    if name == "database_url":
        return source.get("BACKBURNER_EXECUTOR_DATABASE_URL") or source.get("DATABASE_URL")
    return source.get(variable(name))


def _parse(name: str, kind: Any, raw: str) -> Any:
    if kind is int or kind is float:
        return _parse_number(name, kind, raw)
    if kind is bool:
        return _parse_switch(name, raw)
    if kind == tuple[str, ...]:
        return tuple(part.strip() for part in raw.split(",") if part.strip())
    return raw


def _parse_number(name: str, kind: type[int] | type[float], raw: str) -> int | float:
    try:
        value = kind(raw)
    except ValueError as error:
        raise SettingsError(f"{name}={raw!r} is not a number") from error
    if value < 0:
        raise SettingsError(f"{name}={raw!r} must not be negative")
    return value


def _parse_switch(name: str, raw: str) -> bool:
    if raw.lower() not in ("true", "false", "1", "0"):
        raise SettingsError(f"{name}={raw!r} is neither true nor false")
    return raw.lower() in ("true", "1")


def _checked(settings: Settings) -> Settings:
    if not 0 < settings.background_share <= 1:
        raise SettingsError(f"BACKBURNER_BACKGROUND_SHARE={settings.background_share} must be over 0 and at most 1")
    for name, slots in settings.pools().items():
        if slots > 10_000:
            raise SettingsError(f"BACKBURNER_SLOTS_{name.upper()}={slots} must be at most 10000")
    try:
        parse_targets(settings.scheduler)
    except TargetError as error:
        raise SettingsError(f"BACKBURNER_SCHEDULER: {error}") from error
    _check_metrics_address(settings.metrics_address)
    if settings.agent_homes not in ("user", "tenant"):
        raise SettingsError(f"BACKBURNER_AGENT_HOMES={settings.agent_homes!r} is neither user nor tenant")
    for path in settings.harness_paths:
        if "=" not in path:
            raise SettingsError(f"BACKBURNER_HARNESS_PATHS: {path!r} is not name=/path")
    for label in settings.labels:
        if "=" not in label:
            raise SettingsError(f"BACKBURNER_LABELS: {label!r} is not name=value")
    return settings


def _check_metrics_address(address: str) -> None:
    try:
        if address:
            parse_address(address)
    except ValueError as error:
        raise SettingsError(f"BACKBURNER_METRICS_ADDRESS: {error}") from error
