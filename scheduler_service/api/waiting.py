"""Why a run or an effect does not go on, computed from what is known now; and when to ask again.

The most useful field of the API: nobody should have to guess it from logs.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api import breakers
from scheduler_service.api.convert import RUN_ENDED, duration, timestamp
from scheduler_service.api.eta import Eta, Expected, eta_of, no_history
from scheduler_service.api.holds import described, hold_on
from scheduler_service.clock import DatabaseClock
from scheduler_service.dispatch.budgets import budget_awaited
from scheduler_service.journal import Breaker, Hold
from scheduler_service.journal.client_reads import ClientReads
from scheduler_service.journal.client_views import EffectView, ExecutorView, RunView

#: Causes that a run names; the rest are counted in the last message.
RUN_CAUSES_MAX: Final = 10
#: Age of what is known of executors and shards; bounds the reads that pollers cause.
_FRESH_SECONDS: Final = 0.5
_EXECUTORS_MAX: Final = 1000
#: Of what an executor says of a harness.
_REMEDY_LENGTH_MAX: Final = 500
_SETTLED: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"})
_POLL_SECONDS_DEFAULT: Final = 5.0
_POLL_SECONDS_MIN: Final = 0.2

_Cause = pb.WaitingOn


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known of executors and shards at a moment."""

    executors: Sequence[ExecutorView] = ()
    live_shards: frozenset[int] = frozenset()
    holds: Sequence[Hold] = ()
    breakers: Sequence[Breaker] = ()
    expected: Expected = no_history
    clock: DatabaseClock = field(default_factory=DatabaseClock)


class Situations:
    """Reads the situation, at most twice a second."""

    def __init__(self, reads: ClientReads, expected: Expected, clock: DatabaseClock) -> None:
        self._reads = reads
        self._expected = expected
        self._clock = clock
        self._known: Situation | None = None
        self._read_at = 0.0

    async def now(self) -> Situation:
        """The situation, not older than half a second."""
        if self._known is None or time.monotonic() - self._read_at > _FRESH_SECONDS:
            executors = await self._reads.executors(
                after=None, states=("CONNECTED", "DISCONNECTED", "DRAINING"), limit=_EXECUTORS_MAX
            )
            self._known = Situation(
                executors,
                await self._reads.live_shards(),
                await self._reads.holds(),
                await self._reads.breakers(),
                self._expected,
                self._clock,
            )
            self._read_at = time.monotonic()
        return self._known


def effect_waiting(effect: EffectView, situation: Situation) -> pb.WaitingOn | None:
    """What an effect waits for; None once it has settled."""
    if effect.state in _SETTLED:
        return None
    if effect.state == "CANCELLING":
        return pb.WaitingOn(
            cause=_Cause.CAUSE_CANCELLING, message="a cancel was asked for; it has not taken effect yet"
        )
    if effect.state in ("QUEUED", "PARKED"):
        return _queued(effect, situation)
    if effect.state in ("DISPATCHED", "RUNNING"):
        return _assigned(effect, situation)
    return _outside(effect, situation)


def run_waiting(
    run: RunView, open_effects: Sequence[EffectView], next_timer: datetime | None, situation: Situation
) -> list[pb.WaitingOn]:
    """What a run waits for, the gravest first; empty once it has ended."""
    if run.state in RUN_ENDED:
        return []
    causes = [cause for cause in (_parked(run), _unowned(run.shard, situation)) if cause is not None]
    if run.state == "CANCELLING":
        message = "a cancel was asked for; cleanup may still run"
        causes.append(pb.WaitingOn(cause=_Cause.CAUSE_CANCELLING, message=message))
    causes += [_of_effect(effect, situation) for effect in open_effects]
    if next_timer is not None:
        causes.append(pb.WaitingOn(cause=_Cause.CAUSE_TIMER, message="waits for a timer", until=timestamp(next_timer)))
    if not causes:
        kind, message = (
            (_Cause.CAUSE_CLIENT, "its client has not asked for anything")
            if run.client_driven
            else (_Cause.CAUSE_RUNNING, "runs now, or waits for a signal")
        )
        causes.append(pb.WaitingOn(cause=kind, message=message))
    return causes[:RUN_CAUSES_MAX]


def poll_after(effect: EffectView, eta: Eta | None) -> float:
    """Seconds that a poller should wait: the interval it was given, less when the end is near, 0 once settled."""
    if effect.state in _SETTLED:
        return 0.0
    interval = effect.poll_interval_s or _POLL_SECONDS_DEFAULT
    return interval if eta is None else max(_POLL_SECONDS_MIN, min(interval, eta.seconds))


def complete(message: pb.Effect, effect: EffectView, situation: Situation) -> pb.Effect:
    """Adds to an effect what is computed now."""
    eta = eta_of(effect, situation.expected, situation.clock.read())
    if message.HasField("progress"):  # what was told is older than this answer
        message.progress.ClearField("eta")
        message.progress.ClearField("eta_estimated")
    if eta is not None:
        message.progress.eta.CopyFrom(duration(eta.seconds))
        message.progress.eta_estimated = eta.estimated
    waiting = effect_waiting(effect, situation)
    if waiting is not None:
        message.waiting_on.CopyFrom(waiting)
        message.poll_after.CopyFrom(duration(poll_after(effect, eta)))
    return message


def _queued(effect: EffectView, situation: Situation) -> pb.WaitingOn:
    now = situation.clock.read()
    if effect.run_state == "HALTED":
        return pb.WaitingOn(cause=_Cause.CAUSE_HALTED, message="its run is halted")
    if effect.run_state == "PROCESS_ERROR":
        return pb.WaitingOn(cause=_Cause.CAUSE_PROCESS_ERROR, message="its run is parked by an error of its process")
    if effect.not_before is not None and effect.not_before > now:
        said = _until(effect.not_before, now)
        if effect.state == "PARKED":
            said = f"parked, without a slot, until its provider takes requests again; {said}"
        elif effect.busy:
            said = f"{effect.busy}: it goes when that is done; {said}"
        return pb.WaitingOn(cause=_Cause.CAUSE_NOT_BEFORE, message=said, until=timestamp(effect.not_before))
    ready = _ready(effect, situation)
    hold = hold_on(effect, ready, situation.holds)
    if hold is not None:
        return pb.WaitingOn(cause=_Cause.CAUSE_HOLD, message=described(hold), until=timestamp(hold.until))
    if effect.budget is not None:
        return pb.WaitingOn(cause=_Cause.CAUSE_BUDGET, message=budget_awaited(effect.run_id, effect.budget))
    breaker = breakers.breaker_on(effect, ready, situation.breakers, now)
    if breaker is not None:
        message = breakers.described(breaker, now)
        return pb.WaitingOn(cause=_Cause.CAUSE_BREAKER, message=message, until=timestamp(breaker.until))
    if effect.group_limit is not None and effect.group_open >= effect.group_limit:
        return pb.WaitingOn(cause=_Cause.CAUSE_GROUP_LIMIT, message=_group(effect))
    return _slots(effect, situation)


def _group(effect: EffectView) -> str:
    lowered = f" (adaptive: up to {effect.group_max})" if effect.group_limit != effect.group_max else ""
    return f"group {effect.group_id}: {effect.group_open} of {effect.group_limit} run{lowered}"


def _slots(effect: EffectView, situation: Situation) -> pb.WaitingOn:
    wanted = " or ".join(map(_described, effect.capabilities))
    able = [executor for executor in situation.executors if _serves(executor, effect)]
    ready = [executor.executor_id for executor in _ready(effect, situation)]
    if not ready:
        states = ", ".join(f"{executor.executor_id} ({executor.state.lower()})" for executor in able[:3])
        labels = f" with labels {dict(effect.executor_labels)}" if effect.executor_labels else ""
        known = f"; known: {states}" if states else _why_not(effect, situation)
        message = f"no executor has {wanted}{labels}{known}"
        return pb.WaitingOn(cause=_Cause.CAUSE_NO_EXECUTOR, message=message)
    if effect.continues_on and ready != [effect.continues_on]:
        message = f"goes on with a session of executor {effect.continues_on!r}, and waits a while for that one"
        return pb.WaitingOn(cause=_Cause.CAUSE_SLOTS_FULL, message=message)
    names = ", ".join(ready[:3])
    return pb.WaitingOn(
        cause=_Cause.CAUSE_SLOTS_FULL, message=f"the slots that it may take ({effect.pool}) on {names} are taken"
    )


def _why_not(effect: EffectView, situation: Situation) -> str:
    """What an executor says of a harness that it looked for and cannot use: what to do about it. Empty: nothing."""
    for executor in situation.executors:
        for check in executor.harness_checks:
            wanted = f"agent/{check.get('name')}" in effect.capabilities
            if wanted and not check.get("found") and (remedy := check.get("remedy")):
                return f"; {executor.executor_id} says: {check['name']}: {remedy[:_REMEDY_LENGTH_MAX]}"
    return ""


def _ready(effect: EffectView, situation: Situation) -> list[ExecutorView]:
    return [executor for executor in situation.executors if executor.state == "CONNECTED" and _serves(executor, effect)]


def _described(capability: str) -> str:
    """A capability in words: `agent/codex` is harness codex, `function/a.b` function a.b, `shell` harness shell."""
    kind, _, name = capability.partition("/")
    return f"function {name}" if kind == "function" else f"harness {name or kind}"


def _serves(executor: ExecutorView, effect: EffectView) -> bool:
    labels = executor.labels or {}
    return (
        executor.namespace in ("", effect.namespace)
        and any(capability in executor.capabilities for capability in effect.capabilities)
        and all(labels.get(name) == value for name, value in effect.executor_labels.items())
    )


def _assigned(effect: EffectView, situation: Situation) -> pb.WaitingOn:
    state = next((e.state for e in situation.executors if e.executor_id == effect.executor_id), "LOST")
    if state not in ("CONNECTED", "DRAINING"):
        message = f"executor {effect.executor_id!r} is not connected; it may still be running"
        return pb.WaitingOn(cause=_Cause.CAUSE_EXECUTOR_AWAY, message=message)
    return pb.WaitingOn(cause=_Cause.CAUSE_RUNNING, message=f"runs on executor {effect.executor_id!r}")


def _outside(effect: EffectView, situation: Situation) -> pb.WaitingOn:
    if effect.kind == "EXTERNAL":
        return pb.WaitingOn(cause=_Cause.CAUSE_EXTERNAL, message="somebody has to answer: ResolveEffect")
    if effect.kind == "RUN":
        return pb.WaitingOn(cause=_Cause.CAUSE_CHILD_RUN, message=_child(effect))
    unowned = _unowned(effect.shard, situation)
    return unowned or pb.WaitingOn(
        cause=_Cause.CAUSE_TIMER, message="waits for its time", until=timestamp(effect.not_before)
    )


def _child(effect: EffectView) -> str:
    parked = {"HALTED": "is halted: ResumeRun lets it go on", "PROCESS_ERROR": "is parked by an error in process code"}
    return f"child run {effect.child_run_id} {parked.get(effect.child_state, 'runs')}"


def _parked(run: RunView) -> pb.WaitingOn | None:
    if run.state == "HALTED":
        said = f" ({run.halt_reason})" if run.halt_reason else ""
        who = "the next call of its client, or ResumeRun," if run.client_idle else "ResumeRun"
        return pb.WaitingOn(cause=_Cause.CAUSE_HALTED, message=f"the run is halted{said}; {who} lets it go on")
    if run.state == "PROCESS_ERROR":
        said = (run.error or {}).get("message", "")
        message = f"an error in process code: {said}; fix it, then ResumeRun replays it, or CancelRun ends it"
        return pb.WaitingOn(cause=_Cause.CAUSE_PROCESS_ERROR, message=message)
    return None


def _unowned(shard: int, situation: Situation) -> pb.WaitingOn | None:
    if shard in situation.live_shards:
        return None
    message = f"no live scheduler owns shard {shard}; another one takes it when the lease runs out"
    return pb.WaitingOn(cause=_Cause.CAUSE_NO_OWNER, message=message)


def _of_effect(effect: EffectView, situation: Situation) -> pb.WaitingOn:
    waiting = effect_waiting(effect, situation) or pb.WaitingOn(cause=_Cause.CAUSE_EFFECT)
    if waiting.cause == _Cause.CAUSE_RUNNING:
        waiting.cause = _Cause.CAUSE_EFFECT
    waiting.effect_key = effect.key
    waiting.message = f"effect {effect.key!r}: {waiting.message}"
    return waiting


def _until(moment: datetime, now: datetime) -> str:
    left = max(moment - now, timedelta())
    return f"its earliest dispatch is in {left.total_seconds():.0f} s"
