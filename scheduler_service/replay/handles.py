"""Handles of effects: what process code holds of an effect, driven by the events that are fed."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from scheduler_service.authoring.bounds import bounded_text
from scheduler_service.authoring.context import EffectHandle
from scheduler_service.authoring.errors import EffectCancelled, EffectError, EffectFailed, EffectTimedOut, RunEvicted
from scheduler_service.authoring.results import (
    Outcome,
    Progress,
    Session,
    Settled,
    WorkspaceResult,
    progress_from,
    usage_from,
)
from scheduler_service.replay.events import Event
from scheduler_service.replay.states import (
    EFFECT_TERMINAL,
    EFFECT_TRANSITIONS,
    EffectState,
    apply,
    first_state,
    trigger,
)

if TYPE_CHECKING:
    import datetime as dt

    from scheduler_service.authoring.effects import Effect
    from scheduler_service.replay.outbox import Asking

T_co = TypeVar("T_co", covariant=True)

_NO_PROGRESS: Final = Progress()


class Handle(EffectHandle[T_co]):
    """One effect of a run. Created by the context; `on_event` and `drop` are for the execution only."""

    __slots__ = (
        "_asking", "_attempt", "_callbacks", "_cancelled_by", "_decode", "_decoded", "_progress",
        "_settled", "_state", "_unobserved", "_watchers", "asked_at", "background", "effect_id", "key", "on_run_end",
        "ordinal", "request", "requested_seq",
    )  # fmt: skip

    def __init__(
        self, asking: Asking, effect: Effect[T_co], *, key: str, effect_id: str, request: dict[str, Any], asked_at: str
    ) -> None:
        # Constant fields.
        self.key = key
        self.effect_id = effect_id
        spec = request["spec"]
        self.background = bool(spec.get("background"))
        self.on_run_end = str(spec.get("on_run_end", "")).removeprefix("ON_RUN_END_")
        self.ordinal = asking.loop.next_ordinal()
        self.requested_seq = asking.seq
        self._asking = asking
        self.asked_at = asked_at
        self._decode = effect.decode
        # The request's data until it is written, then None: a settled effect costs little memory.
        self.request: dict[str, Any] | None = request
        # Moved on by events.
        self._state = first_state(spec)
        self._attempt = 0
        self._progress: Mapping[str, Any] | None = None
        self._cancelled_by = ""
        self._settled: Event | None = None
        # Moved on by process code.
        self._unobserved = False
        self._decoded: Any = None
        self._callbacks: list[tuple[Callable[[Any], object], Any]] = []
        self._watchers: list[asyncio.Future[None]] = []

    def __hash__(self) -> int:
        return self.ordinal

    def __repr__(self) -> str:
        return f"<effect {self.key} {self._state}>"

    # --- what process code calls -------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, T_co]:
        if self._settled is None:
            waiter = self._asking.loop.create_future()
            wake = _Waker(waiter)
            self.add_done_callback(wake)
            try:
                yield from waiter
            finally:
                self.remove_done_callback(wake)
        return self.result()

    @property
    def status(self) -> str:
        """See `EffectHandle.status`."""
        return self._state

    @property
    def progress(self) -> Progress:
        """See `EffectHandle.progress`."""
        return _NO_PROGRESS if self._progress is None else progress_from(self._progress)

    @property
    def session(self) -> Session | None:
        """See `EffectHandle.session`."""
        return None if self._settled is None else self._given(self._settled).session

    @property
    def workspace(self) -> WorkspaceResult | None:
        """See `EffectHandle.workspace`."""
        return None if self._settled is None else self._given(self._settled).workspace

    @property
    def attempts(self) -> int:
        """See `EffectHandle.attempts`."""
        return self._attempt

    def done(self) -> bool:
        """See `EffectHandle.done`."""
        return self._settled is not None

    def cancelled(self) -> bool:
        """See `EffectHandle.cancelled`."""
        return False

    def result(self) -> T_co:
        """See `EffectHandle.result`."""
        error = self.exception()
        if error is not None:
            raise error
        return self._value()

    def exception(self) -> EffectError | None:
        """See `EffectHandle.exception`."""
        if self._settled is None:
            raise asyncio.InvalidStateError(f"effect {self.key} is open: {self._state}")
        self._observe()
        # A fresh one each time: an exception collects the tracebacks of all who raise it.
        return None if self._state is EffectState.SUCCEEDED else self._error(self._settled)

    def outcome(self) -> Outcome[T_co]:
        """See `EffectHandle.outcome`."""
        error = self.exception()
        value: Any = self._value() if error is None else None
        return Outcome(self.key, error is None, value, error, self.effect_id)

    def cancel(self, reason: str = "", *, lost_to: str = "") -> None:
        """See `EffectHandle.cancel`."""
        self._asking.check_alive()
        name = "RACE_LOST" if lost_to else "CANCELLED_BY_PROCESS"
        message = bounded_text(reason, f"reason of the cancel of {self.key}") if reason else ""
        self.ask_cancel(name, message=message, winner_key=lost_to)

    def add_done_callback(self, fn: Callable[[Any], object], *, context: contextvars.Context | None = None) -> None:
        """See `EffectHandle.add_done_callback`."""
        context = context or contextvars.copy_context()
        if self._settled is not None:
            self._asking.loop.call_soon(fn, self, context=context)
        else:
            self._callbacks.append((fn, context))

    def remove_done_callback(self, fn: Callable[[Any], object]) -> int:
        """See `EffectHandle.remove_done_callback`."""
        kept = [entry for entry in self._callbacks if entry[0] != fn]
        removed = len(self._callbacks) - len(kept)
        if removed:
            self._callbacks = kept
        return removed

    def future(self) -> asyncio.Future[T_co]:
        """See `EffectHandle.future`."""
        future: asyncio.Future[T_co] = self._asking.loop.create_future()
        self.add_done_callback(lambda _handle: self._copy_to(future))
        return future

    async def updates(self, every: float = 0) -> AsyncIterator[Progress]:
        """See `EffectHandle.updates`."""
        last: dt.datetime | None = None
        seen: Mapping[str, Any] | None = None
        while self._settled is None:
            now = self._asking.now()
            if self._progress is not seen and (last is None or (now - last).total_seconds() >= every):
                last, seen = now, self._progress
                yield self.progress
                continue
            watcher = self._asking.loop.create_future()
            self._watchers.append(watcher)
            await watcher

    # --- what the context and the execution call ---------------------------------------------------------------------

    def ask_cancel(self, reason: str, *, message: str = "", winner_key: str = "") -> None:
        """Ask once for the effect's cancel. One that was not written yet is taken back instead."""
        if self._asking.dead:
            raise RunEvicted
        if self._settled is not None or self._state is EffectState.CANCELLING:
            return
        self._state = EffectState.CANCELLING
        self._cancelled_by = "process"
        self._asking.cancel_effect(self, reason, message, winner_key)

    def on_event(self, event: Event) -> None:
        """Take an event of this effect. Raises IllegalTransition when it cannot follow."""
        name = trigger(event.type, event.data)
        self._state = apply(EFFECT_TRANSITIONS, self._state, name, subject=f"effect {self.key}", seq=event.seq)
        self._attempt = event.attempt or self._attempt
        if event.type == "EFFECT_PROGRESS":
            self._progress = event.data.get("progress") or {}
            self._wake_watchers()
        elif event.type == "EFFECT_CANCEL_REQUESTED":
            self._cancelled_by = self._cancelled_by or event.actor
        elif self._state in EFFECT_TERMINAL:
            self._settle(event)

    def take_back(self, event: Event) -> None:
        """Settle an effect that was cancelled in the step that asked for it, and so was never written."""
        self._state = EffectState.CANCELLED
        self._settle(event)

    def _settle(self, event: Event) -> None:
        self._settled = event
        if self.background and self._state in (EffectState.FAILED, EffectState.TIMED_OUT):
            self._unobserved = True
            self._asking.unobserved_failures += 1
        callbacks, self._callbacks = self._callbacks, []
        for fn, context in callbacks:
            self._asking.loop.call_soon(fn, self, context=context)
        self._wake_watchers()

    def _wake_watchers(self) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)

    def _observe(self) -> None:
        if self._unobserved:
            self._unobserved = False
            self._asking.unobserved_failures -= 1

    def _copy_to(self, future: asyncio.Future[T_co]) -> None:
        if future.done():
            return
        error = self.exception()
        if error is None:
            future.set_result(self._value())
        else:
            future.set_exception(error)

    def _value(self) -> T_co:
        if self._decoded is None and self._settled is not None:
            result = self._settled.data.get("result") or {}
            settled = Settled(result, str(self._settled.data.get("resolved_by", "")), self.effect_id)
            self._decoded = (self._decode(settled),)
        value: T_co = self._decoded[0]
        return value

    def _given(self, event: Event) -> Settled:
        """What the effect gave, be it whole or partial."""
        return Settled(event.data.get("result") or event.data.get("partial") or {}, effect_id=self.effect_id)

    def _error(self, event: Event) -> EffectError:
        given = self._given(event)
        stored = event.data.get("error") or event.data
        details: dict[str, Any] = {
            "key": self.key,
            "effect_id": self.effect_id,
            "reason": str(stored.get("reason", "")).removeprefix("EFFECT_REASON_"),
            "attempts": self._attempt,
            "exit_code": given.result.get("exit_code"),
            "signal": given.result.get("signal"),
            "stderr_tail": (given.result.get("stderr") or {}).get("tail", ""),
            "partial": given.value,
            "usage": usage_from(given.result.get("usage")),
            "session": given.session,
            "workspace": given.workspace,
        }
        message = str(stored.get("message", ""))
        error: EffectError
        if self._state is EffectState.CANCELLED:
            error = EffectCancelled(message, by=self._cancelled_by, **details)
        else:
            error = (EffectTimedOut if self._state is EffectState.TIMED_OUT else EffectFailed)(message, **details)
        if self.asked_at:  # a coroutine that became a task of its own has no line that asked
            error.add_note(f"asked for at {self.asked_at}")
        return error


class _Waker:
    """Wakes one waiter. An object, so that it can be taken back: two awaits of one handle are two wakers."""

    __slots__ = ("_waiter",)

    def __init__(self, waiter: asyncio.Future[None]) -> None:
        self._waiter = waiter

    def __call__(self, _handle: Any) -> None:
        if not self._waiter.done():
            self._waiter.set_result(None)
