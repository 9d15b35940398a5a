"""The program beside an executor: when the executor is gone, it kills every child that the executor has left.

A process of its own, in a session of its own, with the standard library only. Its stdin is a pipe that the executor
holds and says nothing on but that it ends in order; when the executor is killed with -9 the pipe closes, and no agent
goes on spending money. A child that is being started at that moment holds the pipe too, until it has become what it is
to be and can be found. The executor's process is watched besides: what its functions fork may hold the pipe for ever.
"""

import contextlib
import os
import select
import sys
import time
from typing import Final

from executor_service.markers import helper_marker, kill_all_marked, marked

#: What an executor says that ends in order.
IN_ORDER: Final = b"."
#: How long nobody must have been found after a sudden end: somebody may be on its way into being.
LINGER_SECONDS: Final = 1.0
#: How long a child that holds the pipe is waited for. What a function has forked may hold it for ever.
PIPE_SECONDS: Final = 10.0
#: After so long there is no hope for what still lives: it cannot be killed.
SECONDS_MAX: Final = 120.0
#: How long what may end by itself (`keeper.py`: outlives) is left to its keeper after a sudden end, and a moment more.
HELPER_SECONDS: Final = 35.0
#: The same after an end in order, which waits for it: git leaves no locks behind then either.
HELPER_LAST_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.2


def main(marker: str, executor: int) -> int:
    """Waits for the end of the executor, then kills what carries the marker. 1: somebody is still alive."""
    helpers = helper_marker(marker.removesuffix("/"))
    if _until_gone(executor):
        _let_end(helpers, HELPER_LAST_SECONDS)
        dead = [kill_all_marked(one, clean_seconds=0.0, seconds_max=SECONDS_MAX) for one in (marker, helpers)]
        return 0 if all(dead) else 1
    proven = kill_all_marked(marker, clean_seconds=LINGER_SECONDS, seconds_max=SECONDS_MAX)
    if not _closed(0.0) and _closed(PIPE_SECONDS):
        proven = kill_all_marked(marker, clean_seconds=LINGER_SECONDS, seconds_max=SECONDS_MAX)
    _let_end(helpers, HELPER_SECONDS)
    return 0 if kill_all_marked(helpers, clean_seconds=0.0, seconds_max=SECONDS_MAX) and proven else 1


def _let_end(helpers: str, seconds: float) -> None:
    """Waits until nobody carries the marker, or for so long."""
    deadline = time.monotonic() + seconds
    while marked(helpers) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)


def _until_gone(executor: int) -> bool:
    """True when the executor said that it ends in order."""
    watched = [sys.stdin.fileno()]
    with contextlib.suppress(AttributeError, OSError):  # where the system does not have it the pipe must do
        watched.append(os.pidfd_open(executor))
    if os.getppid() != executor:
        return False  # it was gone before, and its id may be another's
    readable, _, _ = select.select(watched, [], [])
    return sys.stdin.fileno() in readable and os.read(sys.stdin.fileno(), 1) == IN_ORDER


def _closed(seconds: float) -> bool:
    """Waits until nobody holds the pipe any more."""
    readable, _, _ = select.select([sys.stdin.fileno()], [], [], seconds)
    return bool(readable)
