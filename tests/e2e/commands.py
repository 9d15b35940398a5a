"""The `backburner` command as a child beside running services: its output as it comes, on pipes or on a terminal."""

import asyncio
import fcntl
import json
import os
import pty
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.eventually import eventually
from tests.support.screen import Screen
from tests.support.services import ROOT

SECONDS = 120.0


@dataclass
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


@dataclass(eq=False)
class Command:
    """A command that runs. `out` and `err` grow as it writes."""

    process: asyncio.subprocess.Process
    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    async def until(self, text: str) -> None:
        """Waits until the text was written to stdout or stderr."""

        def written() -> bool:
            assert self.process.returncode is None or self._has(text), self.said
            return self._has(text)

        await eventually(written, timeout=SECONDS, message=lambda: f"{text!r} in\n{self.said}")

    async def end(self) -> Done:
        """Waits for its end."""
        await asyncio.wait_for(asyncio.gather(self.process.wait(), *self.pumps), SECONDS)
        code = self.process.returncode
        assert code is not None
        done = Done(code, self.out.decode(errors="surrogateescape"), self.err.decode())
        assert "/scheduler_service/cli/" not in done.err, done.err  # a traceback of our own
        return done

    pumps: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def said(self) -> str:
        """Both streams, for messages."""
        return f"{self.out.decode(errors='replace')}\n{self.err.decode(errors='replace')}"

    def _has(self, text: str) -> bool:
        return text.encode() in self.out or text.encode() in self.err


@dataclass(eq=False)
class Terminal:
    """A command on a terminal. `raw`: all that it wrote; `screen`: what one would see of it."""

    process: asyncio.subprocess.Process
    ours: int
    screen: Screen
    raw: bytearray = field(default_factory=bytearray)
    drained: bool = False

    @property
    def text(self) -> str:
        """What one would see."""
        return self.screen.text

    async def until(self, seen: Callable[[str], object]) -> None:
        """Waits until the screen shows it."""
        await eventually(lambda: seen(self.text), timeout=SECONDS, message=lambda: self.text)

    def type(self, text: str) -> None:
        """Types."""
        os.write(self.ours, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    async def end(self) -> int:
        """Waits for its end, and for the last of its output."""
        code = await asyncio.wait_for(self.process.wait(), SECONDS)
        await eventually(lambda: self.drained, message=lambda: self.text)
        return code


class Cli:
    """Commands against one scheduler, in one folder."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address = address
        self.folder = folder
        self._running: list[asyncio.subprocess.Process] = []

    async def __call__(self, *arguments: str, stdin: bytes | None = None, **env: str) -> Done:
        """Runs a command to its end."""
        return await (await self.start(*arguments, stdin=stdin, **env)).end()

    async def json(self, *arguments: str, code: int = 0) -> list[Any]:
        """The documents that a command prints with --json."""
        done = await self(*arguments, "--json")
        assert done.code == code, done
        return [json.loads(line) for line in done.out.splitlines()]

    async def detached(self, *arguments: str) -> str:
        """Starts a run that nobody follows; its id."""
        done = await self("run", *arguments, "--detach")
        assert (done.code, done.err, done.out.count("\n")) == (0, "", 1), done
        return done.out.strip()

    async def start(self, *arguments: str, stdin: bytes | None = None, **env: str) -> Command:
        """Starts a command on pipes."""
        process = await asyncio.create_subprocess_exec(
            *self._command(arguments), cwd=self.folder, env=self._env(env), stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._running.append(process)
        command = Command(process)
        assert process.stdout is not None
        assert process.stderr is not None
        for stream, into in ((process.stdout, command.out), (process.stderr, command.err)):
            command.pumps.append(asyncio.create_task(_pump(stream, into)))
        if stdin is not None and process.stdin is not None:
            process.stdin.write(stdin)
            process.stdin.close()
        return command

    async def terminal(self, *arguments: str, columns: int = 100, lines: int = 30, **env: str) -> Terminal:
        """Starts a command on a terminal of this size."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        process = await asyncio.create_subprocess_exec(
            *self._command(arguments), cwd=self.folder, env=self._env({"TERM": "xterm-256color", **env}),
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._running.append(process)
        terminal = Terminal(process, ours, Screen(columns))
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                data = os.read(ours, 65_536)
            except OSError:
                data = b""
            terminal.raw.extend(data)
            terminal.screen.feed(data)
            if not data:
                terminal.drained = True
                loop.remove_reader(ours)
                os.close(ours)

        loop.add_reader(ours, read)
        return terminal

    async def close(self) -> None:
        """Kills what still runs."""
        for process in self._running:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "scheduler_service.cli", *arguments]

    def _env(self, extra: Mapping[str, str]) -> dict[str, str]:
        path = os.pathsep.join([str(ROOT), str(ROOT / "proto" / "gen")])
        kept = {
            name: value for name, value in os.environ.items() if name not in ("COLUMNS", "DATABASE_URL", "NO_COLOR")
        }
        fixed = {"PYTHONPATH": path, "BACKBURNER_ADDRESS": self.address, "GRPC_ENABLE_FORK_SUPPORT": "0"}
        return {**kept, **fixed, **extra}


@asynccontextmanager
async def command_line(address: str, folder: Path) -> AsyncIterator[Cli]:
    """Commands, killed at the end."""
    cli = Cli(address, folder)
    try:
        yield cli
    finally:
        await cli.close()


async def _pump(stream: asyncio.StreamReader, into: bytearray) -> None:
    while data := await stream.read(65_536):
        into.extend(data)
