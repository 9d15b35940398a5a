"""Finding and ending every descendant of an attempt, also those that left its process group.

They are known by the marker in their environment (`markers.py`). It finds what a dead incarnation left, and is all
there is where the system has no subreapers; otherwise keepers (`keeper.py`) prove who is dead. On Linux this process is
a subreaper too, for the case that a keeper is killed.
"""

import asyncio
import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from executor_service.markers import CLEAN_SCANS, ON_LINUX, kill_marked, marked

_PR_SET_CHILD_SUBREAPER: Final = 36
#: A sweep that has found somebody alive for so long gives up and says so.
_SWEEP_SECONDS_MAX: Final = 10.0

_PROC: Final = Path("/proc")


def become_subreaper() -> bool:
    """Makes orphaned descendants children of this process. False where the system cannot."""
    if not ON_LINUX:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) == 0


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
    while clean < CLEAN_SCANS:
        found = await asyncio.to_thread(marked, value)
        if found and time.monotonic() > deadline:
            return False
        clean = 0 if found else clean + 1
        for pid in found:
            kill_marked(pid, value)
        if found:
            if on_found is not None:
                on_found(found)
            await asyncio.sleep(0.005)
    return True


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

    Descendants of our children are orphaned to their keepers; only of a keeper that was killed itself do we inherit.
    Such an orphan is known by its session (that of a child of ours), or because a sweep has seen its marker. What is
    left, orphans of functions' children and of escapees, is reaped while no function runs.
    """

    def __init__(self) -> None:
        self.children: set[int] = set()
        self._sessions: dict[int, None] = {}
        self._marked: set[int] = set()
        self._lock = threading.Lock()
        self._left_alone = 0

    @contextlib.contextmanager
    def leave_alone(self) -> Iterator[None]:
        """A thread starts children and reaps them itself meanwhile."""
        with self._lock:
            self._left_alone += 1
        try:
            yield
        finally:
            with self._lock:
                self._left_alone -= 1

    def adopt(self, pid: int) -> None:
        """Notes a child of this process; its owner reaps it."""
        self.children.add(pid)

    def release(self, pid: int) -> None:
        """Its owner has reaped the child."""
        self.children.discard(pid)

    def expect(self, session: int) -> None:
        """Orphans of this session, and who leads it, may come to us."""
        with self._lock:  # threads have children kept too
            self._sessions[session] = None
            while len(self._sessions) > 10_000:
                del self._sessions[next(iter(self._sessions))]

    def seen(self, pids: list[int]) -> None:
        """A sweep has seen the marker on these."""
        self._marked.update(pids)

    def reap(self, *, functions_run: bool = True) -> None:
        """Reaps the orphans that have ended."""
        children = own_children()
        functions_run = (
            functions_run or self._left_alone > 0
        )  # looked at later: whoever is in the list was started then
        for pid in (children or frozenset()) - self.children:
            stat = _stat(pid)
            ours = stat.session in self._sessions or pid in self._marked or not functions_run
            if stat.state == "Z" and ours:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        if children is not None:
            self._marked &= children
