"""Budgets through the services: what runs is stopped at its limit, what is spent starts nothing, usage adds up."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.journal import DeadlineDue
from tests.integration.engine import budget_processes
from tests.integration.engine.real_executor import real_executor
from tests.integration.engine.world import World, world
from tests.support import scripted_agent
from tests.support.eventually import eventually
from tests.support.repositories import git, repository

pytestmark = pytest.mark.timeout(240)

SECONDS = 120.0
BY = pb.ListUsageRequest


@pytest.fixture
async def at(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    async with world(database_url, budget_processes.ALL) as made, real_executor(made, tmp_path):
        yield made


@pytest.fixture
def hold(tmp_path: Path) -> str:
    """A file that children wait for."""
    path = tmp_path / "hold"
    path.touch()
    return str(path)


async def create(at: World, process: str, budget: dict[str, Any] | None, labels: Any = None, **given: Any) -> str:
    request = pb.CreateRunRequest(process=process, labels=labels or {})
    json_format.ParseDict(given, request.input)
    if budget is not None:
        json_format.ParseDict(budget, request.budget)
    run_id = str((await at.client.CreateRun(request, timeout=60)).run.run_id)
    at.runs.append(run_id)
    return run_id


async def test_what_runs_is_stopped_at_its_limit_and_keeps_what_it_gave(at: World, hold: str) -> None:
    usages = [{"input_tokens": 60, "cost_usd": 0.1}, {"input_tokens": 120, "cost_usd": 0.2}]
    child = {"usages": usages, "hold": hold}
    run_id = await create(at, "budgets/one", None, child=child, own={"tokens": 100}, attempts=3)
    reason, tokens, message = await at.value(run_id, SECONDS)
    assert (reason, tokens) == ("BUDGET", 120)
    assert "the budget of effect it is spent: 120 tokens used of 100 tokens" in message
    row = await at.row(run_id, "EFFECT_RESOLVED", "it")
    assert row.data["death"] == "DEATH_PROVEN"
    assert row.attempt == 1, "a spent budget is no reason to try again"
    run = (await at.client.GetRun(pb.GetRunRequest(run_id=run_id))).run
    assert (run.usage.input_tokens, run.usage.cost_usd) == (120, 0.2)


async def test_spent_budget_of_a_run_fails_what_comes_after_without_starting_it(at: World, hold: str) -> None:
    run_id = await create(at, "budgets/many", {"tokens": 100}, tokens=[60] * 4, hold=hold)
    assert await at.value(run_id, SECONDS) == ["", "BUDGET", "BUDGET", "BUDGET"]
    rows = await at.rows(run_id, "EFFECT_DISPATCHED")
    assert [row.key for row in rows] == ["it/0", "it/1"], "the second is stopped, the others never start"
    last = await at.row(run_id, "EFFECT_RESOLVED", "it/3")
    assert last.data["error"]["message"] == f"the budget of run {run_id} is spent: 120 tokens used of 100 tokens"


async def test_totals_are_exact_over_retries_and_another_life_of_the_scheduler(at: World) -> None:
    child = {"usages": [{"input_tokens": 50, "output_tokens": 7, "model": "m"}], "fail": True}
    run_id = await create(at, "budgets/one", None, labels={"team": "a"}, child=child, own={}, attempts=3)
    await at.row(run_id, "EFFECT_ATTEMPT_FAILED", "it", SECONDS)
    await at.restart(budget_processes.ALL, listen=at.server.address)
    assert (await at.value(run_id, SECONDS))[0] == "EXITED_NONZERO"
    [effect] = (await at.client.ListEffects(pb.ListEffectsRequest(run_id=run_id))).effects
    assert (effect.usage.input_tokens, effect.usage.output_tokens, effect.usage.costs_unknown) == (150, 21, 3)
    assert not effect.usage.HasField("cost_usd"), "an unknown cost is not 0"
    for by, label, key in (
        (BY.GROUP_BY_RUN, "", run_id), (BY.GROUP_BY_PROCESS, "", "budgets/one"), (BY.GROUP_BY_HARNESS, "", "shell"),
        (BY.GROUP_BY_MODEL, "", "m"), (BY.GROUP_BY_LABEL, "team", "a"),
    ):  # fmt: skip
        answer = await at.client.ListUsage(pb.ListUsageRequest(group_by=by, label=label))
        [group] = answer.groups
        assert group.key == key
        assert (group.attempts, group.usage.input_tokens, answer.total.usage.output_tokens) == (3, 150, 21)


async def test_budget_of_a_label_is_set_listed_and_cleared(at: World, hold: str) -> None:
    budget = op.LabelBudget(label="team=a", budget=journal_pb2.Budget(tokens=100), reason="trial", actor="t")
    await at.operator.SetBudget(op.SetBudgetRequest(budget=budget))
    run_id = await create(at, "budgets/many", None, labels={"team": "a"}, tokens=[60, 60, 60], hold=hold)
    assert await at.value(run_id, SECONDS) == ["", "BUDGET", "BUDGET"]
    [listed] = (await at.operator.ListBudgets(op.ListBudgetsRequest())).budgets
    assert (listed.label, listed.used.tokens, listed.reason) == ("team=a", 120, "trial")
    await at.operator.ClearBudget(op.ClearBudgetRequest(label="team=a"))
    run_id = await create(at, "budgets/many", None, {"team": "a"}, tokens=[60], hold=hold)
    assert await at.value(run_id, SECONDS) == [""]
    actions = [entry.action for entry in (await at.operator.ListAudit(op.ListAuditRequest())).entries]
    assert len(actions) == 2


async def test_budget_that_asks_waits_for_a_raise(at: World, hold: str) -> None:
    asks = {"tokens": 100, "on_spent": "BUDGET_ACTION_ASK"}
    run_id = await create(at, "budgets/many", asks, tokens=[60, 60, 60], hold=hold)

    async def waiting() -> str:
        run = (await at.client.GetRun(pb.GetRunRequest(run_id=run_id))).run
        causes = [cause.message for cause in run.waiting_on if cause.cause == pb.WaitingOn.CAUSE_BUDGET]
        return causes[0] if causes else ""

    message = await eventually(waiting, SECONDS, message="nothing waits for the budget")
    assert f"backburner budget raise {run_id} --tokens N" in message
    parked = await at.row(run_id, "EFFECT_PARKED", "it/1")
    assert parked.data["partial"]["usage"]["input_tokens"] == 60
    await asyncio.to_thread(Path(hold).unlink)
    raised = op.RaiseBudgetRequest(run_id=run_id, budget=journal_pb2.Budget(tokens=1000), reason="go on")
    await at.operator.RaiseBudget(raised)
    assert await at.value(run_id, SECONDS) == ["", "", ""]


@pytest.mark.parametrize(
    ("budget", "path"),
    [
        ({"tokens": -1.0}, "budget.tokens"), ({"on_spent": "BUDGET_ACTION_ASK"}, "budget"),
        ({"wall_time": "-1s", "turns": 1}, "budget.wall_time"), ({"cost_usd": "NaN"}, "budget.cost_usd"),
    ],
)  # fmt: skip
async def test_budget_that_is_none_is_refused_with_its_path(at: World, budget: dict[str, Any], path: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await create(at, "budgets/many", budget, tokens=[1], hold="")
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert path in (refusal.value.details() or "")


async def test_agent_that_was_stopped_goes_on_with_its_session_after_a_raise(
    database_url: str, tmp_path: Path, hold: str
) -> None:
    """It is stopped between two reports of its stream; the next attempt has what was raised, and the session."""
    reports = [{"usage": {"input_tokens": n, "cost_usd": n / 1000, "turns": 1}} for n in (40, 80, 120)]
    prompt = json.dumps({"reports": reports, "hold": hold})
    modules = (scripted_agent.__name__,)
    async with (
        world(database_url, budget_processes.ALL) as at,
        real_executor(at, tmp_path, harness_modules=modules),
    ):
        asks = {"tokens": 100, "on_spent": "ask"}
        run_id = await create(at, "budgets/agent", None, prompt=prompt, own=asks)
        parked = await at.row(run_id, "EFFECT_PARKED", "it", SECONDS)
        assert parked.data["error"]["reason"] == "EFFECT_REASON_BUDGET"
        assert "until" not in parked.data
        assert parked.data["partial"]["usage"]["input_tokens"] == 120
        session = parked.data["partial"]["session"]["session_id"]
        await asyncio.to_thread(Path(hold).unlink)
        raised = op.RaiseBudgetRequest(run_id=run_id, effect_key="it", budget=journal_pb2.Budget(tokens=1000))
        await at.operator.RaiseBudget(raised)
        assert await at.value(run_id, SECONDS) == "succeeded"
        rows = await at.rows(run_id, "EFFECT_RESOLVED")
        assert (rows[0].attempt, rows[0].data["result"]["session"]["session_id"]) == (2, session)
        [effect] = (await at.client.ListEffects(pb.ListEffectsRequest(run_id=run_id))).effects
        assert (effect.usage.input_tokens, effect.usage.turns) == (240, 2)


@pytest.fixture
async def agents(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    modules = (scripted_agent.__name__,)
    async with (
        world(database_url, budget_processes.ALL) as made,
        real_executor(made, tmp_path, harness_modules=modules),
    ):
        yield made


async def in_a_worktree(at: World, repo: Path, own: dict[str, Any], **script: Any) -> str:
    return await create(at, "budgets/workspace", None, source=str(repo), prompt=f"fix {json.dumps(script)}", own=own)


async def test_answer_that_was_paid_for_leaves_its_workspace_as_a_success_does(agents: World, tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    spends = {"input_tokens": 120}
    run_id = await in_a_worktree(agents, repo, {"tokens": 100}, write={"new.txt": "new\n"}, spends=spends)
    ended, branch, patch = await agents.value(run_id, SECONDS)
    assert (ended, git(repo, "show", f"{branch}:new.txt")) == ("succeeded", "new")
    assert "+new" in patch
    row = await agents.row(run_id, "EFFECT_RESOLVED", "it")
    workspace = row.data["result"]["workspace"]
    assert "kept" not in workspace
    await eventually(lambda: not Path(workspace["path"]).exists(), SECONDS)


async def test_spent_budget_keeps_the_workspace_and_says_where(agents: World, tmp_path: Path, hold: str) -> None:
    repo = repository(tmp_path / "repo")
    reports = [{"usage": {"input_tokens": 120}}]
    run_id = await in_a_worktree(
        agents, repo, {"tokens": 100}, write={"half.txt": "half\n"}, reports=reports, hold=hold
    )
    reason, path, patch = await agents.value(run_id, SECONDS)
    assert (reason, (Path(path) / "half.txt").read_text()) == ("BUDGET", "half\n")
    assert "+half" in patch
    workspace = (await agents.row(run_id, "EFFECT_RESOLVED", "it")).data["result"]["workspace"]
    assert git(repo, "show", f"{workspace['result_commit']}:half.txt") == "half"
    assert workspace["kept"]


async def test_raise_goes_on_in_the_workspace_that_the_budget_left(agents: World, tmp_path: Path, hold: str) -> None:
    repo = repository(tmp_path / "repo")
    reports = [{"usage": {"input_tokens": 120}}]
    run_id = await in_a_worktree(
        agents, repo, {"tokens": 100, "on_spent": "ask"}, write={"half.txt": "half\n"}, reports=reports, hold=hold,
        sh="test ! -e whole.txt && cp half.txt whole.txt",
    )  # fmt: skip
    parked = (await agents.row(run_id, "EFFECT_PARKED", "it", SECONDS)).data["partial"]["workspace"]
    assert (parked["kept"], (Path(parked["path"]) / "half.txt").read_text()) == (True, "half\n")
    (Path(parked["path"]) / "left.txt").write_text("left\n")
    await asyncio.to_thread(Path(hold).unlink)
    raised = op.RaiseBudgetRequest(run_id=run_id, effect_key="it", budget=journal_pb2.Budget(tokens=1000))
    await agents.operator.RaiseBudget(raised)
    ended, branch, _ = await agents.value(run_id, SECONDS)
    assert (ended, git(repo, "show", f"{branch}:whole.txt")) == ("succeeded", "half")
    assert git(repo, "show", f"{branch}:left.txt") == "left", "the next attempt has found what the one before left"


async def test_raise_between_the_poll_and_its_settlement_lets_the_effect_run(
    at: World, hold: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the journal refused the process must not hear either: it would have failed in memory only."""
    raised: list[DeadlineDue] = []
    journal = at.engine._journal
    look = journal.deadlines_due

    async def and_then_somebody_raises(shards: Sequence[int]) -> list[DeadlineDue]:
        found = await look(shards)
        if any(due.spent for due in found) and not raised:
            raised.extend(found)
            await at.operator.RaiseBudget(op.RaiseBudgetRequest(run_id=run_id, budget=journal_pb2.Budget(tokens=1000)))
        return found

    monkeypatch.setattr(journal, "deadlines_due", and_then_somebody_raises)
    run_id = await create(at, "budgets/many", {"tokens": 100}, tokens=[60] * 3, hold=hold)
    assert await at.value(run_id, SECONDS) == ["", "BUDGET", ""]
    assert [due.effect_key for due in raised] == ["it/2"]
    [refused] = await at.rows(run_id, "EFFECT_SUPERSEDED")
    assert refused.key == "it/2"
    assert refused.data["cause"] in ("budget_raised", "live_attempt"), "it may even run by then"


async def test_budgets_cost_a_poll_no_round_trip_of_their_own(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await create(at, "budgets/many", None, tokens=[], hold="")
    asked: list[str] = []
    read = at.engine._journal._read

    async def counted(statement: str, **parameters: Any) -> list[Any]:
        if (task := asyncio.current_task()) is not None and task.get_name() == "a poll":
            asked.append(statement)
        return await read(statement, **parameters)

    monkeypatch.setattr(at.engine._journal, "_read", counted)
    polls = at.engine._polls
    await asyncio.create_task(polls._turn(), name="a poll")
    assert asked.count("deadlines_due") == 1
    assert [name for name in asked if "spent" in name or "budget" in name] == []
