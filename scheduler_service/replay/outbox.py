"""What a step asks for, until it is known to be asked for: drafts that the end of the step turns into commands.

What was created and cancelled within one step is dropped here and writes nothing.
"""

from __future__ import annotations

import datetime as dt
import uuid
from asyncio import events as asyncio_events
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from scheduler_service.authoring.bounds import SPEC, within
from scheduler_service.authoring.errors import DeterminismError, GroupConflict, KeyReused, RunEvicted
from scheduler_service.authoring.options import check_key, check_options_of, timestamp
from scheduler_service.replay.events import Command, Event
from scheduler_service.replay.guards import asking_line, process_line
from scheduler_service.replay.handles import Handle
from scheduler_service.replay.loop import DeterministicLoop
from scheduler_service.replay.tasks import LoopTimer

if TYPE_CHECKING:
    from scheduler_service.authoring.effects import Effect

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Asking:
    """The asking side of a run: its loop, its open effects, and the drafts of the step that runs."""

    def __init__(self, run_id: str, loop: DeterministicLoop) -> None:
        self.run_id = run_id
        self._namespace = uuid.UUID(run_id)
        self.loop = loop
        self.seq = 0
        self.recorded_at = _EPOCH
        self.event: Event | None = None
        self.dead = False
        # True when commands are to say which line asked: a replay may have to tell. A live step never does.
        self.locates = False
        self.open: dict[str, Handle[Any]] = {}
        self.unobserved_failures = 0
        self.open_foreground = 0
        # Effects asked for after the process was over; None before that.
        self.late: list[Handle[Any]] | None = None
        self._keys: set[str] = set()
        self._groups: dict[str, Mapping[str, Any]] = {}
        self._occurrences: dict[str, int] = {}
        self._timers_set = 0
        self._drafts: list[Command | LoopTimer | Handle[Any]] = []

    def now(self) -> dt.datetime:
        """Time of the event that is being fed."""
        return self.recorded_at

    def check_alive(self) -> None:
        """Raises RunEvicted when the run was dropped from memory, DeterminismError when it is not the one that runs."""
        if self.dead:
            raise RunEvicted
        if asyncio_events._get_running_loop() is not self.loop:  # kept in a module global, or taken into a thread
            raise DeterminismError("the ctx of another run", "the ctx that the process was given", process_line())

    def occurrence(self, name: str) -> int:
        """How often `name` was asked for in this run, this time included."""
        count = self._occurrences[name] = self._occurrences.get(name, 0) + 1
        return count

    def add(self, type_: str, data: dict[str, Any], *, effect_id: str = "", key: str = "") -> None:
        """Ask for a row that is what it is."""
        self._drafts.append(Command(type_, self.seq, effect_id, key, data, asking_line() if self.locates else ""))

    def request(self, effect: Effect[Any], key: str, fields: dict[str, Any], *, background: bool) -> Handle[Any]:
        """Ask for an effect. Raises KeyReused, GroupConflict, OptionError, TooLarge."""
        self.check_alive()
        if check_key(key) in self._keys:
            raise KeyReused(f"key {key!r} was given before in this run; keys are unique, add a number")
        check_options_of(effect.kind, fields)
        spec = {"name": effect.name, effect.kind: effect.work, **fields}
        if background:
            spec["background"] = True
        within(spec, f"effect {key}", SPEC)
        self._declare(fields.get("group"))
        data = {"spec": spec, "digest": effect.digest}
        effect_id = str(uuid.uuid5(self._namespace, key))
        handle = Handle(self, effect, key=key, effect_id=effect_id, request=data, asked_at=asking_line())
        self._keys.add(key)
        self.open[key] = handle
        self.open_foreground += not background
        self._drafts.append(handle)
        if self.late is not None:
            self.late.append(handle)
        return handle

    def _declare(self, group: Mapping[str, Any] | None) -> None:
        """Note a group, or find it as it was declared before."""
        if group is None:
            return
        declared = self._groups.setdefault(group["id"], group)
        if declared != group:
            said, before = (
                f"{g['strategy'].removeprefix('GROUP_STRATEGY_').lower()} up to {g.get('max_concurrency') or 'any'}"
                for g in (group, declared)
            )
            raise GroupConflict(
                f"group {group['id']!r} is {said} here, and was declared as {before} before in this run"
            )

    def cancel_effect(self, handle: Handle[Any], reason: str, message: str, winner_key: str) -> None:
        """Ask for an effect's cancel, or take back one that was asked for in this same step."""
        if handle.request is not None:
            self._take_back(handle, reason, message)
            return
        data = {"reason": f"EFFECT_REASON_{reason}"}
        data |= {name: text for name, text in (("message", message), ("winner_key", winner_key)) if text}
        self.add("EFFECT_CANCEL_REQUESTED", data, effect_id=handle.effect_id, key=handle.key)

    def _take_back(self, handle: Handle[Any], reason: str, message: str) -> None:
        handle.request = None
        self._keys.discard(handle.key)
        data = {"reason": f"EFFECT_REASON_{reason}", "message": message or "cancelled in the step that asked for it"}
        handle.take_back(Event(self.seq, "EFFECT_CANCELLED", self.recorded_at, data=data))
        self.forget(handle)

    def forget(self, handle: Handle[Any]) -> None:
        """An effect has settled: only who holds its handle still needs it."""
        if self.open.pop(handle.key, None) is not None:
            self.open_foreground -= not handle.background

    def timer_set(self, timer: LoopTimer) -> None:
        """The loop set a durable timer; it is written at the end of the step, unless cancelled until then."""
        if self.locates:
            timer.asked_at = asking_line()
        self._drafts.append(timer)

    @property
    def asked(self) -> bool:
        """True when the step asked for anything."""
        return bool(self._drafts)

    def take(self) -> list[Command]:
        """The commands of the step, in the order in which they were asked for; the outbox is empty again."""
        if not self._drafts:
            return []
        drafts, self._drafts = self._drafts, []
        return [command for draft in drafts if (command := self._command(draft)) is not None]

    def discard(self) -> None:
        """Forget what was asked for and what is open: the run was dropped from memory."""
        self._drafts.clear()
        self.open.clear()

    def _command(self, draft: Command | LoopTimer | Handle[Any]) -> Command | None:
        if isinstance(draft, Command):
            return draft
        if isinstance(draft, Handle):
            data, draft.request = draft.request, None
            if data is None:
                return None
            return Command("EFFECT_REQUESTED", self.seq, draft.effect_id, draft.key, data, draft.asked_at)
        return None if draft.cancelled() else self._timer_command(draft)

    def _timer_command(self, timer: LoopTimer) -> Command:
        self._timers_set += 1
        timer.ordinal = self._timers_set
        self.loop.timers[timer.ordinal] = timer
        data = {"ordinal": timer.ordinal, "fire_at": timestamp(due_at(timer))}
        return Command("TIMER_SET", self.seq, "", "", data, timer.asked_at)


class PendingTimers(Mapping[int, dt.datetime]):
    """Written timers that have not come due, as ordinal to due time in UTC, in the order in which they were set."""

    def __init__(self, timers: Mapping[int, LoopTimer]) -> None:
        self._timers = timers

    def __getitem__(self, ordinal: int) -> dt.datetime:
        return due_at(self._timers[ordinal])

    def __iter__(self) -> Iterator[int]:
        return iter(self._timers)

    def __len__(self) -> int:
        return len(self._timers)


def due_at(timer: LoopTimer) -> dt.datetime:
    """When a written timer comes due, in UTC."""
    return _EPOCH + dt.timedelta(microseconds=timer.due_us or 0)
