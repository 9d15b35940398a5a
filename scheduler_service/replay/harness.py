"""Runs of processes in memory: plays the journal and the executors, skips the waiting of timers.

`drive` takes the exact replies; `bb.testing.run` (`replay/testing`) is what authors use, and is built on the same
journal and clock. Pure replay code: no Postgres, no clock of a machine. `check_prefixes` replays every prefix.
"""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from scheduler_service.authoring.definitions import AnyProcess
from scheduler_service.authoring.values import encode, normalise
from scheduler_service.replay.events import SETTLING_TYPES, TERMINAL_TYPES, Command, Event
from scheduler_service.replay.execution import Execution, replay
from scheduler_service.replay.recorded import divergence

RUN_ID: Final = "0190b3a0-0000-7000-8000-000000000001"
START: Final = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
EVENTS_MAX: Final = 200_000
FEEDS_MAX: Final = 200_000
HALT_SECONDS: Final = 1.0  # after which somebody resumes a halted run


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


class Clock:
    """Time in memory: it moves from one thing that is due to the next, ties in the order in which they were planned."""

    def __init__(self) -> None:
        self.now = START
        self._due: list[tuple[dt.datetime, int, Callable[[], object]]] = []
        self._order = itertools.count()

    def at(self, due: dt.datetime, act: Callable[[], object]) -> None:
        """Plan something; what is due in the past is due now."""
        heapq.heappush(self._due, (max(due, self.now), next(self._order), act))

    def after(self, seconds: float, act: Callable[[], object]) -> None:
        """Plan something that many seconds from now."""
        self.at(self.now + dt.timedelta(seconds=seconds), act)

    def step(self) -> bool:
        """Do the next thing that is due. False when nothing is due any more."""
        if not self._due:
            return False
        self.now, _order, act = heapq.heappop(self._due)
        act()
        return True


class Journal:
    """A run's journal in memory. What the world makes of the rows of process code is up to `react`."""

    def __init__(
        self, process: AnyProcess, created: Mapping[str, Any], *, run_id: str, clock: Clock, react: React
    ) -> None:
        self.events: list[Event] = []
        self.run_id = run_id
        self.clock = clock
        self._react = react
        self.open: dict[str, str] = {}  # ids of the effects that have not settled, by key
        self.append("RUN_CREATED", {"namespace": "default", "process": process.name, **created})

    def commit(self, commands: Sequence[Command]) -> None:
        """Append commands as rows, and let the world react."""
        for command in commands:
            self.append(
                command.type, command.data, cause=command.cause, effect_id=command.effect_id, key=command.effect_key
            )
            if command.type == "EFFECT_REQUESTED":
                self.open[command.effect_key] = command.effect_id
            elif command.type == "TIMER_SET":
                fired = {"ordinal": command.data["ordinal"]}
                self.clock.at(dt.datetime.fromisoformat(command.data["fire_at"]), partial(self._fire, fired))
            elif command.type == "RUN_HALTED":
                self.clock.after(HALT_SECONDS, partial(self.append, "RUN_RESUMED", {}))
            self._react(self, command)

    def _fire(self, fired: dict[str, Any]) -> None:
        self.append("TIMER_FIRED", fired)

    def append_of_effect(self, key: str, type_: str, data: Mapping[str, Any], attempt: int = 1) -> None:
        """Append a row of an effect; refused, as by the fence, when it has settled."""
        effect_id = self.open.get(key)
        if effect_id is None:
            return
        if type_ in SETTLING_TYPES:
            del self.open[key]
        self.append(type_, data, effect_id=effect_id, key=key, attempt=attempt)

    def append(
        self,
        type_: str,
        data: Mapping[str, Any],
        *,
        cause: int = 0,
        effect_id: str = "",
        key: str = "",
        attempt: int = 0,
    ) -> None:
        """Append a row at the time that it is."""
        seq = len(self.events) + 1
        attempt = attempt if key and not cause else 0
        self.events.append(Event(seq, type_, self.clock.now, cause, effect_id, key, attempt, "", normalise(dict(data))))


React = Callable[[Journal, Command], None]


class _Replies:
    """The world of `drive`: replies to requests, and proves the death of what is cancelled."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __call__(self, journal: Journal, command: Command) -> None:
        if command.type == "EFFECT_REQUESTED":
            for reply in self._answer(command):
                self.plan(journal, _keyed(reply, command.effect_key))
        elif command.type == "EFFECT_CANCEL_REQUESTED":
            data = {"reason": command.data["reason"], "death": "DEATH_PROVEN"}
            self.plan(journal, Reply("EFFECT_CANCELLED", data, 0.002, command.effect_key))

    @staticmethod
    def plan(journal: Journal, reply: Reply) -> None:
        """Append the reply's event once its time has come."""
        if reply.key and reply.type.startswith("EFFECT_"):
            append = partial(journal.append_of_effect, reply.key, reply.type, dict(reply.data), reply.attempt)
        else:
            append = partial(journal.append, reply.type, dict(reply.data), key=reply.key, attempt=reply.attempt)
        journal.clock.after(reply.after, append)


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
    evicts: Callable[[], bool] = lambda: False,
) -> Driven:
    """Run a process to its end: `answer` gives the replies to each EFFECT_REQUESTED, `outside` holds events that come
    from nobody's request (RUN_CANCEL_REQUESTED, SIGNAL_RECEIVED), by their time from the start. Where `evicts` says so
    after an event, the run is dropped from memory and replayed from its journal."""
    clock, replies = Clock(), _Replies(answer)
    journal = Journal(process, {"input": dict(args or {})}, run_id=run_id, clock=clock, react=replies)
    for reply in outside:
        replies.plan(journal, reply)
    execution = Execution(process, run_id, watch_calls=watch_calls)
    while len(journal.events) < EVENTS_MAX:
        while execution.seq < len(journal.events) and not execution.parked:
            journal.commit(execution.feed(journal.events[execution.seq]))
            if evicts() and _goes_on(execution):
                execution.evict()
                execution, pending = replay(process, run_id, journal.events, watch_calls=watch_calls)
                journal.commit(pending)
        if execution.parked or (execution.closed and not execution.open_effects) or not clock.step():
            break
    return Driven(process, journal.events, execution)


def _goes_on(execution: Execution) -> bool:
    return not (execution.parked or execution.closed)


def check_prefixes(driven: Driven) -> None:
    """Replay every prefix of the history (I8): no divergence, and what is pending is what was recorded next.

    Of a history so long that this would take seconds, evenly many of its prefixes. Raises Divergence.
    """
    every = 1 + len(driven.events) ** 2 // (2 * FEEDS_MAX)
    for length in range(len(driven.events), 0, -every):
        prefix = driven.events[:length]
        if any(event.type == "PROCESS_RUNTIME_ERROR" for event in prefix):
            continue  # parked: what follows it is another code's
        last = max((event.cause for event in prefix), default=0)
        # A prefix that ends within one commit is no state of a journal: the rows of a step are appended together.
        if length < len(driven.events) and driven.events[length].cause == last != 0:
            continue
        execution, pending = replay(driven.process, driven.execution.run_id, prefix)
        execution.evict()
        expected = [row for row in driven.events[length:] if last < row.cause <= length]
        compare_pending(prefix[-1], expected, pending)


def compare_pending(last: Event, expected: Sequence[Event], pending: Sequence[Command]) -> None:
    """Compare what a replayed prefix asks for with what the journal has next. Raises Divergence."""
    rest = [_shown(row) for row in expected]
    extra = []
    for command in pending:
        shown = _shown(command)
        if shown in rest:
            rest.remove(shown)
        else:
            extra.append(command)
    missing = [row for row in expected if _shown(row) in rest]
    if extra or missing or [_shown(row) for row in expected] != [_shown(command) for command in pending]:
        raise divergence(last, missing or expected, extra or pending)


def _shown(row: Command | Event) -> tuple[int, str, str, Any]:
    data = normalise(dict(row.data))
    data.get("error", {}).pop("traceback", None)  # a double may raise the same exception again, with a longer one
    return row.cause, row.type, row.effect_key, data
