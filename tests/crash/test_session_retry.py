"""Agents whose executors die: the next attempt goes on with the session where it can, and says why where it cannot."""

from pathlib import Path
from typing import Any

import pytest

from tests.support import scripted_agent
from tests.support.eventually import eventually
from tests.support.journals import JournalRow, check_journal, journal_of
from tests.support.postgres import DisposablePostgres
from tests.support.services import Stack, result_value, running_stack

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

MODULES = "tests.crash.agent_processes"
AGENTS = {"BACKBURNER_HARNESS_MODULES": scripted_agent.__name__}
#: What waits for an executor waits for longer than any test.
PATIENT = {"BACKBURNER_GRACE_SECONDS": "600", "BACKBURNER_SESSION_WAIT_SECONDS": "600"}
HASTY = {
    "BACKBURNER_GRACE_SECONDS": "3",
    "BACKBURNER_HEARTBEAT_SECONDS": "0.3",
    "BACKBURNER_SESSION_WAIT_SECONDS": "1",
}


@pytest.fixture
async def dsn(postgres_server: DisposablePostgres) -> str:
    await postgres_server.migrate()
    return postgres_server.dsn


async def rows_of(stack: Stack, run_id: str, kind: str) -> list[JournalRow]:
    rows = await journal_of(stack.dsn, run_id)
    return [row for row in rows if row.key == "work" and row.type == kind]


async def session_of(stack: Stack, run_id: str) -> dict[str, str]:
    """The session that the first attempt has said, while it runs."""

    async def look() -> list[dict[str, str]]:
        rows = await rows_of(stack, run_id, "EFFECT_PROGRESS")
        return [row.data["session"] for row in rows if "session" in row.data]

    said = await eventually(look, timeout=60, message=lambda: f"no session\n{stack.executor.tail}")
    return said[0]


async def ended(stack: Stack, run_id: str, value: Any) -> JournalRow:
    """The row that settled the effect of a run that has returned this."""
    run = await stack.result(run_id, 120)
    assert result_value(run) == value, run
    check_journal(await journal_of(stack.dsn, run_id))
    [row] = await rows_of(stack, run_id, "EFFECT_RESOLVED")
    return row


async def test_an_executor_that_comes_back_goes_on_with_its_sessions(dsn: str, tmp_path: Path) -> None:
    """Killed in the first attempt; the second fails by itself; another executor, which is free, gets none of them."""
    async with running_stack(dsn, tmp_path, MODULES, scheduler_env=PATIENT, executor_env=AGENTS) as stack:
        busy = {"reason": "OVERLOADED", "message": "busy"}
        hold = tmp_path / "hold"
        hold.touch()
        run_id = await stack.create("sessions.works", script={"hold": str(hold), "fail": busy, "fail_at": 2})
        session = await session_of(stack, run_id)
        stack.executor.kill()
        other = stack.new_executor("executor-2")
        other.start()
        try:
            hold.unlink()
            stack.executor.start()
            row = await ended(stack, run_id, "turn 3 again: ")
            again = await stack.create("sessions.goes-on", session=session, lost="fail")
            follow_up = await ended(stack, again, "turn 4: more")
        finally:
            other.kill()
        dispatched = [await rows_of(stack, of, "EFFECT_DISPATCHED") for of in (run_id, again)]
    assert session["executor_id"] == "executor-1"
    assert (row.attempt, row.data["result"]["session"], row.data["result"]["continued_session_id"]) == (
        3, session, session["session_id"],
    )  # fmt: skip
    assert follow_up.data["result"]["continued_session_id"] == session["session_id"]
    assert [[each.data["executor_id"] for each in of] for of in dispatched] == [["executor-1"] * 3, ["executor-1"]]


async def test_without_the_executor_that_has_it_a_fresh_session_says_why(dsn: str, tmp_path: Path) -> None:
    async with running_stack(dsn, tmp_path, MODULES, scheduler_env=HASTY, executor_env=AGENTS) as stack:
        hold = tmp_path / "hold"
        hold.touch()
        run_id = await stack.create("sessions.works", script={"hold": str(hold)})
        session = await session_of(stack, run_id)
        stack.executor.kill()
        hold.unlink()
        other = stack.new_executor("executor-2")
        other.start()
        try:
            row = await ended(stack, run_id, "turn 1: work {")
            strict = await stack.create("sessions.goes-on", session=session, lost="fail")
            refused = await ended(stack, strict, "SESSION_LOST")
        finally:
            other.kill()
    why = f"session {session['session_id']} is not on this executor (executor executor-1 had it)"
    assert (row.attempt, row.data["result"]["fresh_because"]) == (2, why)
    assert row.data["result"]["session"]["executor_id"] == "executor-2"
    assert refused.data["error"]["message"] == why
