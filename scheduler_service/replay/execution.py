"""One run in memory: feeds journal events to process code, one at a time, and gives what it asks for.

The iteration stage drives it: `feed(event)` for each event in seq order, append the commands it returns (in one commit
for several events if it likes; `cause` tells them apart), and feed the rows it appended when it comes to them, like all
others. After any doubt about a commit: `evict()`, and `replay` from the journal.
"""

from __future__ import annotations

import contextvars
import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from scheduler_service.authoring.context import CURRENT
from scheduler_service.authoring.definitions import AnyProcess
from scheduler_service.authoring.values import InvalidValue, normalise
from scheduler_service.replay.closing import Closing
from scheduler_service.replay.context import RunContext, Signal
from scheduler_service.replay.events import TERMINAL_TYPES, Command, Event
from scheduler_service.replay.failures import StepBlocked, parked_kind, run_error
from scheduler_service.replay.guards import Guard
from scheduler_service.replay.handles import Handle
from scheduler_service.replay.loop import DeterministicLoop
from scheduler_service.replay.outbox import Asking, PendingTimers
from scheduler_service.replay.recorded import Recorded
from scheduler_service.replay.states import RUN_TRANSITIONS, RunState, apply


class Execution:
    """A run of a process, alive between iterations. Not thread-safe: one thread at a time calls it.

    `recorded` is what its journal says was asked for already (`replay` builds it); without it everything is new.
    `watch_calls` switches net (c) of the guards on for new steps.
    """

    def __init__(
        self, process: AnyProcess, run_id: str, *, recorded: Recorded | None = None, watch_calls: bool = True
    ) -> None:
        self.process = process
        self.run_id = run_id
        self.state = RunState.RUNNING
        self._recorded = recorded or Recorded()
        #: Net (c) of the guards for the next new step; it costs as much as the step itself.
        self.watch_calls = watch_calls
        self._blocked = ""
        self._loop = DeterministicLoop(Guard())  # type: ignore[abstract]  # set in ForbiddenCalls
        self._asking = Asking(run_id, self._loop)
        self._loop.on_timer_set = self._asking.timer_set
        self._context = RunContext(self._asking, input_of=self._input_of, mark_patch=self._mark_patch)
        self._patches: dict[str, bool] = {}
        self._closing = Closing(self._asking, self._context)

    # --- what the iteration stage reads ------------------------------------------------------------------------------

    @property
    def seq(self) -> int:
        """Seq of the last event fed; 0 before the first."""
        return self._asking.seq

    @property
    def closed(self) -> bool:
        """True once the command that ends the run was given: nothing more will be asked for."""
        return self._closing.ended

    @property
    def parked(self) -> bool:
        """True after PROCESS_RUNTIME_ERROR was given: drop the execution, replay after RUN_RESUMED."""
        return self.state is RunState.PROCESS_ERROR

    @property
    def replaying(self) -> bool:
        """True while the next event's step is in the history already."""
        return self._recorded.covers(self.seq + 1)

    @property
    def open_effects(self) -> Mapping[str, Handle[Any]]:
        """Effects that have not settled, by key, in the order in which they were asked for. A live view."""
        return MappingProxyType(self._asking.open)

    @property
    def timers(self) -> Mapping[int, dt.datetime]:
        """Pending timers, ordinal to due time, in the order in which they were set; without cancelled ones. Live."""
        return PendingTimers(self._loop.timers)

    @property
    def unobserved_failures(self) -> int:
        """Background effects that failed and whose failure nobody looked at."""
        return self._asking.unobserved_failures

    # --- what the iteration stage calls ------------------------------------------------------------------------------

    def feed(self, event: Event) -> list[Command]:
        """Feed the next event, run to quiescence, and give the new commands, all with `cause` = its seq.

        Commands that the history has already are compared with it and not given. An error of process code is the one
        command PROCESS_RUNTIME_ERROR. Raises Divergence, IllegalTransition, or ValueError for a seq that is not next;
        the execution is of no further use then.
        """
        asking = self._asking
        if event.seq != asking.seq + 1:
            raise ValueError(
                f"run {self.run_id}: fed seq {event.seq} after {asking.seq}; events come in order, each once"
            )
        if asking.dead or self.parked:
            raise ValueError(f"run {self.run_id}: seq {event.seq} fed to an execution that is {self._why_dead()}")
        try:
            return self._take(event)
        except BaseException:
            self.evict()  # else garbage collection would run the coroutine's cleanup, with a context that still answers
            raise

    def evict(self) -> None:
        """Drop the run from memory. `finally` blocks run, nothing is emitted, `except CancelledError` does not run."""
        self._asking.dead = True
        self._loop.kill()
        self._asking.discard()

    def block(self, stack: str) -> None:
        """Called by a watchdog from another thread: the step does not come to rest; `stack` is where it is.

        The step ends before its next callback, with PROCESS_RUNTIME_ERROR of kind BLOCKED. Code that never returns to
        the loop needs StepBlocked raised into the thread besides.
        """
        self._blocked = stack
        self._loop.stop_soon()

    def _take(self, event: Event) -> list[Command]:
        asking = self._asking
        asking.seq = event.seq
        asking.recorded_at = event.recorded_at
        self._loop.advance(event.recorded_at)
        handler = _HANDLERS.get(event.type)
        if handler is not None:
            handler(self, event)
        replaying = self._recorded.covers(event.seq)
        if self._loop.has_ready or asking.asked or self._closing.due:
            return self._step(event, replaying=replaying)
        if replaying:
            self._recorded.check(event, (), self._loop.waiting_lines)
        return []

    # --- the step ----------------------------------------------------------------------------------------------------

    def _step(self, event: Event, *, replaying: bool) -> list[Command]:
        self._asking.locates = replaying
        error = self._run_process(replaying=replaying)
        if error is not None:
            return self._park(error)
        commands = self._asking.take()
        for command in commands:
            self._note(command)
        if not replaying:
            return commands
        self._recorded.check(event, commands, self._loop.waiting_lines)
        return []

    def _run_process(self, *, replaying: bool) -> BaseException | None:
        """Run to quiescence. Gives the error that parks the run, if there is one."""
        watch = self.watch_calls and not replaying
        try:
            self._loop.run_ready(watch_calls=watch)
            while self._closing.advance():
                self._loop.run_ready(watch_calls=watch)
        except (SystemExit, StepBlocked) as error:  # what asyncio lets through of process code
            return error
        if self._blocked:
            return StepBlocked(f"no quiescence; process code was at:\n{self._blocked}")
        return self._loop.callback_error or self._closing.process_error

    def _note(self, command: Command) -> None:
        if command.type == "RUN_HALTED":
            return  # the step goes on to its end; the row itself stops the run
        if command.type in TERMINAL_TYPES or command.type == "RUN_CLOSING":
            self.state = apply(
                RUN_TRANSITIONS, self.state, command.type, subject=f"run {self.run_id}", seq=command.cause
            )

    def _park(self, error: BaseException, kind: str = "") -> list[Command]:
        seq = self._asking.seq
        data = {"error": run_error(error, kind or self._closing.error_kind or parked_kind(error))}
        self.state = RunState.PROCESS_ERROR
        self.evict()
        return [Command("PROCESS_RUNTIME_ERROR", seq, "", "", data)]

    def _why_dead(self) -> str:
        return "parked by an error" if self.parked else "evicted"

    # --- process code's questions ------------------------------------------------------------------------------------

    def _input_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = self.process.input_object(args, kwargs)
        self.process.bind_input(given)  # what the next run could not read is refused at the line, not there
        return given

    def _mark_patch(self, patch_id: str) -> bool:
        known = self._patches.get(patch_id)
        if known is None:
            # Within the history the journal decides; a history that passed here without a mark is of the old code.
            known = patch_id in self._recorded.patches or not self._recorded.covers(self._asking.seq)
            self._patches[patch_id] = known
            if known:
                self._asking.add("PATCH_MARKED", {"patch_id": patch_id})
        return known

    # --- events (by type, in alphabetical order) ---------------------------------------------------------------------

    def _on_effect(self, event: Event) -> None:
        handle = self._asking.open.get(event.effect_key)
        if handle is None:
            return  # settled before: what comes after is evidence
        handle.on_event(event)
        if handle.done():
            self._asking.forget(handle)

    def _on_run_cancel_requested(self, event: Event) -> None:
        if self._context.cancelled_seq is not None:
            return
        if self.state is RunState.RUNNING:
            self.state = RunState.CANCELLING
        self._context.on_cancel(event.seq, str(event.data.get("reason", "")))
        self._closing.cancel_run()

    def _on_run_created(self, event: Event) -> None:
        self._loop.begin(event.recorded_at)
        context = contextvars.Context()  # empty: nothing of whoever feeds leaks into the process
        context.run(CURRENT.set, self._context)
        self._closing.main = self._loop.create_task(self._main(event), name="main", context=context)

    async def _main(self, event: Event) -> Any:
        try:
            args, kwargs = self.process.bind_input(event.data.get("input") or {})
        except InvalidValue:
            self._closing.error_kind = "INVALID_INPUT"
            raise
        return await self.process.fn(self._context, *args, **kwargs)

    def _on_run_resumed(self, _event: Event) -> None:
        self._context.on_resumed()

    def _on_signal_received(self, event: Event) -> None:
        value = normalise((event.data.get("value") or {}).get("value"))
        self._context.on_signal(Signal(event.seq, str(event.data.get("name", "")), value))

    def _on_timer_fired(self, event: Event) -> None:
        self._loop.fire(int(event.data["ordinal"]))

    def _on_timer_set(self, event: Event) -> None:
        # The journal's due time holds, even when changed code would have set another.
        timer = self._loop.timers.get(int(event.data["ordinal"]))
        if timer is not None:
            due = dt.datetime.fromisoformat(event.data["fire_at"])
            timer.due_us = (due - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


# EFFECT_REQUESTED and the other rows of process code come back as events too and only move the time on.
_HANDLERS: Final[Mapping[str, Callable[[Execution, Event], None]]] = {
    "CHILD_RUN_STARTED": Execution._on_effect,
    "EFFECT_ATTEMPT_FAILED": Execution._on_effect,
    "EFFECT_ATTEMPT_LOST": Execution._on_effect,
    "EFFECT_CANCELLED": Execution._on_effect,
    "EFFECT_CANCEL_REQUESTED": Execution._on_effect,
    "EFFECT_DISPATCHED": Execution._on_effect,
    "EFFECT_PARKED": Execution._on_effect,
    "EFFECT_PROGRESS": Execution._on_effect,
    "EFFECT_RESOLVED": Execution._on_effect,
    "EFFECT_REUSED": Execution._on_effect,
    "EFFECT_STARTED": Execution._on_effect,
    "RUN_CANCEL_REQUESTED": Execution._on_run_cancel_requested,
    "RUN_CREATED": Execution._on_run_created,
    "RUN_RESUMED": Execution._on_run_resumed,
    "SIGNAL_RECEIVED": Execution._on_signal_received,
    "TIMER_FIRED": Execution._on_timer_fired,
    "TIMER_SET": Execution._on_timer_set,
}


def replay(
    process: AnyProcess,
    run_id: str,
    events: Iterable[Event],
    *,
    watch_calls: bool = True,
    on_step: Callable[[], object] = lambda: None,
) -> tuple[Execution, list[Command]]:
    """Feed a whole history: the execution as it stands, and the commands that are not in the history yet.

    Raises Divergence when the code asks for something else than the history recorded. Stops at the first command
    PROCESS_RUNTIME_ERROR, which is the last of the commands then (`execution.parked`). `on_step` is called before each
    event, for a watchdog.
    """
    history = list(events)
    execution = Execution(process, run_id, recorded=Recorded(history), watch_calls=watch_calls)
    pending: list[Command] = []
    for event in history:
        on_step()
        pending += execution.feed(event)
        if execution.parked:
            break
    return execution, pending
