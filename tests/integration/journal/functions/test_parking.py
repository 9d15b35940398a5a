"""What a failure of an agent's provider leads to: parked until the reset, over to the next harness, or the end."""

from datetime import timedelta
from typing import Any

import pytest

from scheduler_service.replay.policies import POLICIES
from tests.integration.journal import items
from tests.integration.journal.desk import Desk, Row

CHAIN = ("agent/codex", "agent/claude-code")
CODEX = "agent/codex"


async def agent(at: Desk, *chain: str, **columns: Any) -> str:
    """A run with an agent effect `a`, dispatched to the first harness of its chain."""
    run_id = await at.create()
    columns = {"kind": "AGENT", "harness": "codex", "capabilities": list(chain or (CODEX,))} | columns
    await at.request(run_id, "a", **columns)
    await at.connection.execute("UPDATE backburner.executors SET capabilities = %s", [columns["capabilities"]])
    [taken] = await at.claim(known=True, capabilities=[chain[0] if chain else CODEX])
    assert taken["harness"] == "codex"
    return run_id


async def fails(at: Desk, run_id: str, why: str, attempt: int = 1, **fields: Any) -> Row:
    """The attempt fails, and what follows is in the journal."""
    settled = await at.settle(run_id, "a", "failed", attempt, why=why, **fields)
    assert settled["outcome"] == "ok", settled
    [row] = [row for row in await at.journal(run_id) if row["seq"] == settled["seq"]]
    return row


async def reset_comes(at: Desk, run_id: str) -> None:
    """What waits for a time need not wait any more: that has come. The journal's own times go back with it."""
    await at.connection.execute("ALTER TABLE backburner.journal DISABLE TRIGGER USER")
    await at.connection.execute(
        "UPDATE backburner.journal SET data = jsonb_set(data, '{until}', to_jsonb(recorded_at)) "
        "WHERE run_id = %s AND type = 'EFFECT_PARKED'", [run_id],
    )  # fmt: skip
    await at.connection.execute("ALTER TABLE backburner.journal ENABLE TRIGGER USER")
    for table in ("effects", "dispatch_queue"):
        await at.connection.execute(f"UPDATE backburner.{table} SET not_before = now() WHERE run_id = %s", [run_id])
    await at.connection.execute("UPDATE backburner.provider_breakers SET until = now()")


async def test_the_table_in_code_is_the_one_of_the_database(at: Desk) -> None:
    stored = {row.pop("failure"): row for row in await at.rows("SELECT * FROM backburner.failure_policies()")}
    assert stored == {
        name: {"retried": p.retried, "parks": p.parks, "fails_over": p.fails_over, "breaker": p.breaker}
        for name, p in POLICIES.items()
    }


@pytest.mark.parametrize("why", ["QUOTA_EXHAUSTED", "RATE_LIMITED"])
@pytest.mark.invariant("I2", "I3")
async def test_a_known_reset_parks_the_effect_without_a_slot_until_then(at: Desk, why: str) -> None:
    run_id = await agent(at)
    row = await fails(at, run_id, why, retry_after_s=7200, result={"exit_code": 1}, untouched=True)
    assert (row["type"], row["attempt"], row["data"]["untouched"]) == ("EFFECT_PARKED", 1, True)
    assert row["data"]["error"]["reason"] == f"EFFECT_REASON_{why}"
    assert (row["data"]["partial"], row["data"]["elapsed"]) == ({"exit_code": 1}, "0.250000s")
    effect = await at.effect(run_id, "a")
    assert (effect["state"], effect["not_before"] - row["recorded_at"]) == ("PARKED", timedelta(hours=2))
    assert (effect["starts"], effect["settled_seq"], effect["reason"]) == (0, None, why)
    assert await at.claim() == []
    await reset_comes(at, run_id)
    [again] = await at.claim(known=True)
    assert (again["attempt"], (await at.effect(run_id, "a"))["state"]) == (2, "DISPATCHED")
    assert (await at.settle(run_id, "a", attempt=2))["type"] == "EFFECT_RESOLVED"
    assert await at.rows("SELECT 1 FROM backburner.provider_breakers") == [], "a success closes it"


async def test_a_repeated_settlement_of_a_parked_attempt_is_already(at: Desk) -> None:
    run_id = await agent(at, max_attempts=2)
    first = await at.settle(run_id, "a", "failed", why="QUOTA_EXHAUSTED", retry_after_s=600)
    assert await at.settle(run_id, "a", "failed", why="QUOTA_EXHAUSTED", retry_after_s=900) == first | {
        "outcome": "already"
    }
    await reset_comes(at, run_id)
    [_] = await at.claim(known=True)
    late = await at.settle(run_id, "a")
    assert (late["outcome"], late["type"]) == ("already", "EFFECT_PARKED")


@pytest.mark.parametrize(("after", "park_after", "becomes"), [
    (59, None, "EFFECT_ATTEMPT_FAILED"), (60, None, "EFFECT_PARKED"), (5, 5, "EFFECT_PARKED"),
    (90, 100, "EFFECT_ATTEMPT_FAILED"),
])  # fmt: skip
async def test_only_a_reset_that_is_not_near_parks(
    at: Desk, after: float, park_after: float | None, becomes: str
) -> None:
    run_id = await agent(at, max_attempts=3)
    assert (await fails(at, run_id, "RATE_LIMITED", retry_after_s=after, park_after_s=park_after))["type"] == becomes


@pytest.mark.invariant("I3")
@pytest.mark.parametrize(("untouched", "becomes"), [(True, "EFFECT_PARKED"), (False, "EFFECT_RESOLVED")])
async def test_at_most_once_means_that_an_agent_that_has_acted_is_not_parked(
    at: Desk, untouched: bool, becomes: str
) -> None:
    run_id = await agent(at)
    row = await fails(
        at, run_id, "QUOTA_EXHAUSTED", retry_after_s=3600, untouched=untouched, error={"message": "spent"}
    )
    assert row["type"] == becomes
    if not untouched:
        until = (row["recorded_at"] + timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S UTC")
        said = f"spent; it is reset at {until}, and no attempt is left (max_attempts is 1)"
        assert row["data"]["error"]["message"] == said


async def test_what_does_not_count_is_bounded_all_the_same(at: Desk) -> None:
    run_id = await agent(at)
    await at.connection.execute("ALTER TABLE backburner.journal DISABLE TRIGGER USER")
    for table in ("effects", "journal"):
        await at.connection.execute(f"UPDATE backburner.{table} SET attempt = 1000 WHERE attempt = 1")
    row = await at.one("attempts_settle_v1", items.settled(
        run_id, "a", "failed", 1000, why="QUOTA_EXHAUSTED", retry_after_s=600, untouched=True,
        token=items.token_of(run_id, "a").hex(),
    ))  # fmt: skip
    assert row["type"] == "EFFECT_RESOLVED"
    for table in ("effects", "journal", "attempt_usage"):
        await at.connection.execute(f"UPDATE backburner.{table} SET attempt = 1 WHERE attempt = 1000")


@pytest.mark.invariant("I3")
@pytest.mark.parametrize("untouched", [True, False])
async def test_a_child_that_could_not_start_counts_unless_none_ran_before_it(at: Desk, untouched: bool) -> None:
    """It may be the second of its attempt."""
    run_id = await agent(at, *CHAIN)
    row = await fails(at, run_id, "SPAWN_FAILED", untouched=untouched)
    assert row["type"] == ("EFFECT_ATTEMPT_FAILED" if untouched else "EFFECT_RESOLVED")


@pytest.mark.parametrize("state", ["LOST", "DISCONNECTED"])
async def test_a_harness_that_nobody_has_is_not_waited_for(at: Desk, state: str) -> None:
    run_id = await agent(at, CODEX, "agent/nowhere", "agent/pi")
    await at.hello("e2", incarnation="another", capabilities=["agent/pi"])
    await at.connection.execute("UPDATE backburner.executors SET state = %s WHERE executor_id = 'e2'", [state])
    await at.connection.execute(
        "UPDATE backburner.executors SET capabilities = %s WHERE executor_id <> 'e2'", [[CODEX]]
    )
    row = await fails(at, run_id, "QUOTA_EXHAUSTED", retry_after_s=3600, untouched=True)
    assert row["type"] == ("EFFECT_PARKED" if state == "LOST" else "EFFECT_ATTEMPT_FAILED")
    assert row["data"].get("next_harness") == (None if state == "LOST" else "pi")


async def test_a_deadline_before_the_reset_fails_at_once_and_says_so(at: Desk) -> None:
    run_id = await agent(at, max_attempts=5, total_timeout_s=600)
    row = await fails(at, run_id, "QUOTA_EXHAUSTED", retry_after_s=3600, error={"message": "spent"})
    assert (row["type"], row["data"]["state"]) == ("EFFECT_RESOLVED", "EFFECT_STATE_FAILED")
    assert row["data"]["error"]["message"].endswith("UTC, and that is after its total timeout")


@pytest.mark.parametrize(("columns", "said", "becomes"), [
    ({}, {}, "EFFECT_ATTEMPT_FAILED"),
    ({"on_quota": "PARK", "max_attempts": 2}, {}, "EFFECT_PARKED"),
    ({"on_quota": "PARK", "max_attempts": 2, "total_timeout_s": 60}, {}, "EFFECT_ATTEMPT_FAILED"),
    ({"on_quota": "PARK", "max_attempts": 2}, {"retry_after_s": None}, "EFFECT_ATTEMPT_FAILED"),
    ({"on_quota": "FAIL", "max_attempts": 2}, {}, "EFFECT_RESOLVED"),
    ({"on_quota": "FAIL", "max_attempts": 2}, {"retry_after_s": None}, "EFFECT_RESOLVED"),
    ({"non_retryable": ["QUOTA_EXHAUSTED"], "max_attempts": 2}, {}, "EFFECT_RESOLVED"),
    ({}, {"final": True}, "EFFECT_RESOLVED"),
    ({}, {"untouched": False}, "EFFECT_RESOLVED"),
    ({"max_attempts": 2}, {"untouched": False}, "EFFECT_ATTEMPT_FAILED"),
], ids=str)  # fmt: skip
async def test_a_spent_quota_goes_on_as_the_effect_prefers(
    at: Desk, columns: dict[str, Any], said: dict[str, Any], becomes: str
) -> None:
    run_id = await agent(at, *CHAIN, **columns)
    row = await fails(at, run_id, "QUOTA_EXHAUSTED", **({"retry_after_s": 3600, "untouched": True} | said))
    assert row["type"] == becomes
    assert row["data"].get("next_harness") == ("claude-code" if becomes == "EFFECT_ATTEMPT_FAILED" else None)


@pytest.mark.invariant("I3")
async def test_the_harness_that_failed_is_not_tried_again(at: Desk) -> None:
    """At most once: three harnesses refuse before anything is done, then there is none left."""
    run_id = await agent(at, *CHAIN, "agent/pi", queue_timeout_s=600)
    everything = [*CHAIN, "agent/pi"]
    row = await fails(at, run_id, "AUTHENTICATION", untouched=True)
    assert (row["type"], row["data"]["next_harness"]) == ("EFFECT_ATTEMPT_FAILED", "claude-code")
    effect = await at.effect(run_id, "a")
    assert (effect["state"], effect["harness"], effect["queue_deadline"]) == ("QUEUED", "claude-code", None)
    [second] = await at.claim(known=True, capabilities=everything)
    assert second["harness"] == "claude-code"
    assert (await fails(at, run_id, "AUTHENTICATION", 2, untouched=True))["data"]["next_harness"] == "pi"
    assert await at.claim(capabilities=list(CHAIN)) == []
    [third] = await at.claim(known=True, capabilities=everything)
    assert third["harness"] == "pi"
    assert (await fails(at, run_id, "AUTHENTICATION", 3, untouched=True))["type"] == "EFFECT_RESOLVED"


async def test_an_overload_is_retried_before_it_fails_over_and_the_next_harness_counts_anew(at: Desk) -> None:
    run_id = await agent(at, *CHAIN, max_attempts=2)
    assert "next_harness" not in (await fails(at, run_id, "OVERLOADED"))["data"]
    [second] = await at.claim(known=True, capabilities=list(CHAIN))
    assert second["harness"] == "codex"
    assert (await fails(at, run_id, "OVERLOADED", 2))["data"]["next_harness"] == "claude-code"
    for attempt, becomes in ((3, "EFFECT_ATTEMPT_FAILED"), (4, "EFFECT_RESOLVED")):
        [taken] = await at.claim(known=True, capabilities=list(CHAIN))
        assert (taken["harness"], taken["attempt"]) == ("claude-code", attempt)
        assert (await fails(at, run_id, "OVERLOADED", attempt))["type"] == becomes


@pytest.mark.parametrize("why", ["REFUSED", "BAD_REQUEST", "MAX_TURNS", "BUDGET"])
async def test_what_another_try_would_not_mend_is_final(at: Desk, why: str) -> None:
    run_id = await agent(at, *CHAIN, max_attempts=5)
    assert (await fails(at, run_id, why))["type"] == "EFFECT_RESOLVED"


@pytest.mark.parametrize(
    "why", ["TOOL_FAILED", "CONTEXT_OVERFLOW", "HARNESS_CRASHED", "TIMEOUT_SILENCE", "EXITED_NONZERO"]
)
async def test_other_failures_are_retried_with_the_same_harness_and_no_other(at: Desk, why: str) -> None:
    run_id = await agent(at, *CHAIN, max_attempts=2)
    assert "next_harness" not in (await fails(at, run_id, why))["data"]
    await at.claim(known=True, capabilities=list(CHAIN))
    assert (await fails(at, run_id, why, 2))["type"] == "EFFECT_RESOLVED"


@pytest.mark.invariant("I6")
async def test_a_parked_effect_can_be_cancelled(at: Desk) -> None:
    run_id = await agent(at, max_attempts=2)
    await fails(at, run_id, "QUOTA_EXHAUSTED", retry_after_s=600)
    answer = await at.one("request_cancels_v1", items.cancel_request(run_id, "a"))
    assert answer["outcome"] == "ok"
    assert ((await at.effect(run_id, "a"))["state"], await at.queued()) == ("CANCELLED", set())


async def test_a_cancel_that_was_asked_for_comes_before_parking(at: Desk) -> None:
    run_id = await agent(at, max_attempts=2)
    await at.one("request_cancels_v1", items.cancel_request(run_id, "a"))
    assert (await fails(at, run_id, "QUOTA_EXHAUSTED", retry_after_s=600))["type"] == "EFFECT_CANCELLED"


async def test_a_parked_effect_of_a_halted_run_waits_on(at: Desk) -> None:
    run_id = await agent(at, max_attempts=2)
    await fails(at, run_id, "QUOTA_EXHAUSTED", retry_after_s=600)
    await at.one("halt_runs_v1", items.control(run_id))
    await reset_comes(at, run_id)
    assert await at.claim() == []
    await at.one("resume_runs_v1", items.control(run_id))
    assert len(await at.claim()) == 1
