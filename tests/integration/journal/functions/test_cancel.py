"""request_cancels_v1 and cancels by process code: the acknowledgement of a cancel is its commit."""

import asyncio

import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk


async def ask(at: Desk, run_id: str, key: str | None = None) -> str:
    return str((await at.one("request_cancels_v1", items.cancel_request(run_id, key)))["outcome"])


@pytest.mark.invariant("I6")
async def test_cancel_of_a_run_is_a_row_and_a_flag(at: Desk) -> None:
    run_id = await at.create()
    told = await at.one("request_cancels_v1", items.cancel_request(run_id))
    assert (told["outcome"], told["head_seq"]) == ("ok", 2)
    assert [row["type"] for row in told["extra"]] == ["RUN_CANCEL_REQUESTED"]
    head = await at.head(run_id)
    assert (head["cancel_requested"], head["state"]) == (True, "CANCELLING")
    assert (await at.journal(run_id))[1]["data"] == {"reason": "enough"}


@pytest.mark.invariant("I14")
async def test_repeated_cancel_writes_nothing(at: Desk) -> None:
    run_id = await at.running("a")
    assert [await ask(at, run_id) for _ in range(3)] == ["ok", "already", "already"]
    assert [await ask(at, run_id, "a") for _ in range(3)] == ["ok", "already", "already"]
    assert (await at.types(run_id))[2:] == ["RUN_CANCEL_REQUESTED", "EFFECT_CANCEL_REQUESTED"]


@pytest.mark.invariant("I6")
async def test_cancel_of_a_live_attempt_is_flagged_for_its_executor(at: Desk) -> None:
    run_id = await at.running("a")
    told = await at.one("request_cancels_v1", items.cancel_request(run_id, "a"))
    [whom] = told["detail"]["cancels"]
    assert (whom["effect_id"], whom["attempt"]) == (items.effect_id(run_id, "a"), 1)
    assert (whom["executor_id"], whom["incarnation"]) == (items.EXECUTOR, items.INCARNATION)
    effect = await at.effect(run_id, "a")
    assert (effect["state"], effect["cancel_reason"]) == ("CANCELLING", "EFFECT_REASON_REQUESTED")


@pytest.mark.parametrize("kind", ["FUNCTION", "EXTERNAL", "TIMER"])
async def test_cancel_of_an_effect_that_nobody_works_on_settles_it(at: Desk, kind: str) -> None:
    run_id = await at.create()
    await at.request(run_id, "a", kind=kind)
    told = await at.one("request_cancels_v1", items.cancel_request(run_id, "a"))
    assert [row["type"] for row in told["extra"]] == ["EFFECT_CANCEL_REQUESTED", "EFFECT_CANCELLED"]
    assert told["detail"]["cancels"] == []
    assert (await at.queued(), await at.claim()) == (set(), [])
    assert await ask(at, run_id, "a") == "settled"


async def test_effect_that_backs_off_is_cancelled_at_once(at: Desk) -> None:
    run_id = await at.running("a", max_attempts=5, initial_s=60.0)
    await at.settle(run_id, "a", "failed")
    assert await ask(at, run_id, "a") == "ok"
    assert (await at.effect(run_id, "a"))["state"] == "CANCELLED"
    assert await at.queued() == set()


async def test_cancel_comes_too_late_for_what_is_over(at: Desk) -> None:
    run_id = await at.running("a")
    await at.settle(run_id, "a")
    await at.append(run_id, items.row("RUN_COMPLETED"))
    assert await ask(at, run_id, "a") == "settled"
    assert await ask(at, run_id) == "run_closed"
    assert await ask(at, items.NOWHERE) == "not_found"
    assert await ask(at, run_id, "unknown") == "not_found"


async def test_effect_of_another_run_is_not_found(at: Desk) -> None:
    mine, other = await at.running("a"), await at.create()
    stray = items.cancel_request(other) | {"effect_id": items.effect_id(mine, "a")}
    assert (await at.one("request_cancels_v1", stray))["outcome"] == "not_found"
    assert (await at.effect(mine, "a"))["cancel_reason"] is None


async def test_cancel_by_process_code_of_what_has_settled_is_a_row_without_effect(at: Desk) -> None:
    """A cancelled loser that had already settled must not look like changed code on replay."""
    run_id = await at.running("a")
    await at.settle(run_id, "a")
    await at.append(run_id, items.cancel(run_id, "a"))
    row = (await at.journal(run_id))[-1]
    assert (row["type"], row["cause"], row["data"]["no_op"]) == ("EFFECT_CANCEL_REQUESTED", 1, True)
    assert (await at.effect(run_id, "a"))["state"] == "SUCCEEDED"


async def test_request_and_cancel_in_one_iteration(at: Desk) -> None:
    run_id = await at.create()
    target = items.dispatch(run_id, "sent", at.session_no)
    answered = await at.append(
        run_id,
        items.requested(run_id, "queued"),
        items.requested(run_id, "sent", dispatch=target),
        items.cancel(run_id, "queued"),
        items.cancel(run_id, "sent"),
        items.cancel(run_id, "queued"),
    )
    assert [(row["type"], row["effect_key"], row["seq"]) for row in answered["extra"]] == [
        ("EFFECT_DISPATCHED", "sent", 7), ("EFFECT_CANCELLED", "queued", 8),
    ]  # fmt: skip
    assert [whom["effect_id"] for whom in answered["detail"]["cancels"]] == [items.effect_id(run_id, "sent")]
    assert (await at.journal(run_id))[5]["data"]["no_op"] is True


@pytest.mark.invariant("I6")
async def test_first_reason_stays(at: Desk) -> None:
    run_id = await at.running("a")
    await at.append(run_id, items.cancel(run_id, "a"))
    assert await ask(at, run_id, "a") == "already"
    await at.settle(run_id, "a", "cancelled", why="TIMEOUT_TOTAL")
    assert (await at.effect(run_id, "a"))["reason"] == "RACE_LOST"


@pytest.mark.invariant("I6")
async def test_cancel_of_a_parked_run_is_kept_for_its_resumption(at: Desk) -> None:
    run_id = await at.create()
    await at.append(run_id, items.row("RUN_HALTED"))
    assert await ask(at, run_id) == "ok"
    assert (await at.head(run_id))["state"] == "HALTED"


async def test_call_about_many_runs_hands_back_the_one_that_is_held(at: Desk) -> None:
    held, free = await at.create(), await at.create()
    async with at.another(autocommit=False) as other:
        await other.execute("SELECT 1 FROM backburner.run_heads WHERE run_id = %s FOR UPDATE", [held])
        async with asyncio.timeout(30):
            answers = await at.call("request_cancels_v1", [items.cancel_request(run_id) for run_id in (held, free)])
    assert [a["outcome"] for a in answers] == ["busy", "ok"]


@pytest.mark.invariant("I6", "I2")
async def test_settlement_and_cancel_at_a_time(at: Desk) -> None:
    """Whichever has the head first is first in the journal; the other sees it."""
    for first, second in (("cancel", "settle"), ("settle", "cancel")):
        run_id = await at.running("a", max_attempts=3)
        calls = {
            "cancel": ("request_cancels_v1", items.cancel_request(run_id, "a")),
            "settle": ("attempts_settle_v1", items.settled(run_id, "a", "failed", final=True)),
        }
        async with at.another(autocommit=False) as one, at.another() as two:
            await at.one(*calls[first], on=one)
            waiting = asyncio.create_task(at.one(*calls[second], on=two))
            await at.waits(waiting)
            await one.commit()
            late = await waiting
        expected = {"cancel": ("settled", "FAILED"), "settle": ("ok", "CANCELLED")}[second]
        assert (late["outcome"], (await at.effect(run_id, "a"))["state"]) == expected
