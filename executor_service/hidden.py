"""Hides the memory and the environment of this process from others of the same user.

What an executor is given (the URL of its database, secrets of effects) stands in `/proc/PID/environ` and in its memory,
which on Linux everybody of the same user may read: its children too. A process that is not dumpable shows neither, but
to root, leaves no core dump, and takes no debugger. A program that is started from it is itself again.
"""

import ctypes
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def hide() -> bool:
    """Hides this process, and what it forks. False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    return int(ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)) == 0
