"""Agents through both services: answers read by type, sessions that go on, dispatch to who has the harness."""

from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from backburner.scheduler.v1 import operator_service_pb2 as operator_pb
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.journal.verify import verify
from tests.support import scripted_agent
from tests.support.eventually import eventually
from tests.support.journals import check_journal, journal_of, of_type
from tests.support.services import Service, Stack, result_value

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
async def agents(stack: Stack) -> AsyncIterator[Stack]:
    """The services, with one more executor, which has the scripted agents."""
    service = await joined(stack, "agents")
    yield stack
    service.kill()


async def joined(stack: Stack, executor_id: str, **env: str) -> Service:
    """A connected executor with the harness module."""
    service = stack.new_executor(executor_id, BACKBURNER_HARNESS_MODULES=scripted_agent.__name__, **env)
    service.start()

    async def connected() -> bool:
        answer = await stack.operator.ListExecutors(operator_pb.ListExecutorsRequest())
        states = {executor.executor_id: executor.state for executor in answer.executors}
        return states.get(executor_id) == operator_pb.Executor.STATE_CONNECTED

    await eventually(connected, timeout=30, message=service.tail)
    return service


async def test_an_agent_waits_for_an_executor_that_has_its_harness(stack: Stack) -> None:
    run_id = await stack.create("agents.one", harness="opencode", prompt="hello")

    async def waiting() -> list[str]:
        run = (await stack.client.GetRun(pb.GetRunRequest(run_id=run_id))).run
        return [cause.message for cause in run.waiting_on if cause.effect_key == "it"]

    causes = await eventually(waiting)
    [cause] = causes
    assert cause.startswith("effect 'it': no executor has harness opencode")
    service = await joined(stack, "opencode", SCRIPTED_AGENTS="opencode")
    try:
        assert result_value(await stack.result(run_id)) == "turn 1: hello"
    finally:
        service.kill()
    [dispatched] = of_type(await journal_of(stack.dsn, run_id), "EFFECT_DISPATCHED")
    assert (dispatched.data["executor_id"], dispatched.data["harness"]) == ("opencode", "opencode")


async def test_the_list_of_executors_shows_the_harnesses(agents: Stack) -> None:
    answer = await agents.operator.ListExecutors(operator_pb.ListExecutorsRequest())
    [executor] = [e for e in answer.executors if e.executor_id == "agents"]
    assert {h.name for h in executor.harnesses} == {"shell", "function", *scripted_agent.NAMES}


@pytest.mark.parametrize(
    ("verdicts", "result"),
    [
        ({"claude-code": True, "codex": False, "gemini-cli": True}, "approved by claude-code, gemini-cli"),
        ({"claude-code": False, "codex": False, "gemini-cli": True}, "rejected"),
    ],
)
async def test_reviewers_vote(agents: Stack, verdicts: dict[str, bool], result: str) -> None:
    run = await agents.result(await agents.create("agents.review", diff="diff", verdicts=verdicts))
    assert str(result_value(run)).startswith(result)
    rows = await journal_of(agents.dsn, run.run_id)
    check_journal(rows)
    asked = of_type(rows, "EFFECT_REQUESTED")[0].data["spec"]["agent"]["output_schema"]
    assert asked["$defs"]["Verdict"]["required"] == ["approve", "reasons"]


async def test_a_session_goes_on_by_handle_by_value_and_after_a_failure(agents: Stack, tmp_path: Path) -> None:
    run = await agents.result(await agents.create("agents.talk", cwd=str(tmp_path)))
    value = result_value(run)
    assert value["said"] == ["turn 1: first", "turn 2: second", "OVERLOADED", "turn 4: fourth"]
    assert (value["lost"], value["session"]["workspace"]) == (False, str(tmp_path))
    sessions = {row.data["result"]["session"]["session_id"] for row in of_type(
        await journal_of(agents.dsn, run.run_id), "EFFECT_RESOLVED")}  # fmt: skip
    assert len(sessions) == 1, "one session all along"

    again = await agents.result(await agents.create("agents.go-on", session=value["session"]))
    went = result_value(again)
    assert went["here"] == "turn 5: here"
    assert went["session"]["session_id"] == value["session"]["session_id"]
    assert went["fresh"] == ["turn 1: fresh", True]
    assert went["no"] == "SESSION_LOST"
    check_journal(await journal_of(agents.dsn, again.run_id))


async def test_refusals_of_providers_lower_the_limit_of_an_adaptive_group(agents: Stack) -> None:
    run = await agents.result(await agents.create("agents.adaptive", failing=["b"]))
    assert result_value(run) == ["ok", "RATE_LIMITED", "ok", "RATE_LIMITED"]
    [checked] = [found async for found in verify(agents.dsn, [run.run_id])]
    assert checked.violations == [], "and its limit is what these outcomes lead to"
    async with await psycopg.AsyncConnection.connect(agents.dsn) as connection:
        statement = "SELECT limit_ FROM backburner.run_groups WHERE run_id = %s"
        assert await (await connection.execute(statement, [run.run_id])).fetchall() == [(1,)]


async def test_a_failed_child_run_hands_its_session_to_the_next(agents: Stack) -> None:
    run = await agents.result(await agents.create("agents.supervisor"))
    reason, left, continued = result_value(run)
    assert reason == "CHILD_RUN_FAILED"
    assert left == continued, "the second worker went on in the session of the first"
