"""What one agent CLI is to the runner: how it is found and started, what its lines mean, what its end means.

An adapter holds no state: `launch` says how to start a child, `parser` gives what reads its stdout.
"""

import re
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

from executor_service.harness.cli.accounts import Field, fingerprint, identity, is_there, places
from executor_service.harness.cli.events import Event, Tokens
from executor_service.harness.cli.versions import VERSIONS, Versions

#: Tries of one request that a CLI makes by itself: what lasts longer is the effect's retry policy's to wait for.
RETRIES: Final = 2


@dataclass(frozen=True, slots=True)
class Silence:
    """How long a CLI may say nothing, in seconds, before it counts as hung."""

    #: While the model is at work.
    output: float = 300.0
    #: While a tool runs: tests and builds may say nothing for long.
    tool: float = 3600.0
    #: While it tries a request again.
    retry: float = 600.0


@dataclass(frozen=True, slots=True)
class Task:
    """One turn that a CLI shall run."""

    prompt: str
    #: Directory that it works in.
    workspace: Path
    #: A folder for its own files of this turn: configuration, temporary files. It goes with the attempt.
    scratch: Path
    #: HOME of its logins and sessions.
    home: Path
    #: Variables of the effect.
    env: Mapping[str, str]
    #: Session to go on with. Empty: a fresh one.
    session_id: str = ""
    model: str = ""
    system_prompt: str = ""
    max_turns: int = 0
    #: `full`, `edit` or `read_only`.
    permissions: str = "full"
    mcp_servers: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a turn."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    #: Text for stdin. None: /dev/null; an open, silent stdin makes several CLIs wait for ever.
    stdin: str | None = None
    #: Files to write first, with their content; in the task's scratch folder.
    files: Mapping[Path, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Program:
    """A CLI that was found."""

    path: str
    #: What is run: the program, or an interpreter with it.
    argv: Sequence[str]
    version: str = ""


class Parser(Protocol):
    """Reads the lines of one child."""

    def take(self, line: Any) -> Iterable[Event]:
        """What a line says. `line` is any JSON value: whatever it is, nothing is raised."""

    def close(self, status: int) -> Iterable[Event]:
        """What the end of the output says, and the exit status (negative: a signal)."""


class Adapter(ABC):
    """One agent CLI. What is left as it stands here is what most of them have in common."""

    #: Name, as in `bb.agent(name)`.
    name: str
    #: Names of its program on PATH.
    programs: Sequence[str]
    #: With these it tells the version that `launch` will run.
    version_env: Mapping[str, str] = MappingProxyType({})
    #: Provider whose account it uses, for the breaker.
    provider: str
    #: Variables of the executor that it gets: keys, addresses.
    credentials: Sequence[str] = ()
    #: Files below HOME of which one is there when somebody is logged in.
    logins: Sequence[str] = ()
    #: A variable that names its folder, and the folder below HOME that it has otherwise.
    own_folder: tuple[str, str] = ("", "")
    #: Where its files say who is logged in: the first of them that does.
    identities: Sequence[Field] = ()
    #: True: which account it uses depends on the model, for each provider has its own.
    many_providers: bool = False
    #: What to do when it is not logged in.
    login_remedy: str = ""
    #: The signal that makes it end its tools and itself.
    first_signal: signal.Signals = signal.SIGTERM
    silence: Silence = Silence()
    #: False: it cannot go on with a session, each attempt starts afresh.
    resumes: bool = True
    #: True: its files tell what a turn consumes: while it runs, or better than its lines, or they alone.
    counts_in_files: bool = False
    #: True: its lines are text, and no JSON whatever they look like.
    plain: bool = False
    #: What it says when the session to go on with is gone. None: nothing that is known.
    session_lost: re.Pattern[str] | None = None
    #: Classes of failure (EffectReason without prefix) by exit code.
    exits: Mapping[int, str] = MappingProxyType({})

    @property
    def versions(self) -> Versions:
        """What is known of its versions."""
        return VERSIONS.get(self.name, Versions())

    def keys(self, _task: Task) -> Sequence[str]:
        """The variables of which it uses the first one that is set as its key."""
        return self.key_names

    @property
    def key_names(self) -> Sequence[str]:
        """All variables that it may take a key from."""
        return [name for name in self.credentials if name.endswith(("KEY", "TOKEN"))]

    def account(self, env: Mapping[str, str], home: Path, task: Task | None) -> str:
        """Fingerprint of the account that it uses: for a task, or without one for any. Empty: not known. Blocking."""
        keys = [env[name] for name in (self.key_names if task is None else self.keys(task)) if env.get(name)]
        if self.many_providers:
            some = task is None and (len(set(keys)) > 1 or any(map(is_there, self.login_files(env, home))))
            return fingerprint(keys[0]) if keys and not some else ""
        return fingerprint(keys[0] if keys else identity(self.identities, self.own_folder, env, home))

    def login_files(self, env: Mapping[str, str], home: Path) -> Iterator[Path]:
        """The files of which one is there when somebody is logged in."""
        return places(self.logins, self.own_folder, env, home)

    def locate(self, program: Path) -> Sequence[str]:
        """What to run for a program found on PATH: its native binary rather than a wrapper."""
        return [str(program)]

    @abstractmethod
    def launch(self, program: Program, task: Task) -> Launch:
        """How to start one turn. Raises InvalidWork for options that it does not know."""

    @abstractmethod
    def parser(self, task: Task, before: Tokens) -> Parser:
        """Reads the child of that turn; `before` is what its session had consumed until then."""

    def session_exists(self, _task: Task) -> bool:
        """False when the session to go on with is known to be gone."""
        return True

    def consumed(self, _task: Task, _session_id: str) -> Tokens | None:
        """What the session has consumed in all, by its own files; None: they do not tell."""
        return None
