"""Interleavings that a review found: each of them lost work, repeated it, or filled a journal."""

import asyncio

import pytest

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from scheduler_service.journal import Append, JournalUnavailable
from tests.integration.engine.executor import ScriptedExecutor
from tests.integration.engine.world import World
from tests.support.eventually import eventually

REJECTED = pb.RejectedAttempt


@pytest.mark.invariant("I6", "I14")
async def test_an_iteration_whose_answer_was_lost_does_not_swallow_the_next(
    at: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit is there, its answer is not; meanwhile an effect settles, so the replay asks for something else."""
    executor = at.executor(reports=True)
    await executor.connect()
    # The claim of a new session holds all of its slots: while it goes on nothing is dispatched with its request.
    await eventually(lambda: all(session.ready and not session.queued for session in at.engine.sessions))
    await eventually(lambda: not any(p.claiming for s in at.engine.sessions for p in s.pools.values()))
    journal = at.engine.journal
    real, doubts = journal.append, 0

    async def lose_the_answer(append: Append) -> object:
        nonlocal doubts
        outcome = await real(append)
        if doubts == 0 and any(row["type"] == "EFFECT_REQUESTED" for row in append.rows):
            doubts += 1
            raise JournalUnavailable("the answer was lost")
        return outcome

    monkeypatch.setattr(journal, "append", lose_the_answer)
    run_id = await at.create("steps", count=3)
    for number in range(3):
        start = await executor.start_of(f"step/{number}", attempt=2 if number == 0 else 1)
        await executor.settle(start, value=number)
    await at.value(run_id)
    assert doubts == 1
    assert len(await at.rows(run_id, "EFFECT_REQUESTED")) == 3


@pytest.mark.invariant("I11")
async def test_an_executor_that_always_refuses_is_asked_less_and_less(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("one")
    loop = asyncio.get_running_loop()
    end, refused = loop.time() + 3.0, 0
    while loop.time() < end:
        if len(executor.starts) > refused:
            await executor.reject(executor.starts[refused], REJECTED.REASON_NO_SLOT)
            refused += 1
        await asyncio.sleep(0.005)
    assert 3 <= refused <= 20, f"asked {refused} times in 3 s"
    last = await executor.start_of("it", attempt=refused + 1)
    await executor.settle(last, value=1)
    assert await at.value(run_id) == 1


@pytest.mark.invariant("I13")
async def test_an_attempt_that_its_executor_has_forgotten_is_lost_and_not_sent_for_ever(at: World) -> None:
    """Open in the journal, absent from the reports, and refused as a duplicate: it has started, and its end is gone."""
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("one")
    start = await executor.start_of("it")

    async def answer() -> bool:
        await executor.beat()  # a whole report without it
        for again in executor.starts[1:]:
            await executor.reject(again, REJECTED.REASON_DUPLICATE)
        return bool(await at.rows(run_id, "EFFECT_ATTEMPT_LOST"))

    await eventually(answer, timeout=30, interval=0.3, message="it was never given up")
    lost = await at.row(run_id, "EFFECT_ATTEMPT_LOST", "it")
    assert "never_started" not in lost.data, "it may have run: it counts"
    settled = await at.row(run_id, "EFFECT_RESOLVED", "it")
    assert settled.data["error"]["reason"] == "EFFECT_REASON_EXECUTOR_LOST"
    assert settled.data["death"] == "DEATH_UNPROVEN"
    assert start.attempt == 1
    await at.result(run_id)


@pytest.mark.invariant("I3")
async def test_an_adopted_attempt_that_vanishes_counts_as_started(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("one")
    start = await executor.start_of("it")
    await executor.hang_up()
    await executor.connect([start])  # it runs, says the new session
    await eventually(lambda: _beaten(executor, at, run_id), timeout=30, interval=0.3)
    lost = await at.row(run_id, "EFFECT_ATTEMPT_LOST", "it")
    assert "never_started" not in lost.data
    assert len(await at.rows(run_id, "EFFECT_DISPATCHED")) == 1, "max_attempts=1 ran twice"
    await at.result(run_id)


async def _beaten(executor: ScriptedExecutor, at: World, run_id: str) -> bool:
    await executor.beat()
    return bool(await at.rows(run_id, "EFFECT_ATTEMPT_LOST"))
