"""Every reason for which the system itself ends an effect or an attempt: what makes it, to its row in the journal.

Reasons of the work itself (an exit code, an exception, a refusal) are those of the executor's tests; here is what ends
work that would have gone on.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import dispatch_service_pb2 as dispatch_pb
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.integration.engine import ending_processes
from tests.integration.engine.real_executor import living, real_executor, said_pids
from tests.integration.engine.test_cancels import SECONDS, answer, cancel
from tests.integration.engine.world import World, world
from tests.support.journals import JournalRow

pytestmark = pytest.mark.timeout(240)

#: Reasons 10 to 39 of the enum: bounds in time, executors, cancels. Those below and above are the work's own.
_OURS: Final = range(10, 40)

Scenario = Callable[[World, Path], Awaitable[JournalRow]]
SCENARIOS: dict[str, Scenario] = {}


def makes(reason: str) -> Callable[[Scenario], Scenario]:
    """Registers what makes a reason; it answers with the row that has it."""

    def register(scenario: Scenario) -> Scenario:
        SCENARIOS[reason] = scenario
        return scenario

    return register


@pytest.fixture
async def at(database_url: str) -> AsyncIterator[World]:
    async with world(database_url, ending_processes.ALL, grace_seconds=1.0) as made:
        yield made


async def bounded(at: World, folder: Path, **options: Any) -> JournalRow:
    """The end of a child with these options, which is dead by then."""
    async with real_executor(at, folder):
        run_id = await at.create("bounded-ends", options=options, folder=str(folder))
        pids = await said_pids(folder)
        row = await at.row(run_id, "EFFECT_RESOLVED", "it", SECONDS)
        assert not living(pids)
        assert (row.data["state"], row.data["death"]) == ("EFFECT_STATE_TIMED_OUT", "DEATH_PROVEN")
        assert (await at.value(run_id, SECONDS))[0] == "timed out"
    return row


async def given_up(at: World, folder: Path, how: str, sees: list[Any]) -> JournalRow:
    """The end of a child that its own process ends in this way."""
    async with real_executor(at, folder):
        run_id = await at.create("gives-up", folder=str(folder), how=how)
        pids = await said_pids(folder)
        if how != "await":
            await answer(at, run_id, "go")
        assert await at.value(run_id, SECONDS) == sees
        row = await at.row(run_id, "EFFECT_CANCELLED", "it", SECONDS)
        assert not living(pids)
    assert row.data["death"] == "DEATH_PROVEN"
    return row


@makes("TIMEOUT_SCHEDULE_TO_START")
async def _nobody_takes_it(at: World, _: Path) -> JournalRow:
    run_id = await at.create("bounded-ends", options={"queue_timeout": 0.3})
    assert await at.value(run_id, SECONDS) == ["timed out", "TIMEOUT_SCHEDULE_TO_START", 0]
    return await at.row(run_id, "EFFECT_RESOLVED", "it")


@makes("TIMEOUT_START_TO_CLOSE")
async def _too_long(at: World, folder: Path) -> JournalRow:
    return await bounded(at, folder, timeout=2, silence_timeout=100, total_timeout=100)


@makes("TIMEOUT_SILENCE")
async def _too_quiet(at: World, folder: Path) -> JournalRow:
    return await bounded(at, folder, timeout=100, silence_timeout=2, total_timeout=100)


@makes("TIMEOUT_TOTAL")
async def _too_late(at: World, folder: Path) -> JournalRow:
    return await bounded(at, folder, timeout=100, silence_timeout=100, total_timeout=2)


@makes("EXECUTOR_LOST")
async def _gone(at: World, _: Path) -> JournalRow:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("one-effect-ends", kind="function")
    await executor.start_of("it", timeout_s=SECONDS)
    await executor.hang_up()
    assert await at.value(run_id, SECONDS) == ["failed", "EXECUTOR_LOST", 1]
    return await at.row(run_id, "EFFECT_RESOLVED", "it")


@makes("REJECTED")
async def _refused(at: World, _: Path) -> JournalRow:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("one-effect-ends", kind="function")
    start = await executor.start_of("it", timeout_s=SECONDS)
    await executor.reject(start, dispatch_pb.RejectedAttempt.REASON_NO_SLOT)
    lost = await at.row(run_id, "EFFECT_ATTEMPT_LOST", "it", SECONDS)
    await executor.settle(await executor.start_of("it", attempt=2, timeout_s=SECONDS))
    assert await at.value(run_id, SECONDS) == ["succeeded"], "a refusal costs no attempt"
    return lost


@makes("DRAINED")
async def _handed_back(at: World, folder: Path) -> JournalRow:
    async with real_executor(at, folder):
        run_id = await at.create("one-effect-ends", kind="shell", folder=str(folder))
        pids = await said_pids(folder)
    assert not living(pids)
    assert await at.value(run_id, SECONDS) == ["failed", "DRAINED", 1]
    return await at.row(run_id, "EFFECT_RESOLVED", "it", SECONDS)


@makes("CANCELLED_BY_USER")
async def _by_a_user(at: World, folder: Path) -> JournalRow:
    async with real_executor(at, folder):
        run_id = await at.create("one-effect-ends", kind="shell", folder=str(folder))
        pids = await said_pids(folder)
        await cancel(at, run_id, why="enough")
        assert await at.value(run_id, SECONDS) == ["cancelled", "CANCELLED_BY_USER", "enough", 1]
        assert not living(pids)
    return await at.row(run_id, "EFFECT_CANCELLED", "it")


@makes("CANCELLED_BY_PROCESS")
async def _by_its_process(at: World, folder: Path) -> JournalRow:
    return await given_up(at, folder, "cancel", ["cancelled", "CANCELLED_BY_PROCESS", "not needed", 1])


@makes("RACE_LOST")
async def _by_a_race(at: World, folder: Path) -> JournalRow:
    row = await given_up(at, folder, "race", ["cancelled", "RACE_LOST", "cancelled", 1])
    assert row.data["reason"] == "EFFECT_REASON_RACE_LOST"
    return row


@makes("RUN_ENDED")
async def _by_the_end_of_its_run(at: World, folder: Path) -> JournalRow:
    return await given_up(at, folder, "return", ["returned"])


@makes("AWAIT_CANCELLED")
async def _by_its_wait(at: World, folder: Path) -> JournalRow:
    return await given_up(at, folder, "await", ["gave up"])


@makes("RUN_CANCELLED")
async def _by_the_cancel_of_its_run(at: World, folder: Path) -> JournalRow:
    async with real_executor(at, folder):
        run_id = await at.create("leaf", folder=str(folder))
        pids = await said_pids(folder)
        await at.client.CancelRun(pb.CancelRunRequest(run_id=run_id, reason="enough"), timeout=SECONDS)
        await at.row(run_id, "RUN_CANCELLED", timeout_s=SECONDS)
        assert not living(pids)
    return await at.row(run_id, "EFFECT_CANCELLED", "leaf")


@makes("BUDGET")
async def _too_dear(at: World, folder: Path) -> JournalRow:
    async with real_executor(at, folder):
        run_id = await at.create("bounded-ends", options={}, wall=2, folder=str(folder))
        pids = await said_pids(folder)
        assert await at.value(run_id, SECONDS) == ["failed", "BUDGET", 1]
        assert not living(pids)
    return await at.row(run_id, "EFFECT_RESOLVED", "it", SECONDS)


@pytest.mark.invariant("I6", "I10")
@pytest.mark.parametrize("reason", sorted(SCENARIOS))
async def test_what_makes_each_reason_is_in_the_journal(at: World, tmp_path: Path, reason: str) -> None:
    """With that reason and no other, in the row and in the projection."""
    row = await SCENARIOS[reason](at, tmp_path)
    named = row.data.get("error", {}).get("reason") or row.data["reason"]
    assert named == f"EFFECT_REASON_{reason}"
    [run_id] = at.runs
    same = [r for r in await at.rows(run_id, "EFFECT_RESOLVED", "EFFECT_CANCELLED") if r.key == row.key]
    assert len(same) == 1
    if row.type != "EFFECT_ATTEMPT_LOST":
        told = "SELECT reason FROM backburner.effects WHERE run_id = %s AND key = %s"
        assert await at.query(told, run_id, row.key) == [(reason,)]


def test_there_is_no_other_reason_that_the_system_makes() -> None:
    ours = {
        value.name.removeprefix("EFFECT_REASON_")
        for value in journal_pb2.EffectReason.DESCRIPTOR.values
        if value.number in _OURS
    }
    assert ours == set(SCENARIOS)
