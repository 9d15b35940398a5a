"""Settings of the services as options: `--lease-seconds` is BACKBURNER_LEASE_SECONDS, and so on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import click


@dataclass(frozen=True)
class Setting:
    """A setting of a service: its name in the environment without prefix, what it means, its default for --help."""

    name: str
    meaning: str
    default: str = ""
    metavar: str = "TEXT"
    repeated: bool = False

    @property
    def flag(self) -> str:
        """The option's name: singular where it is repeated."""
        name = self.name.removesuffix("S") if self.repeated else self.name
        return f"--{name.lower().replace('_', '-')}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return self.name if self.name == "DATABASE_URL" else f"BACKBURNER_{self.name}"


SLOTS: Final = (
    Setting("SLOTS_FUNCTIONS", "Function effects at a time.", "256", "N"),
    Setting("SLOTS_SHELL", "Shell effects at a time.", "8", "N"),
    Setting("SLOTS_AGENTS", "Agent effects at a time.", "4", "N"),
    Setting("BACKGROUND_SHARE", "Share of each pool that background effects may take.", "0.75", "SHARE"),
)
HARNESS_MODULES: Final = Setting(
    "HARNESS_MODULES", "Python module that brings harnesses of agents. Repeatable.", metavar="MODULE", repeated=True
)
AGENT_CLIS: Final = (
    Setting(
        "AGENTS", "Agent CLI that it offers, or all that it finds, or none. Repeatable.", "all", "NAME", repeated=True
    ),
    Setting(
        "HARNESS_PATHS", "Program of an agent CLI, when not on PATH. Repeatable.", metavar="NAME=PATH", repeated=True
    ),
    Setting("HARNESS_COMMANDS", "JSON file that describes further agent CLIs.", metavar="FILE"),
)
_DATABASE: Final = Setting("DATABASE_URL", "Postgres to use.", metavar="URL")
_METRICS: Final = Setting("METRICS_ADDRESS", "Address that it serves metrics on, for Prometheus.", "off", "HOST:PORT")
_LOG_LEVEL: Final = Setting("LOG_LEVEL", "DEBUG, INFO, WARNING or ERROR.", "INFO", "LEVEL")

SCHEDULER: Final = (
    _DATABASE,
    Setting("LISTEN", "Address for clients and executors.", "127.0.0.1:7233", "HOST:PORT"),
    Setting("ADVERTISE", "Address under which other replicas reach it.", "what it listens on", "HOST:PORT"),
    Setting("PROCESS_MODULES", "Python module that defines processes. Repeatable.", metavar="MODULE", repeated=True),
    Setting("SCHEDULER_ID", "Name of this replica.", "host and a random part", "NAME"),
    Setting("LEASE_SECONDS", "How long an owned shard stays ours without a renewal.", "5", "SECONDS"),
    Setting("GRACE_SECONDS", "How long an executor may be away before its attempts are lost.", "20", "SECONDS"),
    Setting("SESSION_WAIT_SECONDS", "How long what goes on with a session waits for its executor.", "60", "SECONDS"),
    Setting("POLL_SECONDS", "Period of the polls behind every wake.", "0.5", "SECONDS"),
    Setting("HEARTBEAT_SECONDS", "How often control streams carry a frame.", "3", "SECONDS"),
    Setting("STEP_SECONDS_MAX", "Longest step of process code before its run is parked.", "1", "SECONDS"),
    Setting("CACHE_RUNS_MAX", "Coroutines kept alive between iterations.", "2000", "N"),
    Setting("DRAIN_SECONDS", "Longest a graceful stop waits for calls in flight.", "5", "SECONDS"),
    Setting("RETENTION_DAYS", "Days after which ended runs are removed; 0: never.", "0", "DAYS"),
    Setting("WATCH_HEARTBEAT_SECONDS", "Idle time after which a watch carries a heartbeat.", "15", "SECONDS"),
    Setting("WATCH_LIFETIME_SECONDS", "Shortest lifetime of a watch.", "1200", "SECONDS"),
    Setting("WATCHERS_MAX", "Watches at a time.", "1000", "N"),
    Setting("CHECK_CALLS", "Steps watched for forbidden calls: sampled, all or off.", "sampled", "MODE"),
    _METRICS,
    _LOG_LEVEL,
)

EXECUTOR: Final = (
    Setting("DATABASE_URL", "Postgres to record results in.", metavar="URL"),
    Setting("EXECUTOR_DATABASE_URL", "The same under a role of its own; goes before DATABASE_URL.", metavar="URL"),
    Setting(
        "SCHEDULER",
        "Schedulers to connect to, separated by commas: any that answers will do.",
        "127.0.0.1:7233",
        "HOST:PORT,...",
    ),
    Setting("EXECUTOR_ID", "Stable name of this executor.", "the one left in its state directory", "NAME"),
    Setting("EXECUTOR_LISTEN", "Address that it serves live progress on.", "127.0.0.1:0", "HOST:PORT"),
    Setting("EXECUTOR_ADDRESS", "Address under which others reach it.", "what it listens on", "HOST:PORT"),
    Setting("NAMESPACE", "Namespace that it works for.", "default", "NAME"),
    Setting("LABELS", "Label for effects to ask for. Repeatable.", metavar="NAME=VALUE", repeated=True),
    Setting("FUNCTION_MODULES", "Python module that defines functions. Repeatable.", metavar="MODULE", repeated=True),
    HARNESS_MODULES,
    *AGENT_CLIS,
    Setting(
        "HARNESS_CHECK_SECONDS",
        "How often it looks for agent CLIs that are new, or logged in; 0: at its start, and when one fails.",
        "600",
        "SECONDS",
    ),
    Setting("AGENT_HOMES", "HOME of agents: the executor's, or one of the tenant's own.", "user", "user|tenant"),
    Setting("PRICES", "JSON file of prices of models, over the shipped one.", metavar="FILE"),
    *SLOTS,
    Setting("SECRETS_DIR", "Folder of the secrets that effects may ask for by name, one file each.", metavar="DIR"),
    Setting("STATE_DIR", "Folder of locks and working directories.", "below ~/.local/state", "DIR"),
    Setting("WORKSPACES_MAX", "Worktrees and copies of effects that are kept; older ones go.", "100", "N"),
    Setting("WORKSPACES_DAYS", "Days that they are kept after they were last used.", "30", "DAYS"),
    Setting("SPOOL_BYTES", "Bytes of results on disk while Postgres is away.", "1073741824", "BYTES"),
    Setting("SPOOL_ENTRIES", "Attempts and results that wait, at a time.", "10000", "N"),
    Setting(
        "PROCESSES_MAX",
        "Processes and threads of one attempt, where control groups bound them; 0: no bound.",
        "4096",
        "N",
    ),
    Setting("ENV_ALLOW", "Further variables that children inherit, separated by commas.", metavar="NAMES"),
    Setting(
        "KILL_WHEN_CUT_OFF", "Ends what runs when the scheduler is out of reach for half of its grace.", "false", "BOOL"
    ),
    Setting("PARK_SECONDS", "A provider's reset that is so far away, or farther, parks the effect.", "60", "SECONDS"),
    Setting("DRAIN_SECONDS", "Longest a graceful stop waits for running attempts.", "30", "SECONDS"),
    Setting("OUTPUT_BYTES", "Bytes kept of each output stream of an attempt.", "1048576", "BYTES"),
    Setting("OUTPUT_BYTES_MAX", "Most that an effect may ask for instead.", "16777216", "BYTES"),
    Setting("WATCHERS_MAX", "Subscribers of progress at a time.", "200", "N"),
    Setting("WATCH_HEARTBEAT_SECONDS", "Idle time after which a stream carries a heartbeat.", "15", "SECONDS"),
    Setting("WATCH_LIFETIME_SECONDS", "Shortest lifetime of a progress stream.", "1200", "SECONDS"),
    _METRICS,
    _LOG_LEVEL,
)


def with_settings(settings: tuple[Setting, ...]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an option for each setting."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for setting in reversed(settings):
            command = _option(setting)(command)
        return command

    return add


def _option(setting: Setting) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    default = f" Default: {setting.default}." if setting.default else ""
    return click.option(
        setting.flag,
        setting.name.lower(),
        metavar=setting.metavar,
        multiple=setting.repeated,
        help=f"{setting.meaning}{default} [{setting.variable}]",
    )


def as_env(settings: tuple[Setting, ...], given: Mapping[str, Any]) -> dict[str, str]:
    """The options that were given, as environment variables; the rest is left to the environment."""
    env = {}
    for setting in settings:
        value = given.get(setting.name.lower())
        if value:
            env[setting.variable] = ",".join(value) if setting.repeated else str(value)
    return env
