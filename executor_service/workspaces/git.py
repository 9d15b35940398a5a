"""git as a child: in a thread, with a bound of time, without prompts and without hooks.

An agent may have written the filters and drivers that it runs (`programs.py` says which). So of the environment it gets
what children of attempts do: nothing that leads git elsewhere (GIT_DIR, GIT_INDEX_FILE, ...), and no credentials. And
it is kept (`kept.py`): when a call has ended, nobody is alive whom it has started. A git that shall end gets TERM, at
which it removes its own locks, and KILL when that does not help.
"""

import errno
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Final, Protocol

from executor_service.harness.child import INHERITED
from executor_service.keepers import Keepers, SpawnFailed
from executor_service.kept import Kept, Program

#: Longest that one call of git may take.
GIT_SECONDS: Final = 600.0
#: Most bytes of output that are kept of a call.
OUTPUT_BYTES_MAX: Final = 64 << 20
_STDERR_BYTES_MAX: Final = 4096

#: Who commits what agents leave uncommitted.
IDENTITY: Final = ("Backburner", "backburner@localhost")
_CONFIG: Final = (
    "core.hooksPath=/dev/null", "core.fsmonitor=false", "core.quotePath=false", "gc.auto=0", "maintenance.auto=false",
    "submodule.recurse=false", "advice.addEmbeddedRepo=false", "advice.detachedHead=false",
    "protocol.ext.allow=never", "log.showSignature=false",
)  # fmt: skip
_FLAGS: Final = tuple(part for setting in _CONFIG for part in ("-c", setting))


class GitFailed(Exception):
    """git did not do it; the message says what was asked, and what git said."""


class Stopped(Exception):
    """The work was asked to end."""


class Stop(Protocol):
    """Says that the work shall end: a threading.Event will do."""

    def is_set(self) -> bool:
        """True when it shall end."""

    def wait(self, timeout: float) -> bool:
        """Waits for that, at most so many seconds; True when it shall end."""


@dataclass(frozen=True, slots=True)
class Said:
    """How a call ended. `out` is at most as much as was asked for, of `out_bytes` in all."""

    status: int
    out: bytes
    out_bytes: int
    err: str

    @property
    def text(self) -> str:
        """The output without its last line break; undecodable bytes become surrogates, as in names of files."""
        return os.fsdecode(self.out).removesuffix("\n")


@dataclass(frozen=True, slots=True)
class Git:
    """git in one folder."""

    folder: Path
    keepers: Keepers
    stop: Stop = field(default_factory=threading.Event)
    env: Mapping[str, str] = field(default_factory=dict)
    #: Time of the monotonic clock by which all calls must have ended.
    until: float = math.inf
    #: A lock that lives as long as its children do.
    lock_fd: int = -1

    def minding(self) -> AbstractContextManager[None]:
        """While it is held nobody else reaps the children of this process."""
        return self.keepers.leave_alone()

    def at(self, folder: Path) -> "Git":
        """The same in another folder."""
        return replace(self, folder=folder)

    def knowing(self, **env: str) -> "Git":
        """The same with more variables."""
        return replace(self, env={**self.env, **env})

    def line(self, *args: str, stdin: bytes = b"") -> str:
        """Calls it, and answers what it printed. Raises GitFailed, Stopped."""
        return self.run(*args, stdin=stdin).text

    def asks(self, *args: str) -> bool:
        """True when it exits with 0, False with 1. Raises GitFailed, Stopped."""
        return self.run(*args, fine=(0, 1)).status == 0

    def run(
        self, *args: str, stdin: bytes = b"", fine: Collection[int] = (0,), bytes_max: int = OUTPUT_BYTES_MAX
    ) -> Said:
        """Calls it. Raises GitFailed when its status is not fine, Stopped."""
        said = self._run(args, stdin, bytes_max)
        if said.status not in fine:
            raise GitFailed(f"git {' '.join(args[:2])} in {self.folder}: {said.err or f'status {said.status}'}")
        return said

    def _run(self, args: Collection[str], stdin: bytes, bytes_max: int) -> Said:
        out, total = bytearray(), 0

        def take(data: bytes) -> None:
            nonlocal total
            total += len(data)
            out.extend(data[: bytes_max - len(out)])

        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as err:
            given.write(stdin)
            given.seek(0)
            deadline = min(time.monotonic() + GIT_SECONDS, self.until)
            status = self._wait(args, (given, err), take, lambda: self._check(args, deadline))
            err.seek(0)
            return Said(status, bytes(out), total, err.read(_STDERR_BYTES_MAX).decode(errors="replace").strip())

    def _wait(
        self,
        args: Collection[str],
        files: tuple[IO[bytes], IO[bytes]],
        take: Callable[[bytes], None],
        check: Callable[[], None],
    ) -> int:
        if self.stop.is_set():
            raise Stopped
        env = _environment() | dict(self.env)
        stdin, stderr = (file.fileno() for file in files)
        try:
            program = Program(["git", *_FLAGS, *args], str(self.folder), env, stdin, stderr, self.lock_fd)
            return Kept(self.keepers, program).wait(take, check)
        except SpawnFailed as error:
            if error.errno == errno.ENOENT and not self.folder.is_dir():
                raise GitFailed(f"{self.folder} is no directory on this executor") from error
            if error.errno == errno.ENOENT:
                raise GitFailed("git is not on this executor: install it, 2.38 or newer") from error
            raise GitFailed(f"git {' '.join(list(args)[:2])} in {self.folder}: {error}") from error
        except (OSError, ValueError) as error:
            raise GitFailed(f"git cannot be started in {self.folder}: {error}") from error

    def _check(self, args: Collection[str], deadline: float) -> None:
        if self.stop.is_set():
            raise Stopped
        if time.monotonic() > deadline:
            raise GitFailed(f"git {' '.join(list(args)[:2])} in {self.folder} was ended: it took too long")


def _environment() -> dict[str, str]:
    inherited = {name: os.environ[name] for name in (*INHERITED, "XDG_CONFIG_HOME") if name in os.environ}
    name, email = IDENTITY
    return inherited | {
        "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "SSH_ASKPASS": "true",
        "GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": email, "GIT_COMMITTER_NAME": name, "GIT_COMMITTER_EMAIL": email,
    }  # fmt: skip
