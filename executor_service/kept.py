"""A program that a thread waits for, such as git: kept by a keeper as the children of attempts are.

What it starts, and however that leaves its group, its session or its parent, is ended with it. When the executor dies
it may go on for a moment (OUTLIVES_SECONDS), so that it leaves no locks behind.
"""

import contextlib
import json
import logging
import os
import select
import signal
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from executor_service.keepers import Keepers, SpawnFailed
from executor_service.markers import MARKER, helper_marker, kill_all_marked

log = logging.getLogger(__name__)

#: How long it may go on when the executor is gone.
OUTLIVES_SECONDS: Final = 30.0
#: Between TERM and KILL, of one that shall end, and of what it has left.
GRACE_SECONDS: Final = 5.0
_LINGER_SECONDS: Final = 0.5
#: How long a keeper may kill before it says that somebody cannot be killed, and a moment more.
_GONE_SECONDS_MAX: Final = 11.0
_LOOK_SECONDS: Final = 0.1
_READ_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Program:
    """What to start. `stdin` and `stderr` are files; `holds` is one that all of them hold open; -1: none."""

    argv: Sequence[str]
    cwd: str
    env: Mapping[str, str]
    stdin: int
    stderr: int
    holds: int = -1


class Kept:
    """One run of a program. Blocking: for threads."""

    def __init__(self, keepers: Keepers, program: Program) -> None:
        """Starts it. Raises SpawnFailed."""
        self._keepers = keepers
        self._marker = helper_marker(keepers.incarnation, uuid.uuid4().hex)
        self._received = b""
        self._keeper = self._pid = 0
        self._status: int | None = None
        self._failure: SpawnFailed | None = None
        self._gone = ""
        self._ending = False
        self._give_up_at = 0.0
        self._out, write = os.pipe()
        try:
            self._control = self._ask(program, write)
        except BaseException:
            os.close(self._out)
            raise
        finally:
            os.close(write)
        os.set_blocking(self._out, False)

    def _ask(self, program: Program, stdout: int) -> socket.socket:
        request = {
            "argv": list(program.argv),
            "cwd": program.cwd,
            "env": {**program.env, MARKER: self._marker},
            "progress": False,
            "outlives": OUTLIVES_SECONDS,
        }
        with Path(os.devnull).open("rb") as nothing:
            holds = nothing.fileno() if program.holds < 0 else program.holds
            return self._keepers.ask_in_thread(request, [stdout, program.stderr, holds, program.stdin])

    def wait(self, take: Callable[[bytes], None], check: Callable[[], None]) -> int:
        """Hands on its output until it, and all that it has started, has ended; returns its exit status.

        `check` is called several times a second: what it raises ends the program, and is raised when nobody is left.
        Raises SpawnFailed.
        """
        raised: Exception | None = None
        try:
            while not self._gone:
                self._look(take)
                try:
                    check()
                except Exception as error:  # noqa: BLE001 - raised again when nobody is left
                    raised = raised or error
                    self._end(GRACE_SECONDS)
            self._see_to_the_rest()
            self._read(take)
        finally:
            self._close()
        if raised is not None:
            raise raised
        if self._failure is not None or self._status is None:
            raise self._failure or SpawnFailed("its keeper was killed", may_have_begun=True)
        return self._status

    def _look(self, take: Callable[[bytes], None]) -> None:
        """Waits for news, and takes them."""
        poll = select.poll()  # not select: an executor may have more than 1024 files open
        for fd in (self._out, self._control.fileno()):
            if fd >= 0:
                poll.register(fd, select.POLLIN | select.POLLHUP)
        ready = {fd for fd, _ in poll.poll(_LOOK_SECONDS * 1000)}
        if self._out in ready:
            self._read(take, once=True)
        if self._control.fileno() in ready:
            self._hear()
        if self._ending and time.monotonic() > self._give_up_at:
            self._gone = "lost"

    def _read(self, take: Callable[[bytes], None], *, once: bool = False) -> None:
        """Reads one piece, or all that is there."""
        while self._out >= 0:
            try:
                data = os.read(self._out, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                os.close(self._out)
                self._out = -1
                return
            take(data)
            if once:
                return

    def _hear(self) -> None:
        try:
            data = self._control.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._heard(json.loads(line))
        if not data and not self._gone:
            self._gone = "failed" if self._failure is not None else "lost"

    def _heard(self, message: Mapping[str, Any]) -> None:
        if "error" in message:
            self._failure = SpawnFailed(message["error"], message["errno"])
        elif "exit" in message:
            self._status = message["exit"]
            self._end(_LINGER_SECONDS)
        elif "gone" in message:
            self._gone = message["gone"]
        elif "keeper" in message:
            self._keeper, self._pid = message["keeper"], message.get("pid", 0)
            self._keepers.known(self._keeper, self._pid)

    def _end(self, grace_s: float) -> None:
        """TERM to its group, so much time, KILL to everybody. The first call counts."""
        if self._ending:
            return
        self._ending = True
        self._give_up_at = time.monotonic() + grace_s + _GONE_SECONDS_MAX
        with contextlib.suppress(OSError):  # the keeper has ended: `_hear` sees it
            self._control.send(json.dumps({"end": grace_s}).encode() + b"\n")

    def _see_to_the_rest(self) -> None:
        """What the keeper could not prove to be dead is looked for by its marker, and killed."""
        if self._gone in ("proven", "failed") or (self._gone == "lost" and not self._keeper):
            return
        if self._gone == "lost" and self._pid and self._status is None:
            with contextlib.suppress(OSError):
                os.killpg(self._pid, signal.SIGKILL)
        if not kill_all_marked(self._marker, clean_seconds=0.0, seconds_max=_GONE_SECONDS_MAX):
            log.error("what program %d has started cannot be killed", self._pid)

    def _close(self) -> None:
        self._keepers.forget(self._keeper)
        self._control.close()
        if self._out >= 0:
            os.close(self._out)
            self._out = -1
