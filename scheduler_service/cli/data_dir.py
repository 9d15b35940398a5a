"""One `backburner dev` a data directory: who came first holds a lock on a file that says who it is."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from scheduler_service.cli.errors import CliError

_FILE: Final = "dev.lock"


class DataDir:
    """A data directory while it is held. The lock goes with the process that has it, however that ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """True between `hold` and `release`."""
        return self._descriptor is not None

    def hold(self, listen: str) -> None:
        """Make the directory if need be, and lock it. Raises CliError that names the holder."""
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise CliError(
                f"{self.path.resolve()} is in use by a `backburner dev`{f' ({holder})' if holder else ''}",
                "commands in its folder find it by themselves; another one beside it needs "
                "--data-dir DIR and --listen HOST:PORT of its own",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}, at {listen}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let others have it."""
        if self._descriptor is not None:
            with suppress(OSError):  # the whole directory may be gone: --ephemeral
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None
