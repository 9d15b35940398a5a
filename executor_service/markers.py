"""The marker that every child of an attempt carries in its environment: made, looked for, and killed by.

Descendants inherit it whatever they do to their group, session or parent. On Linux this needs nothing but the standard
library, because the guard (`guardian.py`) runs without any other; elsewhere the scan goes through psutil.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Final

MARKER: Final = "BACKBURNER_ATTEMPT"
ON_LINUX: Final = sys.platform == "linux"

#: Consecutive scans that must find nobody: a process may fork while the list is read.
CLEAN_SCANS: Final = 2

_PROC: Final = "/proc"


def marker(incarnation: str, effect_id: str = "", attempt: int = 0) -> str:
    """Value of the marker of an attempt, or the prefix of all markers of an incarnation."""
    return f"{incarnation}/{effect_id}/{attempt}" if effect_id else f"{incarnation}/"


def helper_marker(incarnation: str, name: str = "") -> str:
    """That of what an executor runs beside its children, such as git, which may outlive it for a moment."""
    return marker(f"helper:{incarnation}", name, int(bool(name)))


def marked(value: str) -> list[int]:
    """Process ids of everything alive whose marker is `value`, or begins with it when it ends in a slash."""
    return list(_marked_linux(_wanted(value)) if ON_LINUX else _marked_elsewhere(value))


def kill_marked(pid: int, value: str) -> None:
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
        if _carries(pid, _wanted(value)):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:  # gone meanwhile, or another user's
        return
    finally:
        os.close(handle)


def kill_all_marked(value: str, *, clean_seconds: float, seconds_max: float) -> bool:
    """Kills whatever carries the marker until nobody has been found for so long. False: somebody is still alive."""
    began = clean_since = time.monotonic()
    scans = 0
    while scans < CLEAN_SCANS or time.monotonic() - clean_since < clean_seconds:
        found = marked(value)
        for pid in found:
            kill_marked(pid, value)
        if found:
            scans, clean_since = 0, time.monotonic()
            if clean_since - began > seconds_max:
                return False
        else:
            scans += 1
        time.sleep(0.005 if found or scans < CLEAN_SCANS else 0.05)
    return True


def _wanted(value: str) -> bytes:
    return f"{MARKER}={value}".encode()


def _marked_linux(wanted: bytes) -> Iterator[int]:
    own = os.getpid()
    for entry in os.listdir(_PROC):  # noqa: PTH208 - three times as fast as iterdir, on the way of every kill
        if entry.isdigit() and int(entry) != own and _carries(int(entry), wanted):
            yield int(entry)


def _carries(pid: int, wanted: bytes) -> bool:
    """True when the process is alive and carries the marker. A zombie has no environment left."""
    try:
        with open(f"{_PROC}/{pid}/environ", "rb") as file:  # noqa: PTH123 - as above
            environ = b"\0" + file.read()
    except OSError:  # gone, or another user's
        return False
    end = b"" if wanted.endswith(b"/") else b"\0"
    return b"\0" + wanted + end in environ + b"\0"


def _marked_elsewhere(value: str) -> Iterator[int]:
    import psutil  # noqa: PLC0415 - the guard does without it where it can

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            found = process.environ().get(MARKER, "")
            same = found.startswith(value) if value.endswith("/") else found == value
            if same and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                yield process.pid
