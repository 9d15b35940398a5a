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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from executor_service.descendants import Reaper

log = logging.getLogger(__name__)

_PROGRAM: Final = Path(__file__).with_name("keeper.py")
#: How long a request may wait for room on its way to the program.
_ROOM_SECONDS: Final = 5.0
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
    """Asks for keepers. Whoever is kept lives no longer than this process."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._program: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        #: Process ids of the keepers that live.
        self._pids: set[int] = set()

    def start(self) -> None:
        """Starts the program. Raises SpawnFailed."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            self._program = subprocess.Popen(
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
        self._reaper.adopt(self._program.pid)
        self._socket = ours

    async def ask(self, request: dict[str, Any], fds: Sequence[int]) -> socket.socket:
        """Asks for a keeper; returns its control socket. `fds`: stdout, stderr, progress pipe, and maybe stdin.

        Raises SpawnFailed.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs, tempfile.TemporaryFile() as text:
                text.write(json.dumps(request).encode())
                text.seek(0)
                await self._send([text.fileno(), theirs.fileno(), *fds])
        except BaseException as error:
            ours.close()
            if isinstance(error, OSError):
                raise SpawnFailed(f"no keeper could be asked for: {error}") from error
            raise
        return ours

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
        """Ends the program. Keepers stay until their children are gone, or this process is."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._program is not None:
            program, self._program = self._program, None
            await asyncio.to_thread(_stop, program)
            self._reaper.release(program.pid)

    async def _send(self, fds: Sequence[int]) -> None:
        async with asyncio.timeout(_ROOM_SECONDS):
            while True:
                try:
                    socket.send_fds(self._running(), [b"."], fds)
                except BlockingIOError:
                    await asyncio.sleep(0.005)
                except (BrokenPipeError, ConnectionResetError):
                    log.error("the program that keeps children has died: another one is started")  # noqa: TRY400
                    await self.close()
                else:
                    return

    def _running(self) -> socket.socket:
        if self._socket is None:
            self.start()
        assert self._socket is not None  # noqa: S101 - `start` has set it
        return self._socket


def _stop(program: subprocess.Popen[bytes]) -> None:
    try:
        program.wait(_STOP_SECONDS)  # its socket is closed
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()
