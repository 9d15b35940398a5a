"""resolve_external_v1: answers from outside to effects that no executor has."""

import asyncio

import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk


async def approval(at: Desk) -> str:
    run_id = await at.create()
    await at.request(run_id, "a", kind="EXTERNAL", capabilities=[], pool="")
    return run_id


@pytest.mark.invariant("I2", "I14")
async def test_answer_settles_and_its_repetition_is_known(at: Desk) -> None:
    run_id = await approval(at)
    [waiting] = await at.rows("SELECT * FROM backburner.v_open_approvals")
    assert waiting["key"] == "a"
    told = [await at.one("resolve_external_v1", items.answer(run_id, "a")) for _ in range(2)]
    assert [t["outcome"] for t in told] == ["ok", "already"]
    [row] = told[0]["extra"]
    assert (row["type"], row["seq"], row["data"]["resolved_by"]) == ("EFFECT_RESOLVED", 3, "client/t")
    assert await at.rows("SELECT * FROM backburner.v_open_approvals") == []


@pytest.mark.invariant("I2")
async def test_another_answer_changes_nothing(at: Desk) -> None:
    run_id = await approval(at)
    await at.one("resolve_external_v1", items.answer(run_id, "a"))
    other = items.answer(run_id, "a", result={"value": {"value": 2}}, actor="client/u")
    assert (await at.one("resolve_external_v1", other))["outcome"] == "settled"
    same = items.answer(run_id, "a", actor="client/u")
    assert (await at.one("resolve_external_v1", same))["outcome"] == "already"
    assert (await at.types(run_id)).count("EFFECT_RESOLVED") == 1


async def test_failure_from_outside_carries_its_reason(at: Desk) -> None:
    run_id = await approval(at)
    error = {"reason": "EFFECT_REASON_REJECTED", "message": "no"}
    failed = items.answer(run_id, "a", state="EFFECT_STATE_FAILED", result=None, error=error)
    assert (await at.one("resolve_external_v1", failed))["outcome"] == "ok"
    effect = await at.effect(run_id, "a")
    assert (effect["state"], effect["reason"]) == ("FAILED", "REJECTED")


@pytest.mark.parametrize("kind", ["FUNCTION", "SHELL", "AGENT", "TIMER"])
async def test_effect_that_is_not_external_is_not_resolved_from_outside(at: Desk, kind: str) -> None:
    run_id = await at.create()
    await at.request(run_id, "a", kind=kind)
    assert (await at.one("resolve_external_v1", items.answer(run_id, "a")))["outcome"] == "has_executor"
    assert await at.types(run_id) == ["EFFECT_REQUESTED"]


async def test_unknown_effect_is_not_found(at: Desk) -> None:
    run_id = await approval(at)
    assert (await at.one("resolve_external_v1", items.answer(run_id, "b")))["outcome"] == "not_found"
    assert (await at.one("resolve_external_v1", items.answer(items.NOWHERE, "a")))["outcome"] == "not_found"


async def test_cancelled_approval_takes_no_answer(at: Desk) -> None:
    run_id = await approval(at)
    await at.one("request_cancels_v1", items.cancel_request(run_id, "a"))
    assert (await at.one("resolve_external_v1", items.answer(run_id, "a")))["outcome"] == "settled"


@pytest.mark.invariant("I2")
async def test_answers_of_many_people_at_a_time_settle_once(at: Desk) -> None:
    run_id = await approval(at)

    async def say(value: int) -> str:
        async with at.another() as connection:
            item = items.answer(run_id, "a", result={"value": {"value": value}})
            return str((await at.one("resolve_external_v1", item, on=connection))["outcome"])

    assert sorted(await asyncio.gather(*(say(n) for n in range(8)))) == ["ok"] + ["settled"] * 7
