"""The executor's way to its keepers (`keeper.py`): starts the program that forks them, and asks it for children."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from executor_service.descendants import Reaper

log = logging.getLogger(__name__)

_PROGRAM: Final = Path(__file__).with_name("keeper.py")
#: How long a request may wait for room on its way to the program.
_ROOM_SECONDS: Final = 5.0
_ROOM_LOOK_SECONDS: Final = 0.005
_STOP_SECONDS: Final = 5.0


class SpawnFailed(Exception):
    """The child could not be started; the message says why. `errno`: the system's number of that; 0: none."""

    def __init__(self, message: str, errno: int = 0, *, may_have_begun: bool = False) -> None:
        super().__init__(message)
        self.errno = errno
        #: True when nobody knows whether the child ran: its keeper died before it could say so.
        self.may_have_begun = may_have_begun
        #: Of one that may have: whether it is proven that nobody of it is alive.
        self.death_proven = False


class Keepers:
    """Asks for keepers. Whoever is kept lives no longer than this process, but for what was asked to `outlive` it.

    `incarnation`: of the executor, for the markers of what its threads have kept.
    """

    def __init__(self, reaper: Reaper, incarnation: str = "") -> None:
        self.incarnation = incarnation
        self._reaper = reaper
        #: Held while the program is started or parted with: threads ask too.
        self._lock = threading.Lock()
        self._program: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._closed = False
        #: Process ids of the keepers that live.
        self._pids: set[int] = set()

    def start(self) -> None:
        """Starts the program, unless it runs. Raises SpawnFailed."""
        self._running()

    async def ask(self, request: dict[str, Any], fds: Sequence[int]) -> socket.socket:
        """Asks for a keeper; returns its control socket. `fds`: stdout, stderr, progress pipe, and maybe stdin.

        Raises SpawnFailed.
        """
        with _asked(request, fds) as (ours, given):
            async with asyncio.timeout(_ROOM_SECONDS):
                while (broken := self._give(given)) is not None:
                    if broken.died:
                        await asyncio.to_thread(self._part, broken)
                    await asyncio.sleep(_ROOM_LOOK_SECONDS)
        return ours

    def ask_in_thread(self, request: dict[str, Any], fds: Sequence[int]) -> socket.socket:
        """As `ask`, from a thread that may block."""
        with _asked(request, fds) as (ours, given):
            deadline = time.monotonic() + _ROOM_SECONDS
            while (broken := self._give(given)) is not None:
                self._part(broken)
                if time.monotonic() > deadline:
                    raise TimeoutError("the program that keeps children takes no request")
                time.sleep(_ROOM_LOOK_SECONDS)
        return ours

    def leave_alone(self) -> AbstractContextManager[None]:
        """For a thread that starts children of this process and reaps them itself."""
        return self._reaper.leave_alone()

    def known(self, keeper: int, child: int = 0) -> None:
        """A keeper lives, and keeps this child; 0: it is about to start it."""
        self._pids.add(keeper)
        for session in filter(None, (keeper, child)):
            self._reaper.expect(session)

    def orphaned(self, pids: list[int]) -> None:
        """Descendants of a child whose keeper was killed: they come to us."""
        self._reaper.seen(pids)

    def forget(self, pid: int) -> None:
        """It has ended."""
        self._pids.discard(pid)

    def rouse(self) -> None:
        """Wakes keepers that somebody has stopped: a child may signal whatever runs as the same user."""
        for pid in [*self._pids, *([self._program.pid] if self._program is not None else [])]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)

    async def close(self) -> None:
        """Ends the program for good. Keepers stay until their children are gone, or this process is."""
        self._closed = True
        if self._socket is not None:
            await asyncio.to_thread(self._part, _Broken(self._socket, died=True))

    def _give(self, fds: Sequence[int]) -> "_Broken | None":
        """Hands the descriptors to the program; else the way that was not free for them, or is none any more."""
        way = self._running()
        try:
            socket.send_fds(way, [b"."], fds)
        except BlockingIOError:
            return _Broken(way, died=False)
        except (BrokenPipeError, ConnectionResetError):
            log.error("the program that keeps children has died: another one is started")  # noqa: TRY400 - no bug
            return _Broken(way, died=True)
        except OSError:
            if way.fileno() >= 0:
                raise
            return _Broken(way, died=False)  # another thread has just parted with it
        return None

    def _running(self) -> socket.socket:
        with self._lock:
            if self._socket is None:
                if self._closed:  # threads may ask to the last
                    raise SpawnFailed("the executor stops, and starts nothing any more")
                self._socket, self._program = _start()
                self._reaper.adopt(self._program.pid)
            return self._socket

    def _part(self, broken: "_Broken") -> None:
        """Parts with the program at the other end, when that is dead and nobody else has done so. Blocking."""
        if not broken.died:
            return
        with self._lock:
            if self._socket is not broken.way:
                return
            program, self._program, self._socket = self._program, None, None
            broken.way.close()
        if program is not None:
            _stop(program)
            self._reaper.release(program.pid)


@dataclass(frozen=True, slots=True)
class _Broken:
    """A way to the program that took no request. `died`: it never will."""

    way: socket.socket
    died: bool


def _start() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """The program, and the way to it. Raises SpawnFailed."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    try:
        program = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_PROGRAM), str(theirs.fileno()), str(os.getpid())],
            cwd="/",
            env={},  # a child could read it
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
    except OSError as error:
        ours.close()
        raise SpawnFailed(f"the keeper of children cannot be started: {error}") from error
    finally:
        theirs.close()
    return ours, program


@contextlib.contextmanager
def _asked(request: dict[str, Any], fds: Sequence[int]) -> Iterator[tuple[socket.socket, list[int]]]:
    """Our end of a control socket, and what goes to the program for it. An OSError becomes a SpawnFailed."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    try:
        with theirs, tempfile.TemporaryFile() as text:
            text.write(json.dumps(request).encode())
            text.seek(0)
            yield ours, [text.fileno(), theirs.fileno(), *fds]
    except BaseException as error:
        ours.close()
        if isinstance(error, OSError):
            raise SpawnFailed(f"no keeper could be asked for: {error}") from error
        raise


def _stop(program: subprocess.Popen[bytes]) -> None:
    try:
        program.wait(_STOP_SECONDS)  # its socket is closed
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()
