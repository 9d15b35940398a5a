"""Runs of processes in memory, for tests: plays the journal and the executors, skips the waiting of timers.

`bb.testing.run(process, args, effects={...})` for authors; `drive` with an `Answers` object for full control. Pure
replay code: no Postgres, no clock. Every prefix of the history can be checked with `check_prefixes`.
"""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from scheduler_service.authoring.definitions import AnyProcess
from scheduler_service.authoring.values import encode, normalise
from scheduler_service.replay.events import TERMINAL_TYPES, Command, Event
from scheduler_service.replay.execution import Execution, replay

RUN_ID: Final = "0190b3a0-0000-7000-8000-000000000001"
START: Final = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
EVENTS_MAX: Final = 200_000


@dataclass(frozen=True, slots=True)
class Reply:
    """An event that answers: `after` seconds of the run's time from now, ties in the order given."""

    type: str
    data: Mapping[str, Any] = field(default_factory=dict)
    after: float = 0.001
    key: str = ""
    attempt: int = 1


Answer = Callable[[Command], Iterable[Reply]]


def succeeded(value: Any = None, *, after: float = 0.001, **result: Any) -> list[Reply]:
    """The replies of an effect that succeeds; `result` holds further fields of EffectResult (`exit_code=0`)."""
    stored = {"value": {"value": encode(value)}, **result}
    return [Reply("EFFECT_RESOLVED", {"state": "EFFECT_STATE_SUCCEEDED", "result": stored}, after)]


def failed(reason: str = "RAISED", message: str = "", *, after: float = 0.001, timed_out: bool = False) -> list[Reply]:
    """The replies of an effect that fails for good, or times out."""
    state = "EFFECT_STATE_TIMED_OUT" if timed_out else "EFFECT_STATE_FAILED"
    error = {"reason": f"EFFECT_REASON_{reason}"} | ({"message": message} if message else {})
    return [Reply("EFFECT_RESOLVED", {"state": state, "error": error}, after)]


def never(_command: Command) -> list[Reply]:
    """No reply: the effect stays open until it is cancelled."""
    return []


class Journal:
    """A run's journal in memory, with what is due to be appended to it. Time moves from one due reply to the next."""

    def __init__(self, process: AnyProcess, args: Mapping[str, Any], *, run_id: str, answer: Answer) -> None:
        self.events: list[Event] = []
        self.now = START
        self.run_id = run_id
        self._answer = answer
        self._due: list[tuple[dt.datetime, int, Reply]] = []
        self._order = itertools.count()
        self._open: dict[str, str] = {}
        self._append("RUN_CREATED", {"namespace": "default", "process": process.name, "input": dict(args)})

    def plan(self, reply: Reply) -> None:
        """Append the reply's event once its time has come."""
        due = self.now + dt.timedelta(seconds=reply.after)
        heapq.heappush(self._due, (due, next(self._order), reply))

    def commit(self, commands: Sequence[Command]) -> None:
        """Append commands as rows, and plan what the world answers to them."""
        for command in commands:
            self._append(
                command.type, command.data, cause=command.cause, effect_id=command.effect_id, key=command.effect_key
            )
            for reply in self._replies(command):
                self.plan(reply)

    def step(self) -> bool:
        """Append the next due event. False when nothing is due any more."""
        while self._due:
            due, _order, reply = heapq.heappop(self._due)
            if reply.key and reply.key not in self._open and reply.type.startswith("EFFECT_"):
                continue  # settled meanwhile: the fence refuses it
            self.now = max(self.now, due)
            effect_id = self._open.get(reply.key, "")
            if reply.type in ("EFFECT_RESOLVED", "EFFECT_CANCELLED"):
                self._open.pop(reply.key, None)
            self._append(reply.type, dict(reply.data), effect_id=effect_id, key=reply.key, attempt=reply.attempt)
            return True
        return False

    def _replies(self, command: Command) -> Iterable[Reply]:
        match command.type:
            case "EFFECT_REQUESTED":
                self._open[command.effect_key] = command.effect_id
                return [_keyed(reply, command.effect_key) for reply in self._answer(command)]
            case "EFFECT_CANCEL_REQUESTED":
                data = {"reason": command.data["reason"], "death": "DEATH_PROVEN"}
                return [Reply("EFFECT_CANCELLED", data, 0.002, command.effect_key)]
            case "TIMER_SET":
                due = dt.datetime.fromisoformat(command.data["fire_at"])
                return [Reply("TIMER_FIRED", {"ordinal": command.data["ordinal"]}, (due - self.now).total_seconds())]
            case "RUN_HALTED":
                return [Reply("RUN_RESUMED", {}, 1.0)]
            case _:
                return []

    def _append(
        self,
        type_: str,
        data: Mapping[str, Any],
        *,
        cause: int = 0,
        effect_id: str = "",
        key: str = "",
        attempt: int = 0,
    ) -> None:
        seq = len(self.events) + 1
        attempt = attempt if key and not cause else 0
        self.events.append(Event(seq, type_, self.now, cause, effect_id, key, attempt, "", normalise(dict(data))))


def _keyed(reply: Reply, key: str) -> Reply:
    return Reply(reply.type, reply.data, reply.after, reply.key or key, reply.attempt)


@dataclass(slots=True)
class Driven:
    """A run that was driven until it ended, was parked, or had nothing to wait for."""

    process: AnyProcess
    events: list[Event]
    execution: Execution

    @property
    def end(self) -> Event | None:
        """The row that ended or parked the run; None when it waits."""
        ends = (*TERMINAL_TYPES, "PROCESS_RUNTIME_ERROR")
        return next((event for event in reversed(self.events) if event.type in ends), None)

    @property
    def result(self) -> Any:
        """The value that the process returned. Raises AssertionError when the run did not complete."""
        if self.end is None or self.end.type != "RUN_COMPLETED":
            shown = "waits for nothing that would come" if self.end is None else f"{self.end.type}: {self.end.data}"
            raise AssertionError(f"the run did not complete: {shown}")
        return self.end.data["result"]["value"]

    def rows(self, *types: str) -> list[Event]:
        """The rows of these types."""
        return [event for event in self.events if event.type in types]

    def commands(self) -> list[tuple[int, str, str]]:
        """What the process asked for, in order: (cause, type, key)."""
        return [(event.cause, event.type, event.effect_key) for event in self.events if event.cause]


def drive(
    process: AnyProcess,
    args: Mapping[str, Any] | None = None,
    answer: Answer = lambda _command: succeeded(),
    *,
    outside: Iterable[Reply] = (),
    run_id: str = RUN_ID,
    watch_calls: bool = True,
) -> Driven:
    """Run a process to its end: `answer` gives the replies to each EFFECT_REQUESTED, `outside` holds events that come
    from nobody's request (RUN_CANCEL_REQUESTED, SIGNAL_RECEIVED), by their time from the start."""
    journal = Journal(process, args or {}, run_id=run_id, answer=answer)
    for reply in outside:
        journal.plan(reply)
    execution = Execution(process, run_id, watch_calls=watch_calls)
    while len(journal.events) < EVENTS_MAX:
        while execution.seq < len(journal.events) and not execution.parked:
            journal.commit(execution.feed(journal.events[execution.seq]))
        if execution.parked or (execution.closed and not execution.open_effects) or not journal.step():
            break
    return Driven(process, journal.events, execution)


def check_prefixes(driven: Driven) -> None:
    """Replay every prefix of the history (I8): no divergence, and what is pending is what was recorded next.

    Raises Divergence, or AssertionError naming the prefix.
    """
    for length in range(1, len(driven.events) + 1):
        prefix = driven.events[:length]
        if prefix[-1].type == "PROCESS_RUNTIME_ERROR":
            return  # parked: what follows it is another code's
        last = max((event.cause for event in prefix), default=0)
        # A prefix that ends within one commit is no state of a journal: the rows of a step are appended together.
        if length < len(driven.events) and driven.events[length].cause == last != 0:
            continue
        execution, pending = replay(driven.process, driven.execution.run_id, prefix)
        expected = [row for row in driven.events[length:] if last < row.cause <= length]
        execution.evict()
        asked, recorded = [_shown(command) for command in pending], [_shown(row) for row in expected]
        if asked != recorded:
            raise AssertionError(f"prefix of {length} events: asked {asked}, recorded {recorded}")


def _shown(row: Command | Event) -> tuple[int, str, str, Any]:
    data = normalise(dict(row.data))
    data.get("error", {}).pop("traceback", None)  # a double may raise the same exception again, with a longer one
    return row.cause, row.type, row.effect_key, data


def run(
    process: AnyProcess,
    args: Mapping[str, Any] | None = None,
    *,
    effects: Mapping[str, Callable[..., Any]] | None = None,
    signals: Sequence[tuple[float, str, Any]] = (),
) -> Driven:
    """Run a process for a test: `effects` gives a callable by function, harness, command or kind name.

    It is called with the arguments of the function, else with the work message, and what it returns is the result's
    value (for shell effects: an int is the exit code, text the stdout); what it raises fails the effect. `signals` are
    (seconds from the start, name, value). Timers are skipped; afterwards every prefix is replayed.
    """
    outside = [
        Reply("SIGNAL_RECEIVED", {"name": name, "value": {"value": encode(value)}}, after)
        for after, name, value in signals
    ]
    driven = drive(process, encode(args or {}), _Doubles(effects or {}), outside=outside)
    check_prefixes(driven)
    return driven


class _Doubles:
    """Answers effects by the test's callables."""

    def __init__(self, effects: Mapping[str, Callable[..., Any]]) -> None:
        self._effects = effects

    def __call__(self, command: Command) -> Iterable[Reply]:
        spec = command.data["spec"]
        kind = next(name for name in ("shell", "function", "agent", "external", "run", "timer") if name in spec)
        double = next((self._effects[name] for name in (spec["name"], kind) if name in self._effects), None)
        if double is None:
            raise LookupError(f"no double for effect {command.effect_key}: give effects={{{spec['name']!r}: ...}}")
        work = spec[kind]
        try:
            value = double(*work.get("args", ()), **work.get("kwargs", {})) if kind == "function" else double(work)
        except Exception as error:  # noqa: BLE001 - the double's error is the effect's failure
            return failed("RAISED", f"{type(error).__name__}: {error}")
        return _shell_reply(value, check=work.get("check", False)) if kind == "shell" else succeeded(value)


def _shell_reply(value: Any, *, check: bool) -> list[Reply]:
    code, text = (value, "") if isinstance(value, int) else (0, str(value or ""))
    if code and check:
        return failed("EXITED_NONZERO", f"exit code {code}")
    stdout: dict[str, Any] = {"stdout": {"tail": text, "total_bytes": len(text)}} if text else {}
    return succeeded(None, exit_code=code, **stdout)
