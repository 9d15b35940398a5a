"""With which session an attempt of an agent begins, and what the journal says of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from executor_service.server import ExecutorServer
from tests.integration.executor.conftest import StartExecutor
from tests.integration.executor.test_agents import ask, session_of
from tests.support import scripted_agent
from tests.support.eventually import eventually
from tests.support.fake_scheduler import Dispatch, FakeScheduler, Settled

HERE = "executor-under-test"
GONE = {"harness": "codex", "session_id": "gone", "executor_id": "e9"}


@pytest.fixture
async def executor(start_executor: StartExecutor) -> ExecutorServer:
    server: ExecutorServer = await start_executor(harness_modules=(scripted_agent.__name__,))
    return server


pytestmark = pytest.mark.usefixtures("executor")


async def resume(
    scheduler: FakeScheduler, left: Mapping[str, str] | None, spec: Mapping[str, Any], fresh_because: str = ""
) -> Dispatch:
    """Starts an attempt to which earlier ones have left this."""
    dispatch = await scheduler.one(send=False, **spec)
    for name, value in (left or {}).items():
        setattr(dispatch.start.resume, name, value)
    dispatch.start.fresh_because = fresh_because
    (await scheduler.session()).start(dispatch)
    return dispatch


async def earlier(scheduler: FakeScheduler, tmp_path: Path) -> dict[str, str]:
    """A session that has had one turn."""
    return session_of(await scheduler.run(**ask("first", spec={"agent": {"cwd": str(tmp_path)}})))


async def seen(scheduler: FakeScheduler, dispatch: Dispatch, kind: str) -> Settled:
    """The first row of the type, once it is there."""
    return (await eventually(lambda: scheduler.rows(dispatch, kind), timeout=60))[0]


async def test_an_attempt_goes_on_with_the_session_of_the_one_before(scheduler: FakeScheduler, tmp_path: Path) -> None:
    left, hold = await earlier(scheduler, tmp_path), tmp_path / "hold"
    hold.touch()
    dispatch = await resume(scheduler, left, ask("work", hold=str(hold)))
    started = await seen(scheduler, dispatch, "EFFECT_STARTED")
    assert started.data["continues"] == left
    assert "fresh_because" not in started.data
    hold.unlink()
    settled = await scheduler.settled(dispatch)
    assert settled.value.startswith("turn 2 again: work"), "the harness knows that its own attempt was interrupted"
    assert session_of(settled) == left, "in the working directory of the session"
    result = settled.data["result"]
    assert result["continued_session_id"] == left["session_id"]
    assert result.keys().isdisjoint({"session_lost", "fresh_because"})


async def test_a_session_is_in_the_journal_while_its_attempt_runs(scheduler: FakeScheduler, tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    dispatch = await scheduler.one(**ask(spec={"agent": {"cwd": str(tmp_path)}}, hold=str(tmp_path / "hold")))
    said = await seen(scheduler, dispatch, "EFFECT_PROGRESS")
    (tmp_path / "hold").unlink()
    assert said.data["session"] == session_of(await scheduler.settled(dispatch))
    assert said.data["session"]["executor_id"] == HERE


FRESH: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "its files are elsewhere": (GONE, {}, "session gone is not on this executor (executor e9 had it)"),
    "its files are gone": (GONE | {"executor_id": HERE}, {}, "session gone is not on this executor"),
    "another harness's": (
        GONE | {"harness": "gemini-cli"}, {},
        "the session to continue is one of 'gemini-cli', not of 'codex' (executor e9 had it)",
    ),
    "the effect wants it": (GONE, {"retry_session": "fresh"}, "retry_session is fresh"),
}  # fmt: skip


@pytest.mark.parametrize("why", FRESH)
async def test_a_fresh_session_says_why_it_is_one(scheduler: FakeScheduler, tmp_path: Path, why: str) -> None:
    left, options, said = FRESH[why]
    (tmp_path / "hold").touch()
    dispatch = await resume(scheduler, left, ask("work", spec=options, hold=str(tmp_path / "hold")))
    started = await seen(scheduler, dispatch, "EFFECT_STARTED")
    assert (started.data["fresh_because"], "continues" in started.data) == (said, False)
    (tmp_path / "hold").unlink()
    settled = await scheduler.settled(dispatch)
    assert settled.value.startswith("turn 1: work")
    assert settled.data["result"]["fresh_because"] == said
    assert settled.data["result"].keys().isdisjoint({"session_lost", "continued_session_id"})


async def test_what_the_scheduler_forbids_is_not_gone_on_with(scheduler: FakeScheduler, tmp_path: Path) -> None:
    session = await earlier(scheduler, tmp_path)
    full = "attempt 1 left no room in its session"
    spec = {"continue_from": "e", "continue_session": session}
    settled = await scheduler.settled(await resume(scheduler, None, ask("go on", spec=spec), full))
    assert (settled.value, settled.data["result"]["fresh_because"]) == ("turn 1: go on", full)
    strict = ask("go on", spec={**spec, "if_session_lost": "fail"})
    settled = await scheduler.settled(await resume(scheduler, None, strict, full))
    assert (settled.reason, settled.data["error"]["message"]) == ("SESSION_LOST", full)


async def test_without_its_own_session_an_attempt_begins_as_the_first_one(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    """Its effect goes on with an earlier one's session; what the attempt before had made of that is lost."""
    session = await earlier(scheduler, tmp_path)
    spec = {"continue_from": "e", "continue_session": session, "if_session_lost": "fail"}
    settled = await scheduler.settled(await resume(scheduler, GONE, ask("go on", spec=spec)))
    assert settled.value == "turn 2: go on"
    assert settled.data["result"]["continued_session_id"] == session["session_id"]
    spec = {**spec, "continue_session": GONE}
    settled = await scheduler.settled(await resume(scheduler, GONE, ask("go on", spec=spec)))
    assert settled.reason == "SESSION_LOST"


async def test_a_session_whose_directory_is_gone_is_lost(scheduler: FakeScheduler, tmp_path: Path) -> None:
    (place := tmp_path / "place").mkdir()
    left = await earlier(scheduler, place)
    place.rmdir()
    settled = await scheduler.settled(await resume(scheduler, left, ask("work")))
    assert settled.value == "turn 1: work"
    assert settled.data["result"]["fresh_because"] == (
        f"the session's working directory {str(place)!r} is not on this executor"
    )
