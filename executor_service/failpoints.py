"""Named points at the edges of every commit, where a test lets this service die, freeze, fail or stall.

Off, and then nothing but an empty call, unless the environment names one when the service starts:

    BACKBURNER_FAILPOINT=executor.settle.committed:kill@3

is `kill -9` of itself at the third passage. Actions: `kill`; `stop` (SIGSTOP, until somebody sends SIGCONT); `error`
(an answer that did not come in time: the write is in doubt and is repeated; at writes only); `stall=SECONDS` (nothing
in the process moves for so long). Several are separated by commas. Points of the other service are not ours to know.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

SERVICE: Final = "executor"

#: Writes to the journal. Each has two points: `.send`, before the call leaves, and `.committed`, when the commit has
#: answered and nobody has acted on it.
WRITES: Final[Mapping[str, str]] = {
    "started": "attempts that have run for a moment",
    "progress": "progress of attempts",
    "settle": "outcomes of attempts",
    "output": "output of attempts",
}
#: Other points, each between a commit, a frame or a child and what follows from it.
STEPS: Final[Mapping[str, str]] = {
    "hello.send": "a session is about to begin, and its report is made",
    "start.taken": "a start has come, and nothing has been started",
    "cancel.taken": "a cancel has come, and nothing has been ended",
    "workspace.made": "a workspace is made or found, and nobody works in it",
    "workspace.captured": "what was done in a workspace is captured, and the outcome does not say it",
    "child.spawned": "a child runs, and nobody knows of it",
    "child.ended": "a child and all its descendants are gone, and the outcome is not made",
    "outcome.held": "an attempt has ended, and its outcome is not queued for the journal",
    "spool.written": "results that Postgres did not take are on disk, and nobody has noted it",
    "resend.committed": "results that a dead incarnation had on disk are committed, and still on disk",
    "notice.send": "rows are committed, and the scheduler is not told of them",
}
#: Every point of this service by name, with what has happened there and what has not.
POINTS: Final[Mapping[str, str]] = {
    **{f"{SERVICE}.{name}.send": f"not yet sent: {what}" for name, what in WRITES.items()},
    **{
        f"{SERVICE}.{name}.committed": f"committed, and nobody has acted on it: {what}" for name, what in WRITES.items()
    },
    **{f"{SERVICE}.{name}": what for name, what in STEPS.items()},
}


class Injected(TimeoutError):
    """What the action `error` raises."""


class FailpointError(ValueError):
    """What was asked for is no failpoint."""


@dataclass(slots=True)
class _Armed:
    act: Callable[[], None]
    passages: int


def hit(part: str, moment: str) -> None:
    """A point is passed: `executor.{part}.{moment}`."""
    if _armed:
        _passed(f"{SERVICE}.{part}.{moment}")


def arm(asked: str) -> list[str]:
    """Arms what the variable asks for; returns the names. Raises FailpointError."""
    for one in filter(None, map(str.strip, asked.split(","))):
        name, _, rest = one.partition(":")
        action, _, count = rest.partition("@")
        if name.partition(".")[0] != SERVICE:
            continue
        if name not in POINTS:
            raise FailpointError(f"{name!r} is no failpoint; known: {', '.join(POINTS)}")
        _armed[name] = _Armed(_action(action), _number(count or "1"))
    return list(_armed)


_armed: Final[dict[str, _Armed]] = {}


def _passed(name: str) -> None:
    armed = _armed.get(name)
    if armed is None:
        return
    armed.passages -= 1
    if armed.passages == 0:
        del _armed[name]
        armed.act()


def _action(text: str) -> Callable[[], None]:
    name, _, seconds = text.partition("=")
    if name in ("kill", "stop"):
        signum = signal.SIGKILL if name == "kill" else signal.SIGSTOP
        return lambda: os.kill(os.getpid(), signum)
    if name == "stall":
        return lambda: time.sleep(float(seconds or "1"))
    if name == "error":
        return _fail
    raise FailpointError(f"{text!r} is no action of a failpoint: use kill, stop, error or stall=SECONDS")


def _number(text: str) -> int:
    if not text.isdigit() or text == "0":
        raise FailpointError(f"@{text} of a failpoint is not a count from 1")
    return int(text)


def _fail() -> None:
    raise Injected("a failpoint lost the answer")
