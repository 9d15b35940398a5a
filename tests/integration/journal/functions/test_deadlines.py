"""No attempt starts after its time: the owner of the run settles the effect, however late, and nobody starts it."""

from typing import LiteralString

import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk


async def let_pass(at: Desk, run_id: str, key: str, column: LiteralString) -> None:
    """The deadline lies in the past; its run has no owner that would see it."""
    statement: LiteralString = (
        "UPDATE backburner.effects SET " + column + " = clock_timestamp() - interval '1 ms' "
        "WHERE effect_id = %s RETURNING 1"
    )
    await at.rows(statement, items.effect_id(run_id, key))


@pytest.mark.parametrize("column", ["queue_deadline", "total_deadline"])
async def test_queued_effect_whose_time_is_over_is_not_started_and_holds_up_nobody(
    at: Desk, column: LiteralString
) -> None:
    run_id = await at.create()
    await at.request(run_id, "late", "behind", queue_timeout_s=60.0, total_timeout_s=60.0)
    await let_pass(at, run_id, "late", column)
    assert [row["effect_key"] for row in await at.claim(1)] == ["behind"]
    assert (await at.effect(run_id, "late"))["state"] == "QUEUED"
    settled = items.resolved(run_id, "late", reason="TIMEOUT_SCHEDULE_TO_START")
    assert (await at.append(run_id, settled))["outcome"] == "ok"
    assert await at.queued() == set()


async def test_total_timeout_during_the_back_off_allows_no_other_attempt(at: Desk) -> None:
    run_id = await at.running("a", max_attempts=3, total_timeout_s=60.0)
    assert (await at.settle(run_id, "a", "failed"))["type"] == "EFFECT_ATTEMPT_FAILED"
    await let_pass(at, run_id, "a", "total_deadline")
    assert await at.claim() == []
    assert (await at.append(run_id, items.resolved(run_id, "a")))["outcome"] == "ok"
    effect = await at.effect(run_id, "a")
    assert (effect["state"], effect["starts"]) == ("TIMED_OUT", 1)


async def test_time_in_the_queue_bounds_the_first_start_only(at: Desk) -> None:
    run_id = await at.running("a", max_attempts=2, queue_timeout_s=60.0)
    await at.settle(run_id, "a", "failed")
    await let_pass(at, run_id, "a", "queue_deadline")
    assert [row["attempt"] for row in await at.claim()] == [2]


async def test_attempt_that_never_started_is_still_bound_by_the_queue(at: Desk) -> None:
    run_id = await at.running("a", queue_timeout_s=60.0)
    await at.lose(run_id, "a", never_started=True)
    await let_pass(at, run_id, "a", "queue_deadline")
    assert await at.claim() == []


async def test_overdue_member_of_a_group_takes_no_place_in_it(at: Desk) -> None:
    run_id = await at.create()
    group: items.Item = {"group_id": "g", "group_max": 1, "group_strategy": "CONCURRENT"}
    await at.request(run_id, "late", "behind", queue_timeout_s=60.0, **group)
    await let_pass(at, run_id, "late", "queue_deadline")
    assert [row["effect_key"] for row in await at.claim()] == ["behind"]


@pytest.mark.invariant("I2", "I6")
async def test_cancel_while_a_retry_is_due_and_claimed_by_another(at: Desk) -> None:
    """Whoever locks the head first: a claimed retry hears the cancel, a cancelled one is not claimed."""
    for first in ("claim", "cancel"):
        run_id = await at.running("a", max_attempts=3)
        await at.settle(run_id, "a", "failed")
        if first == "claim":
            assert [row["attempt"] for row in await at.claim(known=True)] == [2]
        told = await at.one("request_cancels_v1", items.cancel_request(run_id, "a"))
        assert told["outcome"] == "ok"
        assert await at.claim() == []
        if first == "claim":
            assert [whom["attempt"] for whom in told["detail"]["cancels"]] == [2]
            assert (await at.settle(run_id, "a", "failed", 2))["type"] == "EFFECT_CANCELLED"
        assert (await at.effect(run_id, "a"))["state"] == "CANCELLED"


@pytest.mark.invariant("I6")
async def test_of_two_cancels_the_first_reason_stays_through_retry_and_loss(at: Desk) -> None:
    for how in ("failed", "timed_out", "lost"):
        run_id = await at.running("a", max_attempts=5)
        await at.append(run_id, items.cancel(run_id, "a", "AWAIT_CANCELLED"))
        assert (await at.one("request_cancels_v1", items.cancel_request(run_id, "a")))["outcome"] == "already"
        if how == "lost":
            await at.lose(run_id, "a")
        else:
            await at.settle(run_id, "a", how, why="TIMEOUT_TOTAL")
        data = (await at.journal(run_id))[-1]["data"]
        assert data["reason"] == "EFFECT_REASON_AWAIT_CANCELLED"
        assert await at.queued() == set()
