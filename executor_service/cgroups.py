"""A control group for each attempt, where the system lets us: cgroup v2, in a folder that we may make below our own.

Nobody leaves a control group by forking, and one write kills all who are in it, also a bomb that forks faster than
anybody could list it; its `populated` is a proof of death that no process has to be alive for. Keepers (`keeper.py`) do
not depend on it: it is what is left when a keeper itself is killed. Where the controller `pids` may be turned on
for it, it also bounds how many processes and threads an attempt has at a time, a fork bomb's too.
"""

import asyncio
import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_EMPTY_POLL_SECONDS: Final = 0.005
_EMPTY_SECONDS_MAX: Final = 10.0


class Cgroups:
    """The control groups of one incarnation; `folder` is None where there are none.

    `processes_max`: of each attempt, threads included; 0: not bounded here.
    """

    def __init__(self, folder: Path | None, processes_max: int = 0) -> None:
        self.folder = folder
        self._processes_max = processes_max

    def make(self, name: str) -> str:
        """A control group for an attempt; empty when there is none to be had."""
        if self.folder is None:
            return ""
        path = self.folder / name
        try:
            path.mkdir(exist_ok=True)
            if self._processes_max:
                (path / "pids.max").write_bytes(b"%d" % self._processes_max)
        except OSError as error:  # such as the limit of their number: the keeper does without
            log.warning("no control group could be made for an attempt: %s", error)
            remove(str(path))
            return ""
        return str(path)

    def close(self) -> None:
        """Removes what is empty."""
        if self.folder is not None:
            for path in self.folder.iterdir():
                remove(str(path))
            remove(str(self.folder))


def open_cgroups(incarnation: str, processes_max: int = 0) -> Cgroups:
    """Those of a new incarnation, with the bound of each attempt's processes where it can be had."""
    opened = _open(incarnation)
    if not processes_max:
        return opened
    if opened.folder is not None and _bounds_processes(opened.folder):
        return Cgroups(opened.folder, processes_max)
    log.info(
        "how many processes an attempt starts is not bounded: there is no control group with the controller pids below "
        "that of the executor. Bound the executor as a whole, such as by TasksMax of its systemd unit"
    )
    return opened


def _bounds_processes(folder: Path) -> bool:
    """Turns on the controller of processes for what is made in the folder. False: it cannot be had."""
    try:
        for place in (folder.parent, folder):
            (place / "cgroup.subtree_control").write_bytes(b"+pids")
    except OSError:
        return False
    return True


def _open(incarnation: str) -> Cgroups:
    own = _own_folder()
    folder = None if own is None else own / _name(incarnation)
    try:
        if folder is None or not os.access(folder.parent / "cgroup.procs", os.W_OK):
            return Cgroups(None)
        folder.mkdir(exist_ok=True)
        usable = (folder / "cgroup.kill").exists()
    except OSError:
        return Cgroups(None)
    if not usable:  # before Linux 5.14
        remove(str(folder))
    return Cgroups(folder if usable else None)


async def sweep_dead(incarnation: str) -> bool:
    """Kills whoever is in the control groups that a dead incarnation left, and removes them. False: somebody lives."""
    own = _own_folder()
    folder = None if own is None else own / _name(incarnation)
    if folder is None or not folder.is_dir():
        return True
    dead = await kill(str(folder))
    Cgroups(folder).close()
    return dead


async def kill(path: str) -> bool:
    """Kills whoever is in it. True: nobody is alive in it."""
    deadline = time.monotonic() + _EMPTY_SECONDS_MAX
    while True:
        try:
            (Path(path) / "cgroup.kill").write_bytes(b"1")
            if "populated 0" in (Path(path) / "cgroup.events").read_text().splitlines():
                return True
        except OSError:
            return False
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_EMPTY_POLL_SECONDS)


def remove(path: str) -> None:
    """Removes an empty one."""
    with contextlib.suppress(OSError):
        Path(path).rmdir()


def _name(incarnation: str) -> str:
    return f"backburner-{incarnation}"


def _own_folder() -> Path | None:
    """Folder of the control group that this process is in; None without cgroup v2."""
    try:
        memberships = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    inside = next((line.removeprefix("0::/") for line in memberships if line.startswith("0::/")), None)
    mount = next((line.split()[4] for line in mounts if " - cgroup2 " in line), None)
    return None if inside is None or mount is None else Path(mount) / inside
