"""Where a CLI keeps its logins, sessions and temporary files.

`user`: HOME is the executor's own, with the logins and sessions that its user has. `tenant`: each namespace has a HOME
of its own in the executor's state directory, kept from attempt to attempt, so that sessions can be gone on with and
nobody finds those of another. The scratch folder is the attempt's: TMPDIR and configuration, removed afterwards, or by
the executor's next start when that one was killed.
"""

import asyncio
import contextlib
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from executor_service.workspaces.files import remove_tree

log = logging.getLogger(__name__)

HomeKind = Literal["user", "tenant"]

#: How long a working directory that nobody asked for is kept after its last use.
WORK_DAYS_MAX: Final = 7
_FORGET_MAX: Final = 4


class Homes:
    """HOME and scratch folders of a harness."""

    def __init__(self, kind: HomeKind, store: Path, incarnation: str) -> None:
        self._kind = kind
        self._store = store
        self._incarnation = incarnation

    def of(self, namespace: str) -> Path:
        """HOME of a namespace, made when needed. Its files belong to nobody else."""
        if self._kind == "user":
            return Path(os.environ.get("HOME") or Path.home())
        folder = self._store / "homes" / (namespace or "default")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def workspace(self, cwd: str, effect_id: str) -> Path:
        """The directory asked for, else one of the effect, kept so that a retry or another effect can go on in it."""
        work = self._store / "work"
        if cwd:
            if Path(cwd).is_relative_to(work) and cwd != str(work):  # of another effect: that one goes on here
                _used_now(work / Path(cwd).relative_to(work).parts[0])
            return Path(cwd)
        folder = work / effect_id
        if not folder.exists():
            self._forget_old(work)
            folder.mkdir(parents=True, exist_ok=True)
        _used_now(folder)
        return folder

    def _forget_old(self, folder: Path) -> None:
        """Removes what nobody has worked in for long, a few at a time."""
        before = time.time() - WORK_DAYS_MAX * 86400
        old = [path for path in _oldest(folder) if _used_at(path) < before]
        for path in old[:_FORGET_MAX]:
            _remove(path)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for one attempt. Its name is short: sockets in it have a longest path."""
        folder = Path(tempfile.mkdtemp(prefix=_scratch(self._incarnation)))
        try:
            yield folder
        finally:
            asyncio.get_running_loop().run_in_executor(None, _remove, folder)


def remove_scratch(incarnations: Sequence[str]) -> None:
    """Removes the scratch folders that dead incarnations left. Blocking."""
    for incarnation in incarnations:
        for folder in Path(tempfile.gettempdir()).glob(f"{_scratch(incarnation)}*"):
            _remove(folder)


def _remove(folder: Path) -> None:
    """Removes a folder, whatever a CLI has made read-only in it; what stays is said, and stops nobody."""
    try:
        remove_tree(folder)
    except OSError as error:
        log.warning("%s cannot be removed: %s", folder, error)


def _scratch(incarnation: str) -> str:
    return f"bb-{incarnation.replace('-', '')[:12]}-"


def _used_now(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.utime(folder)


def _used_at(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # another start removed it just now
        return math.inf


def _oldest(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
