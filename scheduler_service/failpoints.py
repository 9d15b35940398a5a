"""Named points at the edges of every commit, where a test lets this service die, freeze, fail or stall.

Off, and then nothing but an empty call, unless the environment names one when the service starts:

    BACKBURNER_FAILPOINT=scheduler.append.committed:kill@3

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

SERVICE: Final = "scheduler"

#: Writes to the journal. Each has two points: `.send`, before the call leaves, and `.committed`, when the commit has
#: answered and nobody has acted on it.
WRITES: Final[Mapping[str, str]] = {
    "append": "rows of an iteration",
    "create": "a run",
    "cancel": "a cancel",
    "resolve": "an outcome from outside",
    "lost": "an attempt that is lost, or never started",
    "readopt": "an attempt that goes on in a new session",
    "halt": "a pause",
    "resume": "the end of a pause",
    "signal": "a signal",
    "open_client": "a start of a client",
    "client_request": "effects that a client asks for",
    "finish": "the end of a client's run",
    "halt_idle": "a pause because the client is silent",
    "claim": "dispatches of queued effects",
    "executor_hello": "a session of an executor",
    "executor_found": "what an executor has of harnesses",
    "executors_seen": "signs of life of executors",
    "executor_gone": "the end of a session",
    "claim_shards": "leases",
    "renew_shards": "renewed leases",
    "release_shards": "leases that are given back",
    "adopt_runs": "our epoch in the heads of runs",
    "adopt_created": "our epoch in the heads of runs that were created meanwhile",
    "strike": "a replay that is about to begin",
    "clients_seen": "signs of life of clients",
    "hold": "a hold on dispatch, or its end",
    "set_budget": "a budget",
    "drain": "the order to drain an executor",
    "expire": "the order to take an executor for dead",
    "order_settlement": "the order to settle an effect by hand",
    "settle_by_hand": "an effect that is settled by hand",
    "audit": "what an operator has done",
    "report_missing": "losses that concern runs of another replica",
    "take_missing": "losses that another replica has seen",
    "reset_breakers": "the end of circuit breakers, by an operator",
    "prune_runs": "the removal of ended runs",
}
#: Other points, each between a commit and what follows from it.
STEPS: Final[Mapping[str, str]] = {
    "dispatch.send": "a dispatch is committed, its start is not queued for the executor",
    "frames.sent": "starts have been handed to the stream",
    "notice.taken": "an executor has told of a commit, and no run has heard of it",
    "answer.send": "a client's call has done its work, and its answer is not sent",
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
    """A point is passed: `scheduler.{part}.{moment}`."""
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
