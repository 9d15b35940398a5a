"""States of effects and runs, and every transition between them, as tables.

`apply` is the only way from one state to the next: an unknown pair is an IllegalTransition, harmless repetitions are
rows of the table. The README's diagrams are drawn from here, the CHECK constraints of the schema repeat it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Final, TypeVar


class EffectState(StrEnum):
    """State of an effect, as EffectState of the journal without its prefix."""

    # Entered by the request, a failed or a lost attempt; left by a dispatch.
    QUEUED = "QUEUED"
    # Entered when a session's holder assigned an attempt; left when the executor reports.
    DISPATCHED = "DISPATCHED"
    # Entered by the executor's start or first progress.
    RUNNING = "RUNNING"
    # Entered by the request of external work, a child run or a timer; left by whoever settles it.
    WAITING = "WAITING"
    # Entered when the executor found that nothing goes before a known time; left by a dispatch.
    PARKED = "PARKED"
    # Entered by a cancel request; left only by settlement.
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


class RunState(StrEnum):
    """State of a run, as RunState of the journal without its prefix."""

    RUNNING = "RUNNING"
    # Entered by a cancel request; cleanup may still run.
    CANCELLING = "CANCELLING"
    # Entered when the process returned; left when the last waited-for effect has settled.
    CLOSING = "CLOSING"
    # Entered by an operator or by ctx.halt; left by RUN_RESUMED.
    HALTED = "HALTED"
    # Entered by an error in process code; left by RUN_RESUMED.
    PROCESS_ERROR = "PROCESS_ERROR"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    CONTINUED = "CONTINUED"


class IllegalTransition(Exception):
    """An event that cannot follow. The journal and this code disagree on what an effect or a run may do."""

    def __init__(self, subject: str, state: str, trigger: str, seq: int = 0) -> None:
        super().__init__(f"{subject} at seq {seq}: {trigger} cannot follow state {state}")
        self.subject, self.state, self.trigger, self.seq = subject, state, trigger, seq


_E = EffectState
_R = RunState

EFFECT_TERMINAL: Final = frozenset({_E.SUCCEEDED, _E.FAILED, _E.CANCELLED, _E.TIMED_OUT})
RUN_TERMINAL: Final = frozenset({_R.COMPLETED, _R.FAILED, _R.CANCELLED, _R.CONTINUED})

# What settles an effect: the event's type, and for RESOLVED the state it says.
_SETTLING: Final[Mapping[str, EffectState]] = {
    "EFFECT_RESOLVED:SUCCEEDED": _E.SUCCEEDED,
    "EFFECT_RESOLVED:FAILED": _E.FAILED,
    "EFFECT_RESOLVED:TIMED_OUT": _E.TIMED_OUT,
    "EFFECT_CANCELLED": _E.CANCELLED,
    "EFFECT_REUSED": _E.SUCCEEDED,
}
_ATTEMPT: Final[Mapping[str, EffectState]] = {
    "EFFECT_DISPATCHED": _E.DISPATCHED,
    "EFFECT_STARTED": _E.RUNNING,
    "EFFECT_PROGRESS": _E.RUNNING,
    "EFFECT_ATTEMPT_FAILED": _E.QUEUED,
    "EFFECT_ATTEMPT_LOST": _E.QUEUED,
    "EFFECT_PARKED": _E.PARKED,
}
_HARMLESS: Final = ("EFFECT_CANCEL_REQUESTED", "EFFECT_SUPERSEDED")


def _effect_transitions() -> dict[tuple[EffectState, str], EffectState]:
    table: dict[tuple[EffectState, str], EffectState] = {}
    for state in EffectState:
        if state in EFFECT_TERMINAL:
            table |= {(state, trigger): state for trigger in _HARMLESS}  # a cancel that came too late changes nothing
            continue
        if state is not _E.WAITING:
            # An attempt that is being cancelled may still report; only its end counts.
            table |= {(state, trigger): state if state is _E.CANCELLING else to for trigger, to in _ATTEMPT.items()}
        table |= {(state, trigger): to for trigger, to in _SETTLING.items()}
        table[state, "EFFECT_CANCEL_REQUESTED"] = _E.CANCELLING
        table[state, "EFFECT_SUPERSEDED"] = state
    for state in (_E.WAITING, _E.CANCELLING):
        table[state, "CHILD_RUN_STARTED"] = state
        table[state, "EFFECT_PROGRESS"] = state
    return table


def _run_transitions() -> dict[tuple[RunState, str], RunState]:
    ends = {f"RUN_{state}": state for state in RUN_TERMINAL}
    table: dict[tuple[RunState, str], RunState] = {}
    for state in (_R.RUNNING, _R.CANCELLING, _R.CLOSING):
        table |= {(state, trigger): to for trigger, to in ends.items()}
        table[state, "RUN_CLOSING"] = _R.CLOSING
        table[state, "RUN_HALTED"] = _R.HALTED
        table[state, "PROCESS_RUNTIME_ERROR"] = _R.PROCESS_ERROR
        table[state, "RUN_CANCEL_REQUESTED"] = _R.CLOSING if state is _R.CLOSING else _R.CANCELLING
    table[_R.PROCESS_ERROR, "RUN_HALTED"] = _R.HALTED
    table[_R.HALTED, "RUN_HALTED"] = _R.HALTED  # by an operator, of a run that was halted for its silent client
    for state in (_R.HALTED, _R.PROCESS_ERROR):
        # It goes on as what it was: the row says as what.
        table |= {(state, f"RUN_RESUMED:{back}"): back for back in (_R.RUNNING, _R.CANCELLING, _R.CLOSING)}
        # A parked run that is cancelled has no code to ask: its owner ends it.
        table |= {(state, "RUN_CANCEL_REQUESTED"): state, (state, "RUN_CLOSING"): _R.CLOSING}
        table[state, "RUN_CANCELLED"] = _R.CANCELLED
    return table


EFFECT_TRANSITIONS: Final[Mapping[tuple[EffectState, str], EffectState]] = _effect_transitions()
RUN_TRANSITIONS: Final[Mapping[tuple[RunState, str], RunState]] = _run_transitions()

_WAITING_WORK: Final = ("external", "run", "timer")


def first_state(spec: Mapping[str, Any]) -> EffectState:
    """The state of an effect that was just requested, from its EffectSpec."""
    return _E.WAITING if any(kind in spec for kind in _WAITING_WORK) else _E.QUEUED


def trigger(event_type: str, data: Mapping[str, Any]) -> str:
    """The table's name of an event: its type, and for EFFECT_RESOLVED and RUN_RESUMED the state that it says."""
    if event_type not in ("EFFECT_RESOLVED", "RUN_RESUMED"):
        return event_type
    return f"{event_type}:{str(data.get('state', '')).removeprefix('EFFECT_STATE_').removeprefix('RUN_STATE_')}"


S = TypeVar("S", EffectState, RunState)


def apply(table: Mapping[tuple[S, str], S], state: S, name: str, *, subject: str = "", seq: int = 0) -> S:
    """The next state. Raises IllegalTransition for a pair that the table does not have."""
    try:
        return table[state, name]
    except KeyError:
        raise IllegalTransition(subject, state, name, seq) from None


def mermaid(table: Mapping[tuple[S, str], S], start: Iterable[S]) -> str:
    """The table as a mermaid state diagram; repetitions (a state to itself) are left out."""
    edges: dict[tuple[str, str], set[str]] = {}
    for (state, name), to in table.items():
        if state != to:
            edges.setdefault((state, to), set()).add(name.removeprefix("EFFECT_").removeprefix("RUN_"))
    origins = {state for state, _to in edges}
    ends: list[str] = sorted({to for _state, to in edges} - origins)
    return "\n".join(
        [
            "stateDiagram-v2",
            *(f"    [*] --> {state}" for state in start),
            *(f"    {state} --> {to}: {' / '.join(sorted(names))}" for (state, to), names in sorted(edges.items())),
            *(f"    {state} --> [*]" for state in ends),
        ]
    )
