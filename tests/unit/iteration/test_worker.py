"""The iteration thread: one job at a time, and a step that does not end does not end the others."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from scheduler_service.iteration import worker
from scheduler_service.iteration.events import error_of
from scheduler_service.iteration.worker import STUCK_THREADS_MAX, Blocked, IterationThreads
from tests.support.eventually import eventually

LIMIT = 0.2


@pytest.fixture
async def threads() -> AsyncIterator[IterationThreads]:
    made = IterationThreads(LIMIT)
    made.start()
    yield made
    await made.stop()


async def result_of(threads: IterationThreads, work: Any, timeout_s: float = 30.0) -> Any:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    threads.submit(work, answer.set_result)
    return await asyncio.wait_for(answer, timeout_s)


def spin(until: threading.Event) -> None:
    while not until.is_set():
        try:
            while not until.is_set():
                pass
        except BaseException:  # noqa: BLE001 - the worst that an author can write
            pass


async def test_jobs_run_in_order_on_one_thread(threads: IterationThreads) -> None:
    seen: list[tuple[int, int]] = []
    for i in range(100):
        threads.submit(lambda i=i: (i, threading.get_ident()), seen.append)  # type: ignore[misc]
    await result_of(threads, int)
    assert [i for i, _ in seen] == list(range(100))
    assert len({ident for _, ident in seen}) == 1
    assert seen[0][1] != threading.get_ident()


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
async def test_whatever_a_job_raises_is_its_result(threads: IterationThreads, error: BaseException) -> None:
    def work() -> None:
        raise error

    assert await result_of(threads, work) is error
    assert await result_of(threads, lambda: "next") == "next"


@pytest.mark.invariant("I11")
async def test_a_blocked_step_is_given_up_and_the_next_job_runs_on_a_fresh_thread(threads: IterationThreads) -> None:
    before = await result_of(threads, threading.get_ident)
    told: list[str] = []
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    threads.submit(spin_until_raised, answer.set_result, told.append)
    after = asyncio.create_task(result_of(threads, threading.get_ident))
    blocked = await asyncio.wait_for(answer, 30)
    assert isinstance(blocked, Blocked)
    assert LIMIT <= blocked.seconds < 30
    assert "spin_until_raised" in blocked.stack
    assert told == [blocked.stack]
    line = spin_until_raised.__code__.co_firstlineno
    assert blocked.line in (f"{__file__}:{line + 1}", f"{__file__}:{line + 2}")
    assert error_of(blocked) == {
        "kind": "BLOCKED",
        "message": f"{blocked.line}: a step of process code ran for {blocked.seconds:.1f} s without waiting, and holds "
        "up all runs of its scheduler; move long computation and blocking calls into a @bb.function",
        "traceback": blocked.stack,
    }
    assert await after != before
    assert threads.healthy


def spin_until_raised() -> None:
    while True:
        pass


@pytest.mark.invariant("I11")
async def test_threads_that_hide_every_exception_make_the_replica_unhealthy(threads: IterationThreads) -> None:
    release = threading.Event()
    try:
        for stuck in range(STUCK_THREADS_MAX + 1):
            assert threads.healthy, f"not healthy with {stuck} stuck threads"
            assert isinstance(await result_of(threads, lambda: spin(release)), Blocked)
            assert await result_of(threads, lambda: "works") == "works"
        assert not threads.healthy
    finally:
        release.set()
    await eventually(lambda: threads.healthy, message="threads that have ended still count")


async def test_a_long_job_of_short_steps_is_not_given_up(threads: IterationThreads) -> None:
    pause = threading.Event()

    def work() -> str:
        for _ in range(12):
            pause.wait(LIMIT / 4)
            threads.pulse()
        return "done"

    assert await result_of(threads, work) == "done"


async def test_a_step_that_waits_for_a_processor_is_not_given_up(
    threads: IterationThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen under load: a thousand effects asked for in one step, and the run of them was parked as blocked."""
    free = threading.Event()
    monkeypatch.setattr(worker, "_starved_seconds", lambda thread: time.monotonic())  # nothing but that
    answer = asyncio.create_task(result_of(threads, lambda: free.wait(60)))
    began = time.monotonic()
    await eventually(lambda: time.monotonic() - began > 5 * LIMIT)
    free.set()
    assert await answer is True


async def test_the_time_that_a_thread_waited_for_a_processor_is_there_to_be_read() -> None:
    waited = worker._starved_seconds(threading.current_thread())
    assert 0 <= waited < 3600
    assert worker._starved_seconds(None) == 0.0
    assert worker._starved_seconds(threading.Thread()) == 0.0


async def test_the_late_result_of_a_given_up_job_is_dropped(threads: IterationThreads) -> None:
    release, ended = threading.Event(), threading.Event()
    results: list[Any] = []

    def work() -> str:
        spin(release)
        ended.set()
        return "late"

    threads.submit(work, results.append)
    await result_of(threads, lambda: "next")
    release.set()
    await asyncio.to_thread(ended.wait, 5)
    await result_of(threads, lambda: "again")
    assert [type(result) for result in results] == [Blocked]
