"""What a journal says was asked for, by cause; and the comparison of a replay with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final

from scheduler_service.authoring.values import dumps, normalise
from scheduler_service.replay.events import COMMAND_TYPES, Command, Event

# Rows that say something without deciding anything: other words in them are no divergence.
_NOT_COMPARED: Final = frozenset({"PROCESS_LOG", "RUN_REPORTED"})
_DESCRIBED_MAX: Final = 400

Identity = tuple[str, str, str]  # type, key or ordinal or patch, digest


class Divergence(Exception):
    """Replay asked for something else than the journal recorded: the code has changed in a way that matters.

    `seq` is the event that was being fed; `recorded` and `asked` describe what only one side has; `lines` are where
    process code asked for it, `waits_at` where its tasks wait now (`file:line`, as far as known).
    """

    def __init__(
        self,
        seq: int,
        subject: str,
        recorded: Sequence[str],
        asked: Sequence[str],
        *,
        lines: Sequence[str] = (),
        waits_at: Sequence[str] = (),
        difference: str = "",
    ) -> None:
        self.seq = seq
        self.recorded = list(recorded)
        self.asked = list(asked)
        self.lines = [line for line in lines if line]
        self.waits_at = [] if self.lines else list(waits_at)  # it says nothing more once a line asked for something
        both = f"recorded {', '.join(recorded) or 'nothing'}; asked {_with_lines(asked, lines) or 'nothing'}"
        super().__init__(
            f"replay diverged at seq {seq} ({subject}): {difference or both}{self._waiting()}. "
            "Restore the code, or keep the old way for old runs: if ctx.patched(id): new code, else: old code"
        )

    @property
    def details(self) -> dict[str, Any]:
        """For RunError.data."""
        where = {"lines": self.lines, "waits_at": self.waits_at}
        return {"seq": self.seq, "recorded": self.recorded, "asked": self.asked} | {k: v for k, v in where.items() if v}

    def _waiting(self) -> str:
        return f", process code waits at {', '.join(self.waits_at)}" if self.waits_at else ""


def _with_lines(asked: Sequence[str], lines: Sequence[str]) -> str:
    return ", ".join(f"{what} at {line}" if line else what for what, line in zip_longest(asked, lines, fillvalue=""))


class Recorded:
    """The commands of a history by cause. `last_cause` is the highest: what is asked for past it is new."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._by_cause: dict[int, list[Event]] = {}
        self.patches: set[str] = set()
        self.last_cause = 0
        for event in events:
            if event.cause and event.type in COMMAND_TYPES:
                self._add(event)

    def _add(self, event: Event) -> None:
        self.last_cause = max(self.last_cause, event.cause)
        if event.type == "PATCH_MARKED":
            self.patches.add(str(event.data.get("patch_id", "")))
        if event.type not in _NOT_COMPARED:
            self._by_cause.setdefault(event.cause, []).append(event)

    def covers(self, seq: int) -> bool:
        """True when the step of this event is in the history, so that its commands must be equal."""
        return seq <= self.last_cause

    def check(self, event: Event, asked: Sequence[Command], waits_at: Callable[[], Sequence[str]] = lambda: ()) -> None:
        """Compare a step with its record. Raises Divergence; forgets the step, so that memory does not grow."""
        rows = self._by_cause.pop(event.seq, [])
        compared = [command for command in asked if command.type not in _NOT_COMPARED]
        if not rows and not compared:
            return
        recorded, now = Counter(map(identity, rows)), Counter(map(identity, compared))
        if recorded != now:
            raise divergence(event, _only(rows, recorded - now), _only(compared, now - recorded), waits_at())


def identity(row: Event | Command) -> Identity:
    """What two sides must agree on: order within a step, wordings and scheduling options are not part of it."""
    data = row.data
    match row.type:
        case "EFFECT_REQUESTED":
            return row.type, row.effect_key, str(data.get("digest", ""))
        case "EFFECT_CANCEL_REQUESTED":
            return row.type, row.effect_key, ""
        case "TIMER_SET":
            return row.type, str(data.get("ordinal", "")), ""
        case "PATCH_MARKED":
            return row.type, str(data.get("patch_id", "")), ""
        case _:
            return row.type, "", ""


def divergence(
    event: Event, recorded: Sequence[Event], asked: Sequence[Command], waits_at: Sequence[str] = ()
) -> Divergence:
    """The divergence of a step: what only its record has, and what only the replay asked for."""
    return Divergence(
        event.seq,
        f"{event.type} of {event.effect_key}" if event.effect_key else event.type,
        [_described(row) for row in recorded],
        [_described(command) for command in asked],
        lines=[command.asked_at for command in asked],
        waits_at=waits_at,
        difference=_changed_arguments(recorded, asked),
    )


def _changed_arguments(recorded: Sequence[Event], asked: Sequence[Command]) -> str:
    """What differs when both sides asked for the same effects, only not for the same work; else nothing."""
    before = {row.effect_key: row for row in recorded if row.type == "EFFECT_REQUESTED"}
    now = {row.effect_key: row for row in asked if row.type == "EFFECT_REQUESTED"}
    if before.keys() != now.keys() or not len(before) == len(recorded) == len(asked):
        return ""
    return ", ".join(
        f"args of {key} changed: recorded {_work(row.data.get('spec') or {})} (seq {row.seq}); "
        f"asked {_with_lines([_work(now[key].data['spec'])], [now[key].asked_at])}"
        for key, row in before.items()
    )


def _only(rows: Sequence[Any], wanted: Counter[Identity]) -> list[Any]:
    left = Counter(wanted)
    chosen = []
    for row in rows:
        if left[identity(row)] > 0:
            left[identity(row)] -= 1
            chosen.append(row)
    return chosen


def _described(row: Event | Command) -> str:
    where = f" (seq {row.seq})" if isinstance(row, Event) else ""
    name = " ".join(part for part in identity(row)[:2] if part)
    if row.type != "EFFECT_REQUESTED":
        return f"{name}{where}"
    return f"{name} {_work(row.data.get('spec') or {})}{where}"


def _work(spec: Mapping[str, Any]) -> str:
    kinds = ("shell", "function", "agent", "external", "run", "timer")
    shown = dumps(normalise({kind: spec[kind] for kind in kinds if kind in spec})).decode()
    return shown if len(shown) <= _DESCRIBED_MAX else f"{shown[:_DESCRIBED_MAX]}..."
