"""One child and everything it starts: have it started by a keeper, read it, end it, prove that nobody is left.

Used by the harnesses that run programs. Nothing here waits for a pipe: a grandchild may hold one open for ever.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from executor_service import cgroups
from executor_service.descendants import sweep
from executor_service.keepers import Keepers, SpawnFailed
from executor_service.markers import MARKER

__all__ = ["Command", "ProcessGroup", "SpawnFailed", "start_group"]

log = logging.getLogger(__name__)

READ_BYTES: Final = 64 * 1024
#: Least that is read at a time, from a child whose bytes are slow to get through.
READ_BYTES_MIN: Final = 4 * 1024
#: How long one piece may hold the loop: after a longer one the next are smaller.
TURN_SECONDS: Final = 0.002
#: How long what a dead child wrote may still be on its way through its pipes.
_DRAIN_SECONDS: Final = 0.5
#: Most bytes read after that: what a pipe can hold.
_DRAIN_BYTES: Final = 1024 * 1024
#: Grace of descendants that outlive a child which ended by itself.
_LINGER_SECONDS: Final = 0.5
#: How long a keeper may kill before it says that somebody cannot be killed, and a moment more.
_GONE_SECONDS_MAX: Final = 11.0

OnData = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Command:
    """What to start."""

    argv: Sequence[str]
    cwd: str
    env: Mapping[str, str]
    stdin: str | None = None


class Pump:
    """Reads one pipe as bytes come, one piece a turn of the loop, so that a flood shares the loop with all others.

    What a piece costs depends on what is in it: a flood of reports by the line protocol costs a hundred times
    what plain output does. So pieces get smaller until one is through in `TURN_SECONDS`; the child waits meanwhile.
    """

    def __init__(self, fd: int, on_data: OnData, on_end: Callable[[], None]) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._on_data = on_data
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._piece = READ_BYTES
        self._loop.add_reader(fd, self._ready)

    def _ready(self) -> None:
        if self._read() == b"":
            self.close()

    def _read(self) -> bytes | None:
        try:
            data = os.read(self._fd, self._piece)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""
        if data:
            began = time.monotonic()
            self._on_data(data)
            self._adapt(time.monotonic() - began)
        return data

    def _adapt(self, took: float) -> None:
        if took > TURN_SECONDS:
            self._piece = max(READ_BYTES_MIN, self._piece // 2)
        elif took < TURN_SECONDS / 4:
            self._piece = min(READ_BYTES, self._piece * 2)

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
    """A running child with its descendants, and the keeper that proves when nobody of them is left."""

    def __init__(self, marker: str, keepers: Keepers, cgroup: str, control: socket.socket) -> None:
        """See `start_group`."""
        self.pid = 0
        self._marker = marker
        self._keepers = keepers
        self._cgroup = cgroup
        self._control: socket.socket | None = control
        self._received = b""
        self._keeper = 0
        self._asked = False
        self._loop = asyncio.get_running_loop()
        self._born: asyncio.Future[None] = self._loop.create_future()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._gone: asyncio.Future[str] = self._loop.create_future()
        self._quiet = asyncio.Event()
        self._pumps: list[Pump] = []
        self._loop.add_reader(control, self._receive)

    @property
    def exited(self) -> bool:
        """True once the child has exited; what it started may still live."""
        return self._exited.done()

    async def wait(self) -> int:
        """The exit status of the child: the code, or the negated signal."""
        return await asyncio.shield(self._exited)

    def end(self, grace_s: float, first_signal: int = signal.SIGTERM) -> None:
        """A signal to the group, so much time, KILL to everybody. The first call counts."""
        if self._control is not None and not self._asked:
            self._asked = True
            with contextlib.suppress(OSError):  # the keeper has ended: `_receive` sees it
                order = {"end": grace_s, "signal": int(first_signal)}
                self._control.send(json.dumps(order).encode() + b"\n")

    async def finish(self) -> bool:
        """After the exit: ends what is left of the descendants, reads what is left in the pipes. True: nobody lives."""
        self.end(_LINGER_SECONDS)
        try:
            proven = await self._until_gone()
        finally:
            self._hang_up()
        cgroups.remove(self._cgroup)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._quiet.wait()
        for pump in self._pumps:
            pump.drain()
        return proven

    async def begin(self, reads: Sequence[int], sinks: Sequence[OnData]) -> None:
        """Waits for the child to be there, and reads its pipes. Raises SpawnFailed."""
        try:
            await self._born
        except BaseException as error:
            self._hang_up()
            _close(reads)
            if isinstance(error, SpawnFailed) and error.may_have_begun:
                error.death_proven = await self._kill_unkept()
            cgroups.remove(self._cgroup)
            raise
        self._open = len(sinks)
        self._pumps = [Pump(fd, sink, self._pipe_ended) for fd, sink in zip(reads, sinks, strict=True)]

    async def _until_gone(self) -> bool:
        try:
            async with asyncio.timeout(_LINGER_SECONDS + _GONE_SECONDS_MAX):
                said = await self._gone
        except TimeoutError:
            said = "lost"
        if said == "proven":
            return True
        if said == "lost":
            log.error("the keeper of child %d does not answer: its descendants are looked for without it", self.pid)
            return await self._kill_unkept()
        return said == "group" and await sweep(self._marker)

    async def _kill_unkept(self) -> bool:
        """Kills what can be found without the keeper. True: the child's control group says that nobody is alive."""
        if self.pid:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        await sweep(self._marker, on_found=self._keepers.orphaned)
        return bool(self._cgroup) and await cgroups.kill(self._cgroup)

    def _receive(self) -> None:
        assert self._control is not None  # noqa: S101 - it is read
        try:
            data = self._control.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))
        if not data:
            self._hang_up()

    def _take(self, message: Mapping[str, Any]) -> None:
        if "pid" in message:
            self.pid, self._keeper = message["pid"], message["keeper"]
            self._keepers.known(self._keeper, self.pid)
            _answer(self._born, None)
        elif "keeper" in message:
            self._keeper = message["keeper"]
            self._keepers.known(self._keeper)
        elif "error" in message and not self._born.done():
            self._born.set_exception(SpawnFailed(message["error"], message["errno"]))
        elif "exit" in message:
            _answer(self._exited, message["exit"])
        elif "gone" in message:
            _answer(self._gone, message["gone"])

    def _hang_up(self) -> None:
        """Nothing more is heard of the keeper, which kills whoever is left."""
        if self._control is None:
            return
        self._loop.remove_reader(self._control)
        self._control.close()
        self._control = None
        self._keepers.forget(self._keeper)
        if not self._born.done():
            self._born.set_exception(_died_early(self._keeper))
        _answer(self._exited, -signal.SIGKILL)
        _answer(self._gone, "lost")

    def _pipe_ended(self) -> None:
        self._open -= 1
        if self._open == 0:
            self._quiet.set()


async def start_group(
    command: Command, marker: str, keepers: Keepers, cgroup: str, sinks: Sequence[OnData]
) -> ProcessGroup:
    """Starts a child, in a session of its own. `sinks`: stdout, stderr, progress pipe. Raises SpawnFailed."""
    request = {"argv": list(command.argv), "cwd": command.cwd, "env": {**command.env, MARKER: marker}, "cgroup": cgroup}
    pipes = _pipes(len(sinks))
    reads = [read for read, _ in pipes]
    try:
        with _stdin(command.stdin) as stdin:
            control = await keepers.ask(request, [*(write for _, write in pipes), *stdin])
    except BaseException as error:
        _close(reads)
        cgroups.remove(cgroup)
        if isinstance(error, (OSError, ValueError, TypeError)):
            raise SpawnFailed(f"{command.argv[0]!r} could not be started: {error}") from error
        raise
    finally:
        _close(write for _, write in pipes)
    group = ProcessGroup(marker, keepers, cgroup, control)
    await group.begin(reads, sinks)
    return group


def _died_early(keeper: int) -> SpawnFailed:
    """What to think of a child whose keeper is gone, and had not said that it is there; 0: it had said nothing."""
    if keeper:
        message = (
            "its keeper died in the moment when it started the child: nobody knows whether that had begun its work"
        )
        return SpawnFailed(message, may_have_begun=True)
    return SpawnFailed("the keeper of the child died before it could start it, or no process was to be had for it")


def _answer(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _pipes(count: int) -> list[tuple[int, int]]:
    pipes: list[tuple[int, int]] = []
    try:
        for _ in range(count):
            pipes.append(os.pipe())  # noqa: PERF401 - those that were made must be known when one fails
    except OSError as error:
        _close(fd for pipe in pipes for fd in pipe)
        raise SpawnFailed(f"no pipe could be made: {error}") from error
    return pipes


@contextlib.contextmanager
def _stdin(text: str | None) -> Iterator[list[int]]:
    """A file to read the text from: unlike a pipe, nobody has to be there to write it. Nothing for /dev/null."""
    if text is None:
        yield []
        return
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        yield [file.fileno()]


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
