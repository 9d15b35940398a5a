"""What is not to be before its time, over a restart of the scheduler and a change of owner: once, and not early."""

import asyncio
import random
from collections import Counter
from datetime import datetime
from typing import Any

import grpc
import pytest

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.iteration.rows import timestamp
from tests.integration.engine import ending_processes
from tests.integration.engine.executor import FAILED, SUCCEEDED, ScriptedExecutor
from tests.integration.engine.pairs import run_of, two
from tests.integration.engine.world import World, world
from tests.support.eventually import eventually
from tests.support.journals import SETTLING, JournalRow

pytestmark = pytest.mark.timeout(240)

SECONDS = 60.0
WHATS = ["sleep_until", "pause", "timer", "sleep"]
#: Long enough for the owner to go in the meantime, and for another one to come.
AFTER = 5.0


async def asked(at: World, executor: ScriptedExecutor, run_id: str, what: str) -> datetime:
    """When it may be, by the journal, once that is there."""
    if what == "sleep":
        return timestamp((await at.row(run_id, "TIMER_SET", timeout_s=SECONDS)).data["fire_at"])
    request = await at.row(run_id, "EFFECT_REQUESTED", "it", SECONDS)
    if what == "pause":
        start = await eventually(lambda: [s for s in executor.starts if s.run_id == run_id], SECONDS)
        await executor.settle(start[0], **FAILED)
        failed = await at.row(run_id, "EFFECT_ATTEMPT_FAILED", "it", SECONDS)
        return timestamp(failed.data["next_attempt_at"])
    spec = request.data["spec"]
    return timestamp(spec["sleep_until"] if what == "sleep_until" else spec["timer"]["fire_at"])


async def happened(at: World, run_id: str, what: str) -> JournalRow:
    """The one row that says that it is time."""
    if what == "sleep":
        [row] = await at.rows(run_id, "TIMER_FIRED")
    elif what == "timer":
        [row] = await at.rows(run_id, *SETTLING, key="it")
    else:
        *earlier, row = await at.rows(run_id, "EFFECT_DISPATCHED", key="it")
        assert len(earlier) == (what == "pause"), earlier
    return row


async def check(at: World, executor: ScriptedExecutor, run_id: str, what: str, due: datetime) -> None:
    """It is, it was not early, and it was once."""
    assert await at.value(run_id, SECONDS) == ["succeeded"]
    row = await happened(at, run_id, what)
    assert row.recorded_at >= due, "it was early"
    starts = {"sleep_until": [1], "pause": [1, 2]}.get(what, [])
    assert [start.attempt for start in executor.starts if start.run_id == run_id] == starts
    assert not await at.rows(run_id, "EFFECT_ATTEMPT_LOST", "EFFECT_SUPERSEDED")


@pytest.mark.invariant("I3")
@pytest.mark.parametrize("away", ["at once", "until it was due"])
@pytest.mark.parametrize("what", WHATS)
async def test_over_a_restart_of_the_scheduler(database_url: str, what: str, away: str) -> None:
    """The next one comes before the time, or finds that it has passed while nobody was there."""
    async with world(database_url, ending_processes.ALL, grace_seconds=60.0) as at:
        executor = at.executor()
        await executor.connect()
        run_id = await at.create("not-before", what=what, seconds=AFTER if away == "at once" else 2.0)
        due = await asked(at, executor, run_id, what)
        executor.answer = lambda start: SUCCEEDED
        await at.stop()
        if away != "at once":
            await eventually(lambda: _passed(at, due), SECONDS)
        await at.start(ending_processes.ALL)
        executor.channel = at.channel
        await executor.connect()
        await check(at, executor, run_id, what, due)


@pytest.mark.invariant("I3")
@pytest.mark.parametrize("what", WHATS)
async def test_over_a_change_of_owner(database_url: str, what: str) -> None:
    async with two(database_url, ending_processes.ALL, grace_seconds=60.0) as (first, second):
        executor = second.executor()
        await executor.connect()
        run_id = await run_of(first, first, "not-before", what=what, seconds=AFTER)
        due = await asked(second, executor, run_id, what)
        executor.answer = lambda start: SUCCEEDED
        await first.server.stop()
        await check(second, executor, run_id, what, due)
        assert (await happened(second, run_id, what)).writer == f"scheduler/{second.engine.scheduler_id}"


async def _passed(at: World, due: datetime) -> bool:
    return bool((await at.query("SELECT clock_timestamp() > %s", due))[0][0])


@pytest.mark.invariant("I2")
async def test_an_answer_in_the_instant_of_its_deadline_is_one_value_to_the_process(database_url: str) -> None:
    """Many runs, answered about when their time is over: answered or timed out, to the process and to who answered."""
    draw = random.Random(5)
    states: Counter[str] = Counter()
    async with world(database_url, ending_processes.ALL) as at:
        created = await asyncio.gather(*(at.create("asks-twice", seconds=2.0) for _ in range(24)))
        shifts = [-0.6, 2.0, *(draw.uniform(-0.2, 0.3) for _ in range(22))]  # one of each kind for certain
        told = await asyncio.gather(
            *(_answer(at, run_id, shift) for run_id, shift in zip(created, shifts, strict=True))
        )
        for run_id, answered in zip(created, told, strict=True):
            first, again, status = await at.value(run_id, SECONDS)
            [row] = await at.rows(run_id, *SETTLING)
            states[row.data["state"]] += 1
            timed_out = row.data["state"] == "EFFECT_STATE_TIMED_OUT"
            assert first == again == (["timed out", "TIMEOUT_TOTAL", 0] if timed_out else ["succeeded"])
            assert status == ("TIMED_OUT" if timed_out else "SUCCEEDED")
            assert answered is not timed_out, "who answered was told otherwise"
            evidence = await at.rows(run_id, "EFFECT_SUPERSEDED")
            assert {late.data["refused_data"]["error"]["reason"] for late in evidence} <= {
                "EFFECT_REASON_TIMEOUT_TOTAL"
            }
    assert set(states) == {"EFFECT_STATE_SUCCEEDED", "EFFECT_STATE_TIMED_OUT"}


async def _answer(at: World, run_id: str, shift: float) -> bool:
    """Answers so long after the deadline, by the database's clock; whether that was taken."""
    await at.row(run_id, "EFFECT_REQUESTED", "it", SECONDS)
    due = "SELECT extract(epoch FROM total_deadline - clock_timestamp()) FROM backburner.effects WHERE run_id = %s"
    [(left,)] = await at.query(due, run_id)
    await asyncio.sleep(max(0.0, float(left) + shift))
    request: Any = pb.ResolveEffectRequest(effect=pb.EffectName(run_id=run_id, key="it"), actor="test")
    request.succeeded.SetInParent()
    try:
        answer = await at.client.ResolveEffect(request, timeout=SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
            raise
        return False
    assert answer.effect.state == journal_pb2.EFFECT_STATE_SUCCEEDED
    return True
