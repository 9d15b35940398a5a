"""One child and everything it starts: spawn it in a session of its own, read it, end it, prove that nobody is left.

Used by the harnesses that run programs. Nothing here waits for a pipe: a grandchild may hold one open for ever.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from executor_service.descendants import MARKER, Reaper, group_members, sweep

READ_BYTES: Final = 64 * 1024
#: How long what a dead child wrote may still be on its way through its pipes.
_DRAIN_SECONDS: Final = 0.5
#: Most bytes read after that: what a pipe can hold.
_DRAIN_BYTES: Final = 1024 * 1024
#: Grace of descendants that outlive a child which ended by itself.
_LINGER_SECONDS: Final = 0.5
#: How long a killed process may take to be gone.
_DYING_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.005
_POLL_SECONDS_MAX: Final = 0.1

OnData = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Command:
    """What to start."""

    argv: Sequence[str]
    cwd: str
    env: Mapping[str, str]
    stdin: str | None = None


class SpawnFailed(Exception):
    """The system refused to start the child; the message says why."""


class Pump:
    """Reads one pipe as bytes come, one piece a turn of the loop, so that a flood shares the loop with all others."""

    def __init__(self, fd: int, on_data: OnData, on_end: Callable[[], None]) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._on_data = on_data
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._ready)

    def _ready(self) -> None:
        if self._read() == b"":
            self.close()

    def _read(self) -> bytes | None:
        try:
            data = os.read(self._fd, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""
        if data:
            self._on_data(data)
        return data

    def drain(self) -> None:
        """Reads what is there, within bounds, and closes."""
        taken = 0
        while self._fd >= 0 and taken < _DRAIN_BYTES and (data := self._read()):
            taken += len(data)
        self.close()

    def close(self) -> None:
        """Stops reading. May be repeated."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._on_end()


class ProcessGroup:
    """A running child with its descendants."""

    def __init__(self, command: Command, marker: str, reaper: Reaper, sinks: Sequence[OnData]) -> None:
        """Starts the child. `sinks`: stdout, stderr, progress pipe. Raises SpawnFailed."""
        self._marker = marker
        self._reaper = reaper
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._quiet = asyncio.Event()
        self._open = len(sinks)
        pipes = _pipes(len(sinks))
        try:
            self._child = _spawn(command, marker, [write for _, write in pipes])
        except SpawnFailed:
            _close(read for read, _ in pipes)
            raise
        finally:
            _close(write for _, write in pipes)
        self.pid = self._child.pid
        reaper.adopt(self.pid)
        self._pumps = [Pump(read, sink, self._pipe_ended) for (read, _), sink in zip(pipes, sinks, strict=True)]
        self._watch_exit()

    async def wait(self) -> int:
        """The exit status of the child: the code, or the negated signal."""
        return await asyncio.shield(self._exited)

    async def finish(self, *, killed: bool) -> bool:
        """After the exit: ends what is left of the descendants, reads what is left in the pipes. True: nobody lives."""
        try:
            proven = await self._end_survivors(thorough=killed)
        finally:
            self._bury()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._quiet.wait()
        for pump in self._pumps:
            pump.drain()
        return proven

    async def end(self, grace_s: float) -> None:
        """TERM to the group, time to react, KILL. Returns when the child itself has ended."""
        self._signal(signal.SIGTERM)
        await self._until_group_empty(grace_s)
        self._signal(signal.SIGKILL)
        await self.wait()

    async def _end_survivors(self, *, thorough: bool) -> bool:
        if not thorough:
            self._reaper.reap()
            if self._reaper.orphans() == frozenset():
                return True  # whoever outlives a child of ours becomes a child of ours
            self._signal(signal.SIGTERM)
            await self._until_group_empty(_LINGER_SECONDS)
        self._signal(signal.SIGKILL)
        proven = await sweep(self._marker, on_found=self._reaper.seen)
        return await self._until_group_empty(_DYING_SECONDS) and proven

    async def _until_group_empty(self, seconds: float) -> bool:
        """Waits for the group to be empty but for a dead child; False when it is not in time."""
        deadline = time.monotonic() + seconds
        pause = _POLL_SECONDS
        while not (self._exited.done() and not await asyncio.to_thread(group_members, self.pid)):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _POLL_SECONDS_MAX)
        return True

    def _signal(self, signum: signal.Signals) -> None:
        # The child is not reaped before `finish` is done, so that its id cannot become another group's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signum)

    def _watch_exit(self) -> None:
        try:
            handle = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not Linux, or an old kernel
            waiting = self._loop.run_in_executor(None, self._child.wait)
            waiting.add_done_callback(lambda done: self._set_exited(done.result()))
        else:
            self._loop.add_reader(handle, self._on_pidfd, handle)

    def _on_pidfd(self, handle: int) -> None:
        self._loop.remove_reader(handle)
        os.close(handle)
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None  # noqa: S101 - without WNOHANG there is always one
        self._set_exited(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status)

    def _set_exited(self, status: int) -> None:
        if not self._exited.done():
            self._exited.set_result(status)

    def _bury(self) -> None:
        self._child.wait()  # it has ended: this does not wait
        self._reaper.release(self.pid)
        self._reaper.reap()

    def _pipe_ended(self) -> None:
        self._open -= 1
        if self._open == 0:
            self._quiet.set()


def _pipes(count: int) -> list[tuple[int, int]]:
    pipes: list[tuple[int, int]] = []
    try:
        for _ in range(count):
            pipes.append(os.pipe())  # noqa: PERF401 - those that were made must be known when one fails
    except OSError as error:
        _close(fd for pipe in pipes for fd in pipe)
        raise SpawnFailed(f"no pipe could be made: {error}") from error
    return pipes


def _spawn(command: Command, marker: str, writes: Sequence[int]) -> subprocess.Popen[bytes]:
    """Starts the child by vfork: no preexec_fn, no change of user."""
    stdout, stderr, report = writes
    env = {
        **command.env,
        MARKER: marker,
        "BACKBURNER_PROGRESS": f"/dev/fd/{report}",
        "BACKBURNER_PROGRESS_FD": str(report),
    }
    try:
        with _stdin(command.stdin) as stdin:
            return subprocess.Popen(
                command.argv,
                cwd=command.cwd,
                env=env,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(report,),
                start_new_session=True,
            )
    except (OSError, ValueError, TypeError) as error:
        raise SpawnFailed(f"{command.argv[0]!r} could not be started: {error}") from error


@contextlib.contextmanager
def _stdin(text: str | None) -> Iterator[int]:
    """A file to read the text from: unlike a pipe, nobody has to be there to write it."""
    if text is None:
        yield subprocess.DEVNULL
        return
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        yield file.fileno()


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
