"""A session whose workspace is gone is not gone on with: it would believe that its work is still there."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from executor_service.harness.continuing import MADE_ANEW, Place, Session, SessionLost, in_a_session
from tests.unit.executor.test_workspace_trees import assignment

SESSION = {"harness": "codex", "session_id": "s-1", "executor_id": "x", "workspace": "/state/tree"}


async def which(spec: dict[str, Any]) -> tuple[Session | None, str]:
    attempt: Any = SimpleNamespace(
        assignment=dataclasses.replace(assignment(), resume=SESSION), goes_on=lambda stored, why="": None
    )

    async def run(session: Session | None, resumed: bool) -> Session | None:
        return session

    session, begun = await in_a_session(spec, attempt, Place("codex", "x"), run)
    return session, begun.fresh_because


async def test_with_its_workspace_it_goes_on_and_without_a_fresh_one_begins() -> None:
    assert await which({}) == (Session(**SESSION), "")
    assert await which({MADE_ANEW: "/state/other"}) == (Session(**SESSION), "")
    session, why = await which({MADE_ANEW: "/state/tree"})
    assert (session, "its workspace was removed" in why) == (None, True)


async def test_a_session_that_was_asked_for_is_lost_with_its_workspace() -> None:
    spec = {MADE_ANEW: "/state/tree", "continue_session": SESSION, "if_session_lost": "fail"}
    with pytest.raises(SessionLost, match="its workspace was removed"):
        await which(spec)
