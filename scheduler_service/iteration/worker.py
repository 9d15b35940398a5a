"""The iteration thread: process code runs here, never on the thread that serves streams and renews leases.

One thread at a time takes jobs. A job that keeps one step running too long is given up: its stack is captured, an
exception is raised in its thread, and a fresh thread takes over. What is given up is never resumed.
"""

import asyncio
import ctypes
import logging
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from scheduler_service.recent import Recent
from scheduler_service.replay.failures import StepBlocked
from scheduler_service.replay.guards import process_line

log = logging.getLogger(__name__)

#: Threads that may be stuck before the replica says that it is not healthy.
STUCK_THREADS_MAX = 3
_WATCH_SECONDS = 0.1


@dataclass(slots=True)
class Blocked:
    """Outcome of a job that was given up."""

    seconds: float
    stack: str
    #: The innermost line of process code, `file:line`.
    line: str = "?"


@dataclass(slots=True, eq=False)
class Job:
    """Work for the iteration thread. `done` gets the result, the exception, or Blocked, on the event loop."""

    work: Callable[[], Any]
    done: Callable[[Any], None]
    #: Told when the job is given up, from another thread: ends what the exception does not reach.
    block: Callable[[str], None]
    given_up: bool = False
    queued_at: float = field(default_factory=time.monotonic)
    #: How long it waited for the thread, in seconds.
    waited: float = 0.0


@dataclass(slots=True, eq=False)
class _Thread:
    thread: threading.Thread | None = None
    job: Job | None = None
    step_started: float = 0.0
    replaced: bool = False
    #: The step that the watchdog has seen last, by its start, and how long the thread had been starved until then.
    seen: float = 0.0
    starved_before: float = 0.0

    def starved(self, started: float) -> float:
        """Seconds of the step begun at `started` in which the thread could run and no processor was free for it."""
        starved = _starved_seconds(self.thread)
        if self.seen != started:
            self.seen, self.starved_before = started, starved
        return starved - self.starved_before


class IterationThreads:
    """Runs jobs one at a time on the iteration thread and watches over each step."""

    def __init__(self, step_seconds_max: float) -> None:
        self._step_seconds_max = step_seconds_max
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._current = _Thread()
        self._stuck: list[_Thread] = []
        self._results: deque[tuple[Job, Any]] = deque()
        self._posted = False
        self._watch: asyncio.Task[None] | None = None
        #: How long jobs waited for the thread.
        self.waits = Recent()

    def start(self) -> None:
        """Starts the thread and its watchdog; call it on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._spawn()
        self._watch = asyncio.create_task(self._watchdog(), name="iteration-watchdog")

    async def stop(self) -> None:
        """Ends the watchdog and the thread; a step that runs is waited for at most its own limit."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        self._jobs.put(None)
        thread = self._current.thread
        if thread is not None:
            await asyncio.to_thread(thread.join, self._step_seconds_max)

    def submit(
        self, work: Callable[[], Any], done: Callable[[Any], None], block: Callable[[str], None] = lambda _stack: None
    ) -> None:
        """Queues a job."""
        self._jobs.put(Job(work, done, block))

    def pulse(self) -> None:
        """Tells the watchdog that the job on this thread begins a new step."""
        self._current.step_started = time.monotonic()

    @property
    def healthy(self) -> bool:
        """False when so many threads are stuck that the replica should be replaced."""
        self._stuck = [t for t in self._stuck if t.thread is not None and t.thread.is_alive()]
        return len(self._stuck) <= STUCK_THREADS_MAX

    def _spawn(self) -> None:
        state = _Thread()
        state.thread = threading.Thread(target=self._run, args=(state,), name="iteration", daemon=True)
        self._current = state
        state.thread.start()

    def _run(self, state: _Thread) -> None:
        try:
            while not state.replaced:
                job = self._jobs.get()
                if job is None:
                    return
                self._run_job(state, job)
        except StepBlocked:
            return  # raised between two steps of a thread that has been replaced

    def _run_job(self, state: _Thread, job: Job) -> None:
        result: Any
        try:
            state.job, state.step_started = job, time.monotonic()
            job.waited = state.step_started - job.queued_at
            result = job.work()
        except StepBlocked:
            return  # the watchdog has answered for this job, and this thread has been replaced
        except BaseException as error:  # noqa: BLE001 - handed to the run's loop; an exit would end all other runs too
            result = error
        finally:
            state.job = None
        if not job.given_up:
            self._results.append((job, result))
            self._post()

    def _post(self) -> None:
        if not self._posted and self._loop is not None:
            self._posted = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._posted = False
        while self._results:
            job, result = self._results.popleft()
            if not job.given_up:
                self.waits.note(job.waited)
                job.done(result)

    async def _watchdog(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(_WATCH_SECONDS)
            late = time.monotonic() - before - _WATCH_SECONDS
            self._check(credit=max(0.0, late))

    def _check(self, credit: float) -> None:
        """Gives up a step over its limit. When the machine stalled, or was busy with others, the step did not: a late
        tick credits its lateness, and what the thread waited for a processor does not count.
        """
        state = self._current
        job, started = state.job, state.step_started
        if job is None:
            return
        took = time.monotonic() - started - max(credit, state.starved(started))
        if took <= self._step_seconds_max:
            return
        frame = sys._current_frames().get(state.thread.ident or 0) if state.thread is not None else None
        stack, line = _stack_of(frame), process_line(frame) if frame is not None else "?"
        if state.job is not job or state.step_started != started:
            return  # the step ended while we looked
        self._give_up(state, job, Blocked(took, stack, line))

    def _give_up(self, state: _Thread, job: Job, blocked: Blocked) -> None:
        job.given_up = True
        state.replaced = True
        self._stuck.append(state)
        log.error("a step of process code blocked for %.1f s; it is given up\n%s", blocked.seconds, blocked.stack)
        job.block(blocked.stack)
        if state.thread is not None and state.thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(state.thread.ident), ctypes.py_object(StepBlocked)
            )
        self._spawn()
        job.done(blocked)


def _starved_seconds(thread: threading.Thread | None) -> float:
    """How long a thread of ours has waited for a processor so far; 0 where the system does not say."""
    if thread is None or thread.native_id is None:
        return 0.0
    try:
        said = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text()
    except OSError:
        return 0.0
    return int(said.split()[1]) / 1e9


def _stack_of(frame: FrameType | None) -> str:
    return "".join(traceback.format_stack(frame)[-20:]) if frame is not None else "(no stack)"


def log_failure(result: Any) -> None:
    """Logs what went wrong when an evicted coroutine was closed."""
    if isinstance(result, Blocked):
        log.error("closing an evicted coroutine blocked:\n%s", result.stack)
    elif isinstance(result, BaseException):
        log.error("closing an evicted coroutine failed", exc_info=result)
