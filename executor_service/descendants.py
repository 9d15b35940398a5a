"""Finding and ending every descendant of an attempt, also those that left its process group.

Each child carries a marker in its environment, which its descendants inherit whatever they do to their group, session
or parent. On Linux this process is a subreaper besides: orphans become its children, so that a look at its own children
proves that nothing is left, without a scan. Elsewhere the scan goes through psutil and orphans belong to init.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import psutil

MARKER: Final = "BACKBURNER_ATTEMPT"
ON_LINUX: Final = sys.platform == "linux"

_PR_SET_CHILD_SUBREAPER: Final = 36
#: A sweep that has found somebody alive for so long gives up and says so.
_SWEEP_SECONDS_MAX: Final = 10.0
#: Consecutive scans that must find nobody: a process may fork while the list is read.
_CLEAN_SCANS: Final = 2

_PROC: Final = Path("/proc")


def become_subreaper() -> bool:
    """Makes orphaned descendants children of this process. False where the system cannot."""
    if not ON_LINUX:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) == 0


def marker(incarnation: str, effect_id: str = "", attempt: int = 0) -> str:
    """Value of the marker of an attempt, or the prefix of all markers of an incarnation."""
    return f"{incarnation}/{effect_id}/{attempt}" if effect_id else f"{incarnation}/"


def marked(value: str) -> list[int]:
    """Process ids of everything alive whose marker is `value`, or begins with it when it ends in a slash."""
    wanted = f"{MARKER}={value}".encode()
    return list(_marked_linux(wanted) if ON_LINUX else _marked_elsewhere(value))


def _marked_linux(wanted: bytes) -> Iterator[int]:
    own = os.getpid()
    for entry in os.listdir(_PROC):  # noqa: PTH208 - three times as fast as iterdir, on the way of every kill
        if entry.isdigit() and int(entry) != own and _carries(int(entry), wanted):
            yield int(entry)


def _carries(pid: int, wanted: bytes) -> bool:
    """True when the process is alive and carries the marker. A zombie has no environment left."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - as above
            environ = b"\0" + file.read()
    except OSError:  # gone, or another user's
        return False
    end = b"" if wanted.endswith(b"/") else b"\0"
    return b"\0" + wanted + end in environ + b"\0"


def _marked_elsewhere(value: str) -> Iterator[int]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            found = process.environ().get(MARKER, "")
            same = found.startswith(value) if value.endswith("/") else found == value
            if same and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                yield process.pid


def own_children() -> frozenset[int] | None:
    """Children of this process, orphans of its descendants included; None where the system does not say."""
    if not ON_LINUX:
        return None
    before = _children_once()
    for _ in range(5):  # the kernel's list is only whole when nobody left while it was read
        now = _children_once()
        if now is not None and now == before:
            return now
        before = now
    return None


def _children_once() -> frozenset[int] | None:
    found: set[int] = set()
    try:
        for task in os.listdir("/proc/self/task"):  # noqa: PTH208
            with open(f"/proc/self/task/{task}/children", "rb") as file:  # noqa: PTH123
                found.update(map(int, file.read().split()))
    except OSError:  # a thread ended meanwhile, or this kernel has no such list
        return None
    return frozenset(found)


async def sweep(value: str, *, on_found: Callable[[list[int]], None] | None = None) -> bool:
    """Kills everything that carries the marker, again and again until nobody is found. True: nobody is alive."""
    deadline = time.monotonic() + _SWEEP_SECONDS_MAX
    clean = 0
    while clean < _CLEAN_SCANS:
        found = await asyncio.to_thread(marked, value)
        if found and time.monotonic() > deadline:
            return False
        clean = 0 if found else clean + 1
        for pid in found:
            _kill_marked(pid, value)
        if found:
            if on_found is not None:
                on_found(found)
            await asyncio.sleep(0.005)
    return True


def _kill_marked(pid: int, value: str) -> None:
    """Kills the process if it still is the one that carries the marker: ids are reused."""
    if not ON_LINUX:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
        return
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if _carries(pid, f"{MARKER}={value}".encode()):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:  # gone meanwhile, or another user's
        return
    finally:
        os.close(handle)


def group_members(pgid: int) -> list[int]:
    """Process ids of the living members of a group: zombies do not count."""
    if not ON_LINUX:
        return [p.pid for p in psutil.process_iter() if _in_group(p, pgid)]
    pids = (int(entry) for entry in os.listdir(_PROC) if entry.isdigit())  # noqa: PTH208
    return [pid for pid in pids if (stat := _stat(pid)).group == pgid and stat.state not in "ZX"]


def _in_group(process: psutil.Process, pgid: int) -> bool:
    try:
        return os.getpgid(process.pid) == pgid and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


class _Stat(NamedTuple):
    state: str
    group: int
    session: int


def _stat(pid: int) -> _Stat:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - as above
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return _Stat("X", -1, -1)
    return _Stat(fields[0].decode(), int(fields[2]), int(fields[3]))


class Reaper:
    """Reaps orphans that became our children, and nothing else: a child that a function started is the function's.

    An orphan is known by its session (that of a child of ours), or because a sweep has seen its marker. What is left,
    orphans of escapees that came and went between two looks, is reaped while no function runs.
    """

    def __init__(self) -> None:
        self.children: set[int] = set()
        self._sessions: dict[int, None] = {}
        self._marked: set[int] = set()

    def adopt(self, pid: int) -> None:
        """Notes a child that leads a session of its own; its owner reaps it."""
        self.children.add(pid)
        self._sessions[pid] = None
        while len(self._sessions) > 10_000:
            del self._sessions[next(iter(self._sessions))]

    def release(self, pid: int) -> None:
        """Its owner has reaped the child. Its session is remembered for the orphans in it."""
        self.children.discard(pid)

    def seen(self, pids: list[int]) -> None:
        """A sweep has seen the marker on these."""
        self._marked.update(pids)

    def reap(self, *, functions_run: bool = True) -> None:
        """Reaps the orphans that have ended."""
        children = own_children()
        for pid in (children or frozenset()) - self.children:
            stat = _stat(pid)
            ours = stat.session in self._sessions or pid in self._marked or not functions_run
            if stat.state == "Z" and ours:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        if children is not None:
            self._marked &= children

    def orphans(self) -> frozenset[int] | None:
        """Children of this process that it did not start for an attempt; None where the system does not say."""
        children = own_children()
        return None if children is None else children - self.children
