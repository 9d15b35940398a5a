"""Agents in workspaces through both services: merged at the fan-in, found by a retry, one at a time under a lease."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.e2e.test_agents import joined
from tests.support.eventually import eventually
from tests.support.journals import check_journal, journal_of, of_type
from tests.support.repositories import git, repository, state_of
from tests.support.services import Stack, result_value

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
async def agents(stack: Stack) -> AsyncIterator[Stack]:
    """The services, with one more executor, which has the scripted agents and a slot for each of many."""
    service = await joined(stack, "workspaces", BACKBURNER_SLOTS_AGENTS="8")
    yield stack
    service.kill()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return repository(tmp_path / "repo")


async def test_worktrees_of_three_agents_are_merged_and_one_conflict_is_reported(agents: Stack, repo: Path) -> None:
    before = state_of(repo)
    writes = {
        "docs": {"README.md": "docs\n"},
        "fix": {"a.txt": "one\n2\nthree\n"},
        "review": {"a.txt": "one\nzwei\nthree\n", "REVIEW.md": "fine\n"},
        "idle": {},
    }
    run = await agents.result(await agents.create("workspaces.fan-in", repo=str(repo), writes=writes))
    assert result_value(run) == {
        "branch": "agents/landing",
        "items": [["docs", "merged"], ["fix", "merged"], ["idle", "empty"], ["review", "conflict"]],
        "conflicts": [["a.txt", "contents", [[2, 6]]]],
    }
    assert git(repo, "show", "agents/landing:a.txt") == "one\n2\nthree"
    assert git(repo, "ls-tree", "--name-only", "agents/landing").split() == ["README.md", "a.txt"]
    assert state_of(repo) == before
    check_journal(await journal_of(agents.dsn, run.run_id))


async def test_a_retry_finds_what_the_attempt_before_it_left(agents: Stack, repo: Path) -> None:
    run = await agents.result(await agents.create("workspaces.retry", repo=str(repo)))
    value = result_value(run)
    assert (value["attempts"], value["workspace"]["files_changed"]) == (2, 2)
    assert git(repo, "show", f"{value['workspace']['branch']}:whole.txt") == "h"
    [first] = of_type(await journal_of(agents.dsn, run.run_id), "EFFECT_ATTEMPT_FAILED")
    assert first.data["partial"]["workspace"]["kept"] is True


async def test_a_killed_executor_leaves_the_tree_to_its_successor(stack: Stack, repo: Path) -> None:
    service = await joined(stack, "killed", SCRIPTED_AGENTS="pi")
    try:
        run_id = await stack.create("workspaces.killed", repo=str(repo), harness="pi")
        trees = stack.folder / "killed" / "worktrees"
        await eventually(lambda: any(half.read_text() for half in trees.glob("*/half.txt")), timeout=120)
        service.kill()
        service.start()
        workspace = result_value(await stack.result(run_id))
    finally:
        service.kill()
    assert git(repo, "show", f"{workspace['branch']}:whole.txt") == "h"
    [lost] = of_type(await journal_of(stack.dsn, run_id), "EFFECT_ATTEMPT_LOST")
    assert "never_started" not in lost.data


async def test_agents_in_one_directory_go_one_at_a_time(agents: Stack, tmp_path: Path) -> None:
    run = await agents.result(await agents.create("workspaces.in-turn", directory=str(tmp_path), agents=3))
    assert result_value(run) == ["ok", "ok", "ok"]
    rows = await journal_of(agents.dsn, run.run_id)
    check_journal(rows)
    lost = of_type(rows, "EFFECT_ATTEMPT_LOST")
    assert {(row.data["reason"], row.data["never_started"]) for row in lost} == {("EFFECT_REASON_WORKSPACE_BUSY", True)}


async def test_who_waits_for_a_directory_is_told_which_and_who_has_it(agents: Stack, tmp_path: Path) -> None:
    hold, inner = tmp_path / "hold", tmp_path / "work" / "inner"
    inner.mkdir(parents=True)
    hold.touch()
    run_id = await agents.create("workspaces.waits", directory=str(inner.parent), hold=str(hold))
    name = pb.EffectName(run_id=run_id, key="waits")
    said = f"effect 'has' of run {run_id} works in {inner.parent}, which {inner} is in: it goes when that is done; "

    async def told() -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):  # it is not asked for yet
            effect = (await agents.client.GetEffect(pb.GetEffectRequest(effect=name))).effect
            run = (await agents.client.GetRun(pb.GetRunRequest(run_id=run_id))).run
            waits = [waiting.message for waiting in run.waiting_on]
            return effect.waiting_on.message.startswith(said) and any(f"effect 'waits': {said}" in w for w in waits)
        return False

    try:
        await eventually(told, timeout=120, message=said)
    finally:
        hold.unlink()
    assert result_value(await agents.result(run_id)) == "ok"


async def test_what_a_failed_agent_left_is_on_the_error(agents: Stack, repo: Path) -> None:
    run = await agents.result(await agents.create("workspaces.failed", directory=str(repo)))
    value = result_value(run)
    assert (value["kept"], value["files_changed"]) == (True, 1)
    assert (Path(value["path"]) / "half.txt").read_text() == "h\n"
    assert "+h" in value["patch"]
