"""What a test sees of a run: its result, and everything that happened on the way."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from scheduler_service.authoring.decoding import decode
from scheduler_service.authoring.values import dumps
from scheduler_service.replay.events import SETTLING_TYPES, Event
from scheduler_service.replay.harness import START, Driven
from scheduler_service.replay.states import EFFECT_TRANSITIONS, EffectState, apply, first_state, trigger

R = TypeVar("R")

_DATA_CHARACTERS_MAX = 160


class NotCompleted(AssertionError):
    """The result of a run was asked for that has none: it failed, was cancelled, is parked, or waits."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of `ctx.log`; `at` is seconds from the start."""

    level: str
    message: str
    fields: Mapping[str, Any]
    at: float


@dataclass(frozen=True, slots=True)
class EffectSeen:
    """An effect of the run. Times are seconds from the start; `value` and `error` are as the journal has them."""

    key: str
    name: str
    #: shell, function, agent, external, run or timer.
    kind: str
    state: str
    spec: Mapping[str, Any]
    asked_at: float
    settled_at: float | None
    attempts: int
    #: The structured result, as JSON.
    value: Any = None
    #: Why it did not succeed: name of the reason and message. None while it is open, or when it succeeded.
    reason: str | None = None
    message: str = ""


@dataclass(frozen=True)
class TestRun(Generic[R]):
    """A run that was driven to its end, or until nothing more could come.

    `str(run)` is its journal for people. A run that goes on as new runs (`ctx.continue_as_new`) is seen as its last
    one; `earlier` are those before it. `children` are the child runs whose processes ran.
    """

    __test__ = False  # pytest: no class of tests

    driven: Driven
    earlier: Sequence[TestRun[Any]] = field(default=(), repr=False)
    children: Sequence[TestRun[Any]] = field(default=(), repr=False)

    @property
    def journal(self) -> Sequence[Event]:
        """Its events, in order."""
        return self.driven.events

    @property
    def state(self) -> str:
        """COMPLETED, FAILED, CANCELLED; PROCESS_ERROR when an error in its code parked it; RUNNING when it waits."""
        end = self.driven.end
        if end is None:
            return "RUNNING"
        return "PROCESS_ERROR" if end.type == "PROCESS_RUNTIME_ERROR" else end.type.removeprefix("RUN_")

    @property
    def result(self) -> R:
        """What the process returned, read by its annotation. Raises NotCompleted, which says what happened instead."""
        if self.state != "COMPLETED":
            raise NotCompleted(self._instead())
        stored = self.driven.end.data.get("result", {}) if self.driven.end else {}
        value: R = decode(stored.get("value"), self.driven.process.returns, "result")
        return value

    @property
    def error(self) -> Mapping[str, Any] | None:
        """The error with which it failed or was parked, as the journal has it: kind, message, traceback, data."""
        end = self.driven.end
        return end.data.get("error") if end is not None else None

    @property
    def duration(self) -> float:
        """Seconds of virtual time from its start to its last event."""
        return _seconds(self.journal[-1]) - _seconds(self.journal[0])

    @cached_property
    def effects(self) -> Mapping[str, EffectSeen]:
        """Its effects by key, in the order in which they were asked for."""
        requests = self.driven.rows("EFFECT_REQUESTED")
        return {request.effect_key: self._seen(request) for request in requests}

    @property
    def log(self) -> Sequence[LogLine]:
        """What it logged."""
        return [
            LogLine(row.data["level"], row.data.get("message", ""), row.data.get("fields", {}), _seconds(row))
            for row in self.driven.rows("PROCESS_LOG")
        ]

    @property
    def reports(self) -> Sequence[Mapping[str, Any]]:
        """What it reported (`ctx.report`): percent, label and data, each only when given."""
        return [row.data for row in self.driven.rows("RUN_REPORTED")]

    @property
    def report(self) -> Mapping[str, Any]:
        """Its last report; empty when there was none."""
        return self.reports[-1] if self.reports else {}

    def __str__(self) -> str:
        return "\n".join(
            [f"{self.driven.process.name}: {self.state} after {self.duration:g} s", *map(_line, self.journal)]
        )

    def _seen(self, request: Event) -> EffectSeen:
        rows = [row for row in self.journal if row.effect_key == request.effect_key and row is not request]
        spec = request.data["spec"]
        state = first_state(spec)
        for row in rows:
            state = apply(EFFECT_TRANSITIONS, state, trigger(row.type, row.data), subject=row.effect_key, seq=row.seq)
        end = next((row for row in rows if row.type in SETTLING_TYPES), None)
        data = end.data if end is not None else {}
        why = {} if state is EffectState.SUCCEEDED else data.get("error") or data
        return EffectSeen(
            key=request.effect_key,
            name=spec["name"],
            kind=next(kind for kind in ("shell", "function", "agent", "external", "run", "timer") if kind in spec),
            state=str(state),
            spec=spec,
            asked_at=_seconds(request),
            settled_at=None if end is None else _seconds(end),
            attempts=max((row.attempt for row in rows), default=0),
            value=(data.get("result", {}).get("value") or {}).get("value"),
            reason=why["reason"].removeprefix("EFFECT_REASON_") if "reason" in why else None,
            message=why.get("message", ""),
        )

    def _instead(self) -> str:
        name = self.driven.process.name
        if self.error is not None:
            return f"{name} is {self.state}: {self.error.get('traceback') or self.error.get('message')}\n{self}"
        if self.state == "RUNNING":
            open_ = ", ".join(key for key, seen in self.effects.items() if seen.settled_at is None) or "none"
            parked = [f"\nits child run {c.driven.process.name}: {c._instead()}" for c in self.children if c.error]
            return f"{name} waits for what never comes; open effects: {open_}{''.join(parked)}\n{self}"
        return f"{name} is {self.state}\n{self}"


def _seconds(event: Event) -> float:
    return (event.recorded_at - START) / dt.timedelta(seconds=1)


def _line(event: Event) -> str:
    data = dumps(dict(event.data)).decode() if event.data else ""
    shown = f"{data[:_DATA_CHARACTERS_MAX]}..." if len(data) > _DATA_CHARACTERS_MAX else data
    return f"{event.seq:>5} {_seconds(event):>10.3f}s  {event.type:<24}{event.effect_key:<20} {shown}".rstrip()
