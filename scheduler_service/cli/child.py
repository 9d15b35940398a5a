"""A service as a child: started in its own process group, its log kept, stopped in order or by force."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Final, cast

import psutil

_LOG_BYTES_MAX: Final = 10 * 1024 * 1024
_TAIL_LINES: Final = 20
_POLL_SECONDS: Final = 0.05
_WARNING: Final = re.compile(r"\b(WARN|WARNING|ERROR|CRITICAL|FATAL)\b|^Traceback ", re.IGNORECASE)
_ROUTINE: Final = re.compile(r"\b(DEBUG|INFO)\b")

LineSink = Callable[[str, str], None]
"""Takes the name of a child and a line of its log."""


class Child:
    """A running service. Its output goes to `log` and, line by line, to `sink`."""

    def __init__(self, name: str, module: str, env: Mapping[str, str], log: Path, sink: LineSink) -> None:
        self.name = name
        self.log = log
        self._sink = sink
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scheduler_service.cli.tether", module],
            stdin=subprocess.PIPE,  # held open until we are gone (tether.py)
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,  # Ctrl-C in the terminal is for us: we stop the services in order
        )
        self._output = cast("IO[bytes]", self._process.stdout)
        self._pump = threading.Thread(target=self._forward, name=f"log of {name}", daemon=True)
        self._pump.start()

    @property
    def pid(self) -> int:
        """Its process id, which is its process group's too."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def describe_exit(self) -> str:
        """How it ended, in words, with the end of its log."""
        code = self.exit_code
        how = f"exit code {code}" if code is None or code >= 0 else f"signal {signal.Signals(-code).name}"
        self._pump.join(2.0)  # its last words may still be in the pipe
        tail = "\n".join(f"    {line}" for line in self._tail) or "    (it logged nothing)"
        return f"the {self.name} ended by itself ({how}); the end of {self.log}:\n{tail}"

    def stop(self, patience: float, force: threading.Event) -> bool:
        """Ask it to stop; after `patience` seconds, or when `force` is set, kill its whole tree. True: it obeyed."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        deadline = time.monotonic() + patience
        while self._process.poll() is None and time.monotonic() < deadline and not force.is_set():
            time.sleep(_POLL_SECONDS)
        obeyed = self._process.poll() is not None
        if not obeyed:
            kill_tree(self.pid)
        self._process.wait()
        self._close()
        return obeyed

    def _close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._pump.join(2.0)

    def _forward(self) -> None:
        writer = _log_writer(self.log)
        try:
            for raw in self._output:
                line = raw.decode(errors="replace").rstrip("\n")
                self._tail.append(line)
                writer.handle(logging.makeLogRecord({"msg": line}))
                self._sink(self.name, line)
        finally:
            writer.close()
            self._output.close()


def kill_tree(pid: int) -> None:
    """Kill a process and all that descends from it."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        root.suspend()  # or it would start another child while we look
        kill_descendants(pid)
        root.kill()


def kill_descendants(pid: int) -> None:
    """Kill all that descends from a process, whatever groups and sessions they went to.

    An executor adopts the orphans of its children, so below it this is everybody.
    """
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def is_warning(line: str) -> bool:
    """True for a log line that the owner should see: its level is a warning or worse."""
    found = _WARNING.search(line)
    routine = _ROUTINE.search(line)
    # The level stands before the message, and a message may speak of errors.
    return found is not None and (routine is None or found.start() < routine.start())


def _log_writer(path: Path) -> RotatingFileHandler:
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(path, maxBytes=_LOG_BYTES_MAX, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler
