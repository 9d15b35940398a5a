"""The world of a test: its runs, the fakes that answer their effects, and the one virtual clock of all."""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from scheduler_service.authoring.definitions import AnyProcess, processes
from scheduler_service.authoring.errors import EffectCancelled, EffectFailed
from scheduler_service.authoring.results import Session
from scheduler_service.authoring.values import encode
from scheduler_service.replay.events import Command, Event
from scheduler_service.replay.execution import Execution
from scheduler_service.replay.guards import Guard
from scheduler_service.replay.harness import RUN_ID, START, Clock, Driven, Journal
from scheduler_service.replay.loop import DeterministicLoop
from scheduler_service.replay.outbox import due_at
from scheduler_service.replay.tasks import LoopTimer
from scheduler_service.replay.testing.events import Cancel, Signal
from scheduler_service.replay.testing.fakes import Asked, Fakes, NoFake
from scheduler_service.replay.testing.life import Life

_GOES_ON: Final = "RUN_CONTINUED"
_ENDS: Final = ("RUN_COMPLETED", "RUN_FAILED", "RUN_CANCELLED", _GOES_ON)


class _Unguarded(Guard):
    """Fakes may do what processes may not: read files, look at clocks."""

    __slots__ = ()

    def enter(self, *, watch_calls: bool) -> None:
        """Nothing."""

    def leave(self) -> None:
        """Nothing."""


class FakesLoop(DeterministicLoop):
    """The loop on which fakes run: the same virtual time, so that `asyncio.sleep` in a fake takes none."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(_Unguarded())
        self._clock = clock
        self._timers_set = 0
        self.on_timer_set = self._plan
        self.begin(START)

    def run(self) -> bool:
        """Run what is ready. False when nothing was."""
        self.advance(self._clock.now)
        had_ready = self.has_ready
        self.run_ready(watch_calls=False)
        return had_ready

    def _plan(self, timer: LoopTimer) -> None:
        self._timers_set += 1
        timer.ordinal = self._timers_set
        self.timers[timer.ordinal] = timer
        self._clock.at(due_at(timer), partial(self._fire, timer.ordinal))

    def _fire(self, ordinal: int) -> None:
        self.advance(self._clock.now)
        self.fire(ordinal)


class Run:
    """One run of the world: its journal, its execution, and the lives of its effects."""

    def __init__(
        self,
        world: World,
        process: AnyProcess,
        created: Mapping[str, Any],
        run_id: str,
        on_end: Callable[[Event], None],
    ) -> None:
        self.process = process
        self.on_end = on_end
        self.execution = Execution(process, run_id)
        self.lives: dict[str, tuple[Life, asyncio.Task[None]]] = {}
        self.groups: dict[str, asyncio.Semaphore] = {}
        self.journal = Journal(process, created, run_id=run_id, clock=world.clock, react=partial(world.react, self))

    @property
    def driven(self) -> Driven:
        """What is known of it."""
        return Driven(self.process, self.journal.events, self.execution)

    @property
    def over(self) -> bool:
        """True when nothing more comes of it: it has ended with all its effects, or it is parked."""
        return self.execution.parked or (self.execution.closed and not self.execution.open_effects)

    def cancel(self, reason: str) -> None:
        """Ask for its cancel, once."""
        if not self.execution.closed and not any(e.type == "RUN_CANCEL_REQUESTED" for e in self.journal.events):
            self.journal.append("RUN_CANCEL_REQUESTED", {"reason": reason} if reason else {})

    def feed(self) -> bool:
        """Feed what it has not seen. False when there was nothing."""
        before = self.execution.seq
        while self.execution.seq < len(self.journal.events) and not self.execution.parked:
            self.journal.commit(self.execution.feed(self.journal.events[self.execution.seq]))
        return self.execution.seq > before


class World:
    """Everything of a test. `begin` the first run, then `drive`."""

    def __init__(self, fakes: Fakes, outside: Sequence[Signal | Cancel]) -> None:
        self.clock = Clock()
        self.runs: list[Run] = []
        self._fakes = fakes
        self._outside = outside
        self._loop = FakesLoop(self.clock)  # type: ignore[abstract]  # set in ForbiddenCalls
        self._error: BaseException | None = None

    def begin(
        self,
        process: AnyProcess,
        given: Mapping[str, Any],
        on_end: Callable[[Event], None] = lambda _event: None,
        **created: Any,
    ) -> Run:
        """Create a run."""
        run_id = str(uuid.UUID(int=uuid.UUID(RUN_ID).int + len(self.runs)))
        run = Run(self, process, {"input": dict(given), **created}, run_id, on_end)
        self.runs.append(run)
        if len(self.runs) == 1:
            self._plan_outside("", "")
        return run

    def drive(self, events_max: int) -> bool:
        """Until the first run, and what it goes on as, is over or waits for ever. False at `events_max`."""
        while sum(len(run.journal.events) for run in self.runs) < events_max:
            moved = [run.feed() for run in list(self.runs)]
            busy = self._loop.run() or any(moved)
            if self._error is not None:
                raise self._error
            if busy:
                continue
            if all(run.over for run in self.chain()) or not self.clock.step():
                return True
        return False

    def close(self) -> None:
        """Drop what is left: no callback runs any more."""
        self._loop.kill()
        for run in self.runs:
            run.execution.evict()

    def chain(self) -> list[Run]:
        """The first run and the runs that it went on as."""
        found = [self.runs[0]]
        for run in self.runs[1:]:
            if run.journal.events[0].data.get("previous_run_id") == found[-1].journal.run_id:
                found.append(run)
        return found

    # --- what happens to rows of process code ------------------------------------------------------------------------

    def react(self, run: Run, journal: Journal, command: Command) -> None:
        """Called for each row that a process has asked for."""
        if command.type == "EFFECT_REQUESTED":
            self._begin_life(run, Asked.by(command))
        elif command.type == "EFFECT_CANCEL_REQUESTED":
            life, task = run.lives[command.effect_key]
            life.cancelled = command.data
            task.cancel()
        elif command.type in _ENDS:
            self._ended(run, journal.events[-1])

    def _ended(self, run: Run, end: Event) -> None:
        if end.type != _GOES_ON:
            run.on_end(end)
            return
        first = run.journal.events[0].data
        parent = {name: first[name] for name in ("parent_run_id", "parent_effect_id") if name in first}
        previous = {"previous_run_id": run.journal.run_id}
        following = self.begin(run.process, end.data["input"], run.on_end, **parent, **previous)
        for seq in end.data.get("signal_seqs", ()):
            following.journal.append("SIGNAL_RECEIVED", run.journal.events[seq - 1].data)

    def _begin_life(self, run: Run, asked: Asked) -> None:
        fake = self._fake(run, asked)
        life = Life(run.journal, self.clock, asked, fake, self._slots(run, asked))
        context = contextvars.Context()
        task = self._loop.create_task(self._live(run, life, asked), name=asked.key, context=context)
        run.lives[asked.key] = (life, task)
        if run is self.runs[0]:
            self._plan_outside(asked.key, "asked")

    async def _live(self, run: Run, life: Life, asked: Asked) -> None:
        try:
            await life.live()
        except BaseException as error:  # noqa: BLE001 - `drive` raises it
            self._error = self._error or error
        if run is self.runs[0]:
            self._plan_outside(asked.key, "settled")

    def _slots(self, run: Run, asked: Asked) -> asyncio.Semaphore | None:
        group = asked.spec.get("group")
        if group is None:
            return None
        limit = 1 if group["strategy"] == "GROUP_STRATEGY_SEQUENTIAL" else group.get("max_concurrency", 0)
        return run.groups.setdefault(group["id"], asyncio.Semaphore(limit)) if limit else None

    # --- effects that need no fake -----------------------------------------------------------------------------------

    def _fake(self, run: Run, asked: Asked) -> Any:
        try:
            return self._fakes.find(asked)
        except NoFake:
            if asked.kind == "timer":
                return _sleeps(asked, self.clock)
            if asked.kind == "run" and asked.work["process"] in processes():
                return partial(self._child, run, asked)
            raise

    async def _child(self, parent: Run, asked: Asked, **given: Any) -> Any:
        """A fake that runs the process itself, in the same virtual time."""
        ended: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        created = {"parent_run_id": parent.journal.run_id, "parent_effect_id": asked.effect_id}
        child = self.begin(processes()[asked.work["process"]], given, ended.set_result, **created)
        parent.journal.append_of_effect(asked.key, "CHILD_RUN_STARTED", {"child_run_id": child.journal.run_id}, 0)
        try:
            end = await asyncio.shield(ended)
        except asyncio.CancelledError:
            child.cancel("its parent asked")
            await ended
            raise
        return _child_result(asked.key, child.journal.run_id, end)

    # --- what comes from outside -------------------------------------------------------------------------------------

    def _plan_outside(self, key: str, moment: str) -> None:
        for item in self._outside:
            if (
                (moment == "asked" and item.asked == key)
                or (moment == "settled" and item.settled == key)
                or not (moment or item.asked or item.settled)
            ):
                self.clock.after(item.at, partial(self._deliver, item))

    def _deliver(self, item: Signal | Cancel) -> None:
        run = self.chain()[-1]
        if run.execution.closed:
            return
        if isinstance(item, Cancel):
            run.cancel(item.reason)
        else:
            value = {"value": {"value": encode(item.value, f"signal {item.name}")}}
            run.journal.append("SIGNAL_RECEIVED", {"name": item.name, **value})


def _sleeps(asked: Asked, clock: Clock) -> Any:
    async def until() -> None:
        due = dt.datetime.fromisoformat(asked.work["fire_at"])
        await asyncio.sleep((due - clock.now).total_seconds())

    return until


def _child_result(key: str, run_id: str, end: Event) -> Any:
    """What a child run gives its parent. Raises EffectFailed, EffectCancelled."""
    if end.type == "RUN_COMPLETED":
        return end.data["result"]["value"]
    if end.type == "RUN_CANCELLED":
        raise EffectCancelled(str(end.data.get("reason", "")), key=key, reason="CANCELLED_BY_USER")
    error = end.data["error"]
    session = Session(**error["session"]) if "session" in error else None
    message = f"run {run_id} failed: {error.get('message', '')}"
    raise EffectFailed(message, key=key, reason="CHILD_RUN_FAILED", session=session)
