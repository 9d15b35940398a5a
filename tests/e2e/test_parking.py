"""A quota that is spent, with real services and scripted agents: parked without a slot, a breaker, the next harness."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.iteration.rows import timestamp
from scheduler_service.journal.verify import verify
from scheduler_service.journal.verify.times import DRIFT
from tests.e2e import parking_processes
from tests.e2e.conftest import services_of_their_own
from tests.support import scripted_agent
from tests.support.eventually import eventually
from tests.support.journals import JournalRow, check_journal, journal_of, of_type
from tests.support.services import Stack, result_value

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
async def services() -> AsyncIterator[Stack]:
    """One slot for agents, which are parked for a reset that is a second away, or more."""
    env = {"BACKBURNER_HARNESS_MODULES": scripted_agent.__name__, "BACKBURNER_SLOTS_AGENTS": "1"}
    env["BACKBURNER_PARK_SECONDS"] = "1"
    async with services_of_their_own(parking_processes.__name__, executor_env=env) as stack:
        yield stack


async def breakers(stack: Stack, harness: str) -> list[op.Breaker]:
    answer = await stack.operator.ListBreakers(op.ListBreakersRequest())
    return [breaker for breaker in answer.breakers if breaker.harness == harness]


async def causes(stack: Stack, run_id: str) -> list[pb.WaitingOn]:
    run = (await stack.client.GetRun(pb.GetRunRequest(run_id=run_id))).run
    return [cause for cause in run.waiting_on if cause.effect_key == "it"]


@pytest.mark.invariant("I1", "I2", "I3", "I8")
async def test_a_parked_agent_holds_no_slot_and_goes_on_at_its_reset(services: Stack, tmp_path: Path) -> None:
    """The scheduler is killed meanwhile, and another one goes on with a process that has seen the state PARKED."""
    gate = tmp_path / "spent"
    gate.touch()
    run_id = await services.create("parking.waits", gate=str(gate), reset_s=10)

    async def parked() -> list[JournalRow]:
        return of_type(await journal_of(services.dsn, run_id), "EFFECT_PARKED")

    [row] = await eventually(parked, timeout=60)
    [breaker] = await breakers(services, "codex")
    assert (breaker.account, breaker.state, breaker.reset_known) == ("openai:test", op.Breaker.STATE_OPEN, True)
    [cause] = await causes(services, run_id)
    assert cause.cause == pb.WaitingOn.CAUSE_NOT_BEFORE
    assert "parked, without a slot, until its provider takes requests again" in cause.message
    other = await services.result(await services.create("parking.other", harness="claude-code"))
    assert result_value(other) == "turn 1: other", "in the only slot"

    services.scheduler.kill()
    gate.unlink()
    services.scheduler.start()
    assert result_value(await services.result(run_id)) == ["SUCCEEDED", "went"]
    rows = await journal_of(services.dsn, run_id)
    check_journal(rows)
    first, second = of_type(rows, "EFFECT_DISPATCHED")
    assert first.recorded_at < row.recorded_at, "max_attempts is 1: what was not touched does not count"
    assert second.recorded_at >= timestamp(row.data["until"]) - DRIFT
    assert (row.data["untouched"], row.data["partial"]["session"]["harness"]) == (True, "codex")
    assert await breakers(services, "codex") == [], "closed by the success"
    [checked] = [found async for found in verify(services.dsn, [run_id])]
    assert checked.violations == []


@pytest.mark.invariant("I3")
async def test_the_next_harness_of_the_chain_takes_it_in_a_session_of_its_own(services: Stack) -> None:
    run = await services.result(await services.create("parking.chain"))
    assert result_value(run) == ["turn 1", "claude-code", False]
    rows = await journal_of(services.dsn, run.run_id)
    assert [row.data["harness"] for row in of_type(rows, "EFFECT_DISPATCHED")] == ["gemini-cli", "claude-code"]
    [failed] = of_type(rows, "EFFECT_ATTEMPT_FAILED")
    assert (failed.data["next_harness"], failed.data["partial"]["session"]["harness"]) == ("claude-code", "gemini-cli")
    [breaker] = await breakers(services, "gemini-cli")
    assert (breaker.account, breaker.executor_id) == ("", "")
    again = await services.result(await services.create("parking.chain"))
    [dispatched] = of_type(await journal_of(services.dsn, again.run_id), "EFFECT_DISPATCHED")
    assert dispatched.data["harness"] == "claude-code", "nothing is dispatched into an open breaker"
    waiting = await services.create("parking.other", harness="gemini-cli")

    async def stopped() -> bool:
        return any(cause.cause == pb.WaitingOn.CAUSE_BREAKER for cause in await causes(services, waiting))

    await eventually(stopped, timeout=30)
    [cause] = await causes(services, waiting)
    assert "breaker of gemini-cli in namespace default: open until" in cause.message
    assert cause.until == breaker.until
    asked = op.ResetBreakersRequest(harness="gemini-cli", reason="paid", actor="ada")
    assert len((await services.operator.ResetBreakers(asked)).breakers) == 1
    assert result_value(await services.result(waiting)) == "turn 1: other"
    assert await breakers(services, "gemini-cli") == []
    [note] = (await services.operator.ListAudit(op.ListAuditRequest(subject="gemini-cli"))).entries
    assert (note.action, note.actor, note.reason) == ("RESET_BREAKER", "ada", "paid")
