"""Sessions of harnesses: what is kept of them for the attempt that follows, who may take it, and for how long."""

from typing import Any

import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk, Row
from tests.integration.journal.functions.test_parking import reset_comes

OTHER = "e2"
AGENT: dict[str, Any] = {"kind": "AGENT", "harness": "codex", "pool": "agents", "capabilities": ["agent/codex"]}
POOLS = [{"pool": "agents", "foreground": 9, "background": 9}]
SESSION = {"harness": "codex", "session_id": "s-1", "executor_id": items.EXECUTOR, "workspace": "/w"}


@pytest.fixture
async def run_id(at: Desk) -> str:
    """A run with an agent's effect, whose first attempt is this executor's; e2 is connected too."""
    await at.hello(OTHER, incarnation="2")
    made = await at.create()
    await at.request(made, "a", max_attempts=9, **AGENT)
    assert len(await taken(at)) == 1
    return made


async def taken(at: Desk, executor_id: str = items.EXECUTOR, wait_s: float | None = 3600) -> list[Row]:
    """What an executor claims when sessions wait for so long."""
    of_other: dict[str, Any] = (
        {"executor_id": OTHER, "incarnation": "2", "session_no": 1} if executor_id == OTHER else {}
    )
    return await at.claim(known=True, pools=POOLS, session_wait_s=wait_s, **of_other)


async def says(at: Desk, run_id: str, attempt: int = 1, **fields: Any) -> Row:
    said = {"ordinal": 1, "durable": True, "progress": {"ordinal": 1}} | fields
    return await at.one("attempts_progress_v1", items.attempt_of(run_id, "a", attempt, **said))


async def test_what_a_lost_attempt_had_said_is_left_to_its_executor(at: Desk, run_id: str) -> None:
    said = {"session_id": "s-1", "workspace": "/w", "executor_id": "forged", "harness": "forged"}
    assert (await says(at, run_id, session=said))["outcome"] == "ok"
    assert (await at.journal(run_id))[-1]["data"]["session"] == SESSION
    await at.lose(run_id, "a")
    assert await taken(at, OTHER) == []
    [row] = await taken(at)
    assert (row["attempt"], row["resume"]) == (2, SESSION)


async def test_what_a_failed_attempt_left_goes_before_what_it_had_said(at: Desk, run_id: str) -> None:
    await says(at, run_id, session={"session_id": "early"})
    await at.settle(run_id, "a", "failed", result={"session": SESSION})
    assert await taken(at, OTHER) == []
    [row] = await taken(at)
    assert row["resume"] == SESSION
    await at.settle(run_id, "a", "failed", 2, result={})
    assert [row["resume"] for row in await taken(at)] == [SESSION], "one that says nothing leaves what there was"


async def test_a_thinned_report_keeps_the_session_too(at: Desk, run_id: str) -> None:
    assert (await says(at, run_id, durable=False, session={"session_id": "s-1"}))["outcome"] == "thinned"
    await at.lose(run_id, "a")
    assert [row["resume"]["session_id"] for row in await taken(at)] == ["s-1"]


GONE = {
    "away for longer": "UPDATE backburner.executors SET state = 'DISCONNECTED', seen_at = now() - interval '2 h'"
    " WHERE executor_id = 'e1'",
    "declared dead": "UPDATE backburner.executors SET state = 'LOST' WHERE executor_id = 'e1'",
    "unknown": "DELETE FROM backburner.executors WHERE executor_id = 'e1'",
    "of another namespace": "UPDATE backburner.executors SET namespace = 'b' WHERE executor_id = 'e1'",
}


@pytest.mark.parametrize("how", GONE)
async def test_nobody_waits_for_an_executor_that_is_gone(at: Desk, run_id: str, how: str) -> None:
    await at.settle(run_id, "a", "failed", result={"session": SESSION})
    assert await taken(at, OTHER) == []
    await at.connection.execute(GONE[how])
    assert [row["resume"] for row in await taken(at, OTHER)] == [SESSION], "it says why it cannot go on with that"


async def test_an_executor_that_may_come_back_is_waited_for_but_not_for_ever(at: Desk, run_id: str) -> None:
    await at.settle(run_id, "a", "failed", result={"session": SESSION})
    await at.connection.execute(
        "UPDATE backburner.executors SET state = 'DISCONNECTED', seen_at = now() - interval '1 min'"
        " WHERE executor_id = 'e1'"
    )
    assert await taken(at, OTHER) == []
    await at.connection.execute("UPDATE backburner.executors SET state = 'CONNECTED' WHERE executor_id = 'e1'")
    await at.connection.execute("UPDATE backburner.dispatch_queue SET not_before = now() - interval '59 min'")
    assert await taken(at, OTHER) == []
    await at.connection.execute("UPDATE backburner.dispatch_queue SET not_before = now() - interval '61 min'")
    assert len(await taken(at, OTHER)) == 1, "it is connected, and had no slot for an hour"


async def test_what_waits_for_another_executor_holds_up_nothing(at: Desk, run_id: str) -> None:
    await at.settle(run_id, "a", "failed", result={"session": SESSION})
    await at.request(run_id, "b", **AGENT)
    assert [row["effect_key"] for row in await taken(at, OTHER)] == ["b"]


async def test_a_full_context_is_not_gone_on_with(at: Desk, run_id: str) -> None:
    await at.settle(run_id, "a", "failed", why="CONTEXT_OVERFLOW", result={"session": SESSION})
    [row] = await taken(at, OTHER)
    assert row["resume"] == {"fresh_because": "attempt 1 left no room in its session"}


async def test_an_effect_that_continues_another_is_left_to_the_executor_that_has_that_session(at: Desk) -> None:
    await at.hello(OTHER, incarnation="2")
    run_id = await at.create()
    await at.request(run_id, "a", continues_on=OTHER, **AGENT)
    assert await taken(at) == []
    assert [row["resume"] for row in await taken(at, OTHER)] == [None], "its spec has the session"


async def test_with_fresh_retries_the_session_ties_no_attempt_to_its_executor(at: Desk) -> None:
    await at.hello(OTHER, incarnation="2")
    run_id = await at.create()
    await at.request(run_id, "a", max_attempts=2, resumes=False, **AGENT)
    await taken(at)
    await at.settle(run_id, "a", "failed", result={"session": SESSION})
    assert [row["resume"] for row in await taken(at, OTHER)] == [SESSION]


async def test_a_start_says_what_it_goes_on_with_and_why_not(at: Desk, run_id: str) -> None:
    started = items.attempt_of(run_id, "a", pid=7, continues=SESSION, fresh_because="")
    assert (await at.one("attempts_started_v1", started))["outcome"] == "ok"
    assert (await at.journal(run_id))[-1]["data"] == {"pid": 7, "continues": SESSION}


async def test_a_parked_effect_goes_on_where_it_was(at: Desk, run_id: str) -> None:
    parked = await at.settle(
        run_id, "a", "failed", why="QUOTA_EXHAUSTED", retry_after_s=7200, untouched=True, result={"session": SESSION}
    )
    assert parked["type"] == "EFFECT_PARKED"
    await reset_comes(at, run_id)
    assert await taken(at, OTHER) == []
    assert [row["resume"] for row in await taken(at)] == [SESSION]


async def test_the_next_harness_of_a_chain_begins_anywhere(at: Desk) -> None:
    await at.hello(OTHER, incarnation="2", capabilities=["agent/claude-code"])
    run_id = await at.create()
    await at.request(run_id, "a", **AGENT | {"capabilities": ["agent/codex", "agent/claude-code"]})
    await taken(at)
    failed = await at.settle(run_id, "a", "failed", why="AUTHENTICATION", untouched=True, result={"session": SESSION})
    assert failed["type"] == "EFFECT_ATTEMPT_FAILED"
    other: dict[str, Any] = {"executor_id": OTHER, "incarnation": "2", "session_no": 1}
    other["capabilities"] = ["agent/claude-code"]
    [row] = await at.claim(pools=POOLS, session_wait_s=3600, **other)
    why = {"fresh_because": "attempt 1 was one of another harness, codex"}
    assert (row["harness"], row["resume"]) == ("claude-code", why)
