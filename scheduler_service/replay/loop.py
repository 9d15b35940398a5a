"""The deterministic asyncio event loop that process code runs on.

Virtual time, no I/O, no threads: it only runs what is ready, in the order in which it became ready. The execution
feeds it one journal event at a time and lets it run to quiescence. Nothing that a process can observe here depends on
memory addresses, garbage collection or the machine's clock.
"""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
import logging
import math
import sys
from asyncio import events as asyncio_events
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from types import AsyncGeneratorType
from typing import Any, Final, TypeVarTuple, Unpack

from scheduler_service.authoring.errors import DeterminismError, RunEvicted
from scheduler_service.replay.asyncio_order import order_asyncio
from scheduler_service.replay.asyncio_versions import align_asyncio
from scheduler_service.replay.failures import StepBlocked
from scheduler_service.replay.forbidden import ForbiddenCalls
from scheduler_service.replay.guards import Guard, process_line, waiting_line
from scheduler_service.replay.tasks import LoopFuture, LoopTask, LoopTimer

logger = logging.getLogger(__name__)

Ts = TypeVarTuple("Ts")

OPEN_GENERATORS_WARNING: Final = 1_000
#: How often a coroutine is told to end that waits again instead. Each TaskGroup on its way waits once.
CLOSES_MAX: Final = 50
_SHARED: Final = "one of the run's own, made in the process, and ctx.signals between runs"
_MILLISECOND_US: Final = 1_000
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND: Final = dt.timedelta(microseconds=1)
# A timer later than this cannot be written as a timestamp; it waits for ever, as `inf` does.
_LAST_US: Final = (dt.datetime(9999, 1, 1, tzinfo=dt.UTC) - _EPOCH) // _MICROSECOND


class DeterministicLoop(ForbiddenCalls):
    """An event loop without a selector. The execution owns it and calls `advance`, `run_ready` and `kill`."""

    def __init__(self, guard: Guard) -> None:
        self.on_timer_set: Callable[[LoopTimer], None] = lambda _timer: None
        self._guard = guard
        self._ready: deque[asyncio.Handle] = deque()
        self._ordinal = 0
        self._start_us = 0
        self._now_us = 0
        self._dead = False
        self._stop = False
        self._generators: dict[asyncio.Task[Any] | None, list[AsyncGeneratorType[Any, Any]]] = {}
        self._warned_generators = False
        self.tasks: dict[LoopTask, None] = {}  # tasks that are not done, in creation order
        self.timers: dict[int, LoopTimer] = {}  # written and pending, by ordinal
        self.callback_error: BaseException | None = None

    # --- what the execution calls ------------------------------------------------------------------------------------

    def next_ordinal(self) -> int:
        """The next number in creation order: tasks, futures and handles share one count."""
        self._ordinal += 1
        return self._ordinal

    def begin(self, at: dt.datetime) -> None:
        """Set the start of the run's time."""
        self._start_us = self._now_us = (at - _EPOCH) // _MICROSECOND

    def advance(self, at: dt.datetime) -> None:
        """Set the time to that of the event that is fed. Never goes back."""
        self._now_us = max(self._now_us, (at - _EPOCH) // _MICROSECOND)

    @property
    def has_ready(self) -> bool:
        """True when there is something to run."""
        return bool(self._ready)

    def run_ready(self, *, watch_calls: bool) -> None:
        """Run everything that is ready, and what that makes ready, until nothing is."""
        previous = asyncio_events._get_running_loop()
        hooks = sys.get_asyncgen_hooks()
        asyncio_events._set_running_loop(self)
        sys.set_asyncgen_hooks(firstiter=self._generator_started, finalizer=_generator_collected)
        ready = self._ready
        self._guard.enter(watch_calls=watch_calls)
        try:
            while ready and not self._stop:
                handle = ready.popleft()
                if not handle._cancelled:
                    handle._run()
        finally:
            self._guard.leave()
            sys.set_asyncgen_hooks(*hooks)
            asyncio_events._set_running_loop(previous)

    def waiting_lines(self) -> list[str]:
        """Where process code waits: the innermost line of each task, in creation order, each once."""
        lines = (waiting_line(task.get_coro()) for task in self.tasks)
        return list(dict.fromkeys(line for line in lines if line))

    def stop_soon(self) -> None:
        """Stop before the next callback. May be called by another thread: a watchdog."""
        self._stop = True

    def fire(self, ordinal: int) -> None:
        """A timer came due. One that was cancelled meanwhile is not known any more and does nothing."""
        timer = self.timers.pop(ordinal, None)
        if timer is not None:
            self._ready.append(timer)

    def kill(self) -> None:
        """Drop everything, as garbage collection would at its own time: no callback runs, nothing is emitted.

        Coroutines end by RunEvicted, newest first, so that `finally` blocks run; not cancelled, so that cleanup which
        asks for effects does not.
        """
        if self._dead:
            return
        self._dead = True
        self._ready.clear()
        self.timers.clear()
        previous = asyncio_events._get_running_loop()
        asyncio_events._set_running_loop(self)
        try:
            self._close_tasks()
            self._close_generators()
        finally:
            asyncio_events._set_running_loop(previous)
        self._ready.clear()

    def _close_tasks(self) -> None:
        for task in reversed(list(self.tasks)):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            _close(task.get_name(), task.get_coro())
        self.tasks.clear()

    def _close_generators(self) -> None:
        for generators in self._generators.values():
            for generator in reversed(generators):
                _close(generator.__qualname__, _Aclose(generator))
        self._generators.clear()

    # --- asyncio's interface -----------------------------------------------------------------------------------------

    def time(self) -> float:
        """Seconds since RUN_CREATED of the event that is being fed."""
        return (self._now_us - self._start_us) / 1e6

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Run the callback in this step."""
        handle = asyncio.Handle(callback, args, self, context)
        if not self._dead:
            running = asyncio_events._get_running_loop()
            if running is not self and isinstance(running, DeterministicLoop):
                raise DeterminismError(
                    "an asyncio object (Event, Queue, Future) that another run waits for", _SHARED, process_line()
                )
            self._ready.append(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run the callback after `delay` seconds: a durable timer."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run the callback at `when`, in `time()` seconds; a time that is not in the future is in this step."""
        self._check_alive()
        if math.isnan(when):
            raise ValueError("a timer cannot be set to NaN")
        timer = LoopTimer(when, callback, args, self, context)
        if when <= self.time():
            self._ready.append(timer)
            return timer
        timer.due_us = self._due_us(when)
        if timer.due_us is not None:
            self.on_timer_set(timer)
        return timer

    def _due_us(self, when: float) -> int | None:
        # Rounded up to whole milliseconds, and never now: a timer must be seen to come later than what set it.
        if when > (_LAST_US - self._start_us) / 1e6:
            return None
        exact = self._start_us + round(when * 1e6)
        earliest = self._now_us // _MILLISECOND_US + 1
        return max(-(-exact // _MILLISECOND_US), earliest) * _MILLISECOND_US

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if isinstance(handle, LoopTimer):
            self.timers.pop(handle.ordinal, None)

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return LoopFuture(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, Any] | Any,
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        eager_start: bool | None = None,
    ) -> asyncio.Task[Any]:
        """Start a task in this step. Eager starts are refused: they would run out of turn."""
        if self._dead:
            coro.close()
            raise RunEvicted
        if eager_start:
            coro.close()
            raise DeterminismError("create_task(eager_start=True)", "create_task without it", process_line())
        if _within_as_completed(sys._getframe(1)):
            coro.close()
            raise DeterminismError(
                "asyncio.as_completed() of coroutines (it starts them in memory order)",
                "tasks or futures there, or bb.as_completed",
                process_line(),
            )
        task = LoopTask(coro, loop=self, name=name, context=context)
        self.tasks[task] = None
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)  # type: ignore[call-overload]
        # Generators that it began and left open: closed now and in order, not when garbage collection finds them.
        for generator in self._generators.pop(task, ()):
            if not _finished(generator):
                self.create_task(generator.aclose(), name=f"close-{generator.__name__}")

    def _generator_started(self, generator: Any) -> None:
        task = asyncio.current_task(self)
        held = self._generators.setdefault(task, [])
        held.append(generator)
        if len(held) > OPEN_GENERATORS_WARNING:
            held[:] = [one for one in held if not _finished(one)]
            if len(held) > OPEN_GENERATORS_WARNING and not self._warned_generators:
                self._warned_generators = True
                logger.warning("a process holds over %d open async generators", OPEN_GENERATORS_WARNING)

    def call_exception_handler(self, context: Mapping[str, Any]) -> None:
        """A callback raised, or asyncio reports what nobody looked at."""
        error = context.get("exception")
        if self._dead:
            return
        if "handle" in context and isinstance(error, BaseException):
            self.callback_error = self.callback_error or error  # process code raised, only not in a task
        else:
            # At garbage collection, so at no time of ours: said to people, as asyncio does, never to the journal.
            logger.warning("process code: %s", context.get("message"), exc_info=error)

    def get_debug(self) -> bool:
        """Always False: debug mode reads clocks and stacks."""
        return False

    def is_running(self) -> bool:
        """True within a step."""
        return asyncio_events._get_running_loop() is self

    def is_closed(self) -> bool:
        """True once the run was dropped from memory."""
        return self._dead

    def _check_alive(self) -> None:
        if self._dead:
            raise RunEvicted


class _Aclose:
    """`aclose()` of an async generator, driven by `throw` as a suspended coroutine is: the first one begins it."""

    def __init__(self, generator: AsyncGeneratorType[Any, Any]) -> None:
        self._coroutine = generator.aclose()
        self._begun = False

    def throw(self, error: BaseException) -> None:
        if self._begun:
            self._coroutine.throw(error)
        else:
            self._begun = True
            self._coroutine.send(None)

    def close(self) -> None:
        self._coroutine.close()


def _generator_collected(generator: Any) -> None:
    # Live runs hold their generators, so this one is of a run that was dropped while `aclose()` was under way.
    _close(generator.__qualname__, _Aclose(generator))


def _close(name: str, coroutine: Any) -> None:
    """Ends a suspended coroutine by RunEvicted. Not by `close()` at first: a TaskGroup waits once more for its
    children, and a coroutine that does so within another one's close is torn from whoever awaits it."""
    try:
        for _ in range(CLOSES_MAX):
            coroutine.throw(RunEvicted())
        coroutine.close()
    except StepBlocked:
        raise  # the watchdog has given this thread up
    except BaseException as error:  # noqa: BLE001 - an author's cleanup raises: others are still to be closed
        if isinstance(error, RuntimeError) and str(error).endswith("ignored GeneratorExit"):
            logger.warning("process code of %s goes on after RunEvicted; it is dropped where it waits", name)
        elif not _is_unwinding(error):
            logger.debug("dropping %s: %r", name, error)
    else:
        logger.warning("process code of %s has waited %d times after RunEvicted; it is closed", name, CLOSES_MAX)


def _is_unwinding(error: BaseException) -> bool:
    """True for the end that was asked for, also as a TaskGroup hands it on, and for a coroutine that returned."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_unwinding(inner) for inner in error.exceptions)
    return isinstance(error, (RunEvicted, StopIteration))


def _finished(generator: AsyncGeneratorType[Any, Any]) -> bool:
    return generator.ag_frame is None


_ENSURE_FUTURE: Final = ("ensure_future", "_ensure_future")


def _within_as_completed(frame: Any) -> bool:
    if frame.f_code.co_name not in _ENSURE_FUTURE:
        return False
    while frame is not None and frame.f_code.co_name in (*_ENSURE_FUTURE, "<setcomp>", "__init__"):
        frame = frame.f_back
    return (
        frame is not None and frame.f_code.co_name == "as_completed" and frame.f_globals["__name__"] == "asyncio.tasks"
    )


order_asyncio(DeterministicLoop)
align_asyncio(DeterministicLoop)
