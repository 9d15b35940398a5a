"""Starts the guard (`guardian.py`), starts another when it dies, and lets it go when the executor ends in order."""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from executor_service.descendants import Reaper
from executor_service.errors import StartError
from executor_service.guardian import IN_ORDER
from executor_service.markers import MARKER, ON_LINUX

log = logging.getLogger(__name__)

_ROOT: Final = str(Path(__file__).parents[1])
#: The project's root comes last: nothing in it can stand in for the standard library.
_BOOT: Final = "import sys; sys.path.append(sys.argv[1]); import executor_service.guardian as g; sys.exit(g.main("
_PROGRAM: Final = f"{_BOOT}sys.argv[2], int(sys.argv[3])))"
#: Libraries of the environment are left out where the guard needs none: it stays small, and starts at once.
_FLAGS: Final = ("-I", "-S") if ON_LINUX else ("-I",)
#: A guard outlives what ends the executor. Blocked signals stay blocked in it from its very first instruction.
_NOT_FOR_IT: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_AGAIN_SECONDS: Final = 1.0
#: How long the guard may take for a last look round when the executor ends in order.
_LAST_LOOK_SECONDS: Final = 10.0


class Guard:
    """The guard of one incarnation."""

    def __init__(self, marker: str, reaper: Reaper) -> None:
        self._marker = marker
        self._reaper = reaper
        self._ended = asyncio.Event()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the guard; 0 while there is none."""
        return 0 if self._process is None else self._process.pid

    def start(self) -> None:
        """Starts a guard. Raises StartError: without one nothing may be started that could be left behind."""
        try:
            process = self._spawn()
        except OSError as error:
            raise StartError(f"the guard of this executor's children cannot be started: {error}") from error
        self._process = process
        self._reaper.adopt(process.pid)
        self._ended.clear()
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        asyncio.get_running_loop().add_reader(process.stdout.fileno(), self._ended.set)

    async def run(self) -> None:
        """Starts another guard whenever one ends, until cancelled."""
        while True:
            await self._ended.wait()
            if self._process is not None:
                status = self._bury(self._process)
                log.error("the guard of this executor's children has ended (%s): another one is started", status)
            try:
                self.start()
            except StartError as error:
                log.error("%s: tried again", error)  # noqa: TRY400 - no bug
            await asyncio.sleep(_AGAIN_SECONDS)

    async def leave(self) -> bool:
        """The executor ends in order. True: the guard has looked round a last time, and nobody is alive."""
        process = self._process
        if process is None or process.stdin is None:
            return False
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(IN_ORDER)
        process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_LOOK_SECONDS):
                await self._ended.wait()
                return self._bury(process) == 0
        log.error("children of this executor cannot be killed: the guard goes on trying")
        self._forget(process)
        return False

    def _spawn(self) -> subprocess.Popen[bytes]:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_IT)
        try:
            return subprocess.Popen(
                [sys.executable, *_FLAGS, "-c", _PROGRAM, _ROOT, self._marker, str(os.getpid())],
                cwd="/",
                env={MARKER: os.environ[MARKER]} if MARKER in os.environ else {},  # an executor may itself be a child
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # nobody who waits for the executor's output shall wait for the guard
                bufsize=0,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _bury(self, process: subprocess.Popen[bytes]) -> int:
        """Takes leave of a guard that has ended; its exit status."""
        self._forget(process)
        status = process.wait()  # its end of the pipe is closed: this does not wait
        self._reaper.release(process.pid)
        return status

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None and process.stdin is not None  # noqa: S101, PT018 - pipes were asked for
        asyncio.get_running_loop().remove_reader(process.stdout.fileno())
        process.stdout.close()
        process.stdin.close()
        self._process = None
