"""The concrete Context: what process code calls, turned into drafts of commands and waits for events."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar, Unpack

from scheduler_service.authoring.bounds import (
    LOG_FIELDS,
    NEXT_INPUT,
    REPORT,
    bounded,
    bounded_object,
    bounded_text,
    within,
)
from scheduler_service.authoring.context import Context, EffectHandle, Log
from scheduler_service.authoring.effects import Effect
from scheduler_service.authoring.errors import OptionError
from scheduler_service.authoring.options import EffectOptions, check_key, key_name, spec_fields
from scheduler_service.authoring.seeded import Random, seeded
from scheduler_service.authoring.values import encode
from scheduler_service.replay.handles import Handle
from scheduler_service.replay.outbox import Asking

T = TypeVar("T")

LOG_BYTES_MAX: Final = 8 * 1024
_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
_SCOPE: Final[ContextVar[str]] = ContextVar("backburner_scope", default="")


class ContinueAsNew(BaseException):
    """Unwinds a process that goes on as a new run. Not an Exception: `except Exception` must not keep it."""

    def __init__(self, input_object: dict[str, Any]) -> None:
        super().__init__()
        self.input_object = input_object


@dataclass(frozen=True, slots=True)
class Signal:
    """A message from outside, as it came."""

    seq: int
    name: str
    value: Any


class RunLog(Log):
    """Log lines as PROCESS_LOG rows."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    def log(self, level: str, message: str, /, *args: object, **fields: object) -> None:
        """See `Log.log`."""
        self._asking.check_alive()
        if level not in _LEVELS:
            raise OptionError(f"level={level!r}: expected one of {', '.join(_LEVELS)}")
        text = str(message) % args if args else str(message)
        data: dict[str, Any] = {"level": level, "message": _cut(text.replace("\x00", "\ufffd"))}
        if fields:
            data["fields"] = bounded(fields, "fields of ctx.log", LOG_FIELDS)
        self._asking.add("PROCESS_LOG", data)


def _cut(text: str) -> str:
    return text.encode(errors="replace")[:LOG_BYTES_MAX].decode(errors="ignore")


class RunContext(Context):
    """The context of one execution. `on_*` and the public attributes are for the execution only."""

    def __init__(
        self,
        asking: Asking,
        *,
        input_of: Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]],
        mark_patch: Callable[[str], bool],
    ) -> None:
        self.run_id = asking.run_id
        self.cancelled_seq: int | None = None
        self._asking = asking
        self._log = RunLog(asking)
        self._input_of = input_of
        self._mark_patch = mark_patch
        self._cancel_reason: str | None = None
        # Bounded by the history's hard cap: every signal is a journal row.
        self._signals: dict[str, deque[Signal]] = {}
        self._signal_waiters: dict[str, deque[asyncio.Future[Signal]]] = {}
        self._halts: list[asyncio.Future[None]] = []
        self._continuing: list[Any] = []  # tasks that were to end the run by continue_as_new

    # --- effects -----------------------------------------------------------------------------------------------------

    async def run(self, effect: Effect[T], *, key: str | None = None, **options: Unpack[EffectOptions]) -> T:
        """See `Context.run`."""
        handle = self._request(effect, key, options, background=False)
        try:
            return await handle
        except asyncio.CancelledError:
            if not handle.done():
                handle.ask_cancel(self._cancel_cause(handle))
                await _settled(handle)  # proof of death; a second cancel ends this wait
            raise

    def start(
        self, effect: Effect[T], *, background: bool = True, key: str | None = None, **options: Unpack[EffectOptions]
    ) -> EffectHandle[T]:
        """See `Context.start`."""
        return self._request(effect, key, options, background=background)

    def _request(self, effect: Effect[T], key: str | None, options: EffectOptions, *, background: bool) -> Handle[T]:
        self._asking.check_alive()
        if not isinstance(effect, Effect):
            raise TypeError(f"{effect!r} is no effect; build one with bb.shell, bb.agent, a @bb.function, ...")
        fields = spec_fields(options)
        full_key = self._key(effect.name) if key is None else _SCOPE.get() + check_key(key)
        return self._asking.request(effect, full_key, fields, background=background)

    def _key(self, name: str) -> str:
        base = _SCOPE.get() + key_name(name)
        return f"{base}#{self._asking.occurrence(base)}"

    def _cancel_cause(self, handle: Handle[Any]) -> str:
        # What was asked for before the run's cancel dies of it; cleanup after it is cancelled for its own reasons.
        by_run = self.cancelled_seq is not None and handle.requested_seq < self.cancelled_seq
        return "RUN_CANCELLED" if by_run else "AWAIT_CANCELLED"

    # --- what a run can know -----------------------------------------------------------------------------------------

    def now(self) -> dt.datetime:
        """See `Context.now`."""
        self._asking.check_alive()
        return self._asking.now()

    @property
    def random(self) -> Random:
        """See `Context.random`."""
        seed = hashlib.sha256(f"{self.run_id}/{self._derived('random')}".encode()).digest()
        return seeded(seed)

    def uuid4(self) -> uuid.UUID:
        """See `Context.uuid4`."""
        # By digest, not uuid.uuid4: the version bits are set so that it reads as one.
        raw = hashlib.sha256(f"{self.run_id}/{self._derived('uuid')}".encode()).digest()
        return uuid.UUID(bytes=raw[:16], version=4)

    def _derived(self, kind: str) -> str:
        self._asking.check_alive()
        name = f"{kind}:{_SCOPE.get()}"  # `:` first: no effect's key counts on this name
        return f"{name}#{self._asking.occurrence(name)}"

    @property
    def history_length(self) -> int:
        """See `Context.history_length`."""
        return self._asking.seq

    @property
    def cancel_reason(self) -> str | None:
        """See `Context.cancel_reason`."""
        return self._cancel_reason

    # --- what a run can say ------------------------------------------------------------------------------------------

    @property
    def log(self) -> Log:
        """See `Context.log`."""
        return self._log

    def report(self, percent: float | None = None, label: str = "", data: dict[str, Any] | None = None) -> None:
        """See `Context.report`."""
        self._asking.check_alive()
        if percent is not None and (isinstance(percent, bool) or not 0 <= percent <= 100):
            raise OptionError(f"percent={percent!r}: expected 0 to 100")
        row: dict[str, Any] = {} if percent is None else {"percent": encode(percent, "percent of ctx.report")}
        if label:
            row["label"] = bounded_text(label, "label of ctx.report")
        if data:
            row["data"] = bounded_object(data, "data of ctx.report", REPORT)
        self._asking.add("RUN_REPORTED", row)

    @contextmanager
    def scope(self, prefix: str) -> Iterator[None]:
        """See `Context.scope`."""
        token = _SCOPE.set(f"{_SCOPE.get()}{check_key(prefix)}/")
        try:
            yield
        finally:
            _SCOPE.reset(token)

    def patched(self, patch_id: str) -> bool:
        """See `Context.patched`."""
        self._asking.check_alive()
        return self._mark_patch(check_key(patch_id))

    # --- what a run can wait for -------------------------------------------------------------------------------------

    async def signal(self, name: str) -> Any:
        """See `Context.signal`."""
        self._asking.check_alive()
        waiting = self._signals.get(check_key(name))
        if waiting:
            return waiting.popleft().value
        waiter = self._asking.loop.create_future()
        self._signal_waiters.setdefault(name, deque()).append(waiter)
        try:
            return (await waiter).value
        except asyncio.CancelledError:
            self._give_back(name, waiter)
            raise

    def _give_back(self, name: str, waiter: asyncio.Future[Signal]) -> None:
        # Cancelled in the very step in which the signal came: it is the next one's.
        if waiter.done() and not waiter.cancelled():
            self._signals.setdefault(name, deque()).appendleft(waiter.result())
            self._hand_out(name)

    async def signals(self, name: str) -> AsyncIterator[Any]:
        """See `Context.signals`."""
        while True:
            yield await self.signal(name)

    async def halt(self, reason: str = "") -> None:
        """See `Context.halt`."""
        self._asking.check_alive()
        self._asking.add("RUN_HALTED", {"reason": bounded_text(reason, "reason of ctx.halt")} if reason else {})
        waiter = self._asking.loop.create_future()
        self._halts.append(waiter)
        await waiter

    async def continue_as_new(self, *args: Any, **kwargs: Any) -> NoReturn:
        """See `Context.continue_as_new`."""
        self._asking.check_alive()
        if self._cancel_reason is not None:  # the new run would begin with the cancel, and its cleanup go on as another
            raise asyncio.CancelledError("a run whose cancel was asked for does not go on as a new one")
        if self._asking.open_foreground:
            raise OptionError("continue_as_new: foreground effects are open; await or cancel them first")
        self._continuing.append(asyncio.current_task())
        raise ContinueAsNew(within(self._input_of(args, kwargs), "input of ctx.continue_as_new", NEXT_INPUT))

    # --- what the execution calls ------------------------------------------------------------------------------------

    def on_cancel(self, seq: int, reason: str) -> None:
        """The run's cancel was asked for."""
        self.cancelled_seq = seq
        self._cancel_reason = reason

    def on_signal(self, signal: Signal) -> None:
        """A signal came."""
        self._signals.setdefault(signal.name, deque()).append(signal)
        self._hand_out(signal.name)

    def continues_unheard(self) -> str:
        """Name of a task that was to end the run by continue_as_new, and that nobody has awaited; empty for none."""
        return next((task.get_name() for task in self._continuing if task._log_traceback), "")

    def untaken_signals(self) -> list[int]:
        """Seqs of the signals that nobody has taken, in the order in which they came."""
        return sorted(signal.seq for waiting in self._signals.values() for signal in waiting)

    def _hand_out(self, name: str) -> None:
        values, waiters = self._signals[name], self._signal_waiters.get(name, deque())
        while values and waiters:
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(values.popleft())

    def on_resumed(self) -> None:
        """The run goes on after a halt."""
        halts, self._halts = self._halts, []
        for waiter in halts:
            if not waiter.done():
                waiter.set_result(None)


async def _settled(handle: Handle[Any]) -> None:
    waiter = asyncio.get_running_loop().create_future()
    handle.add_done_callback(lambda _handle: None if waiter.done() else waiter.set_result(None))
    await waiter
