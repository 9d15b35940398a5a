"""A deadline and something else in the same instant, in both orders and at once: one settles, the rest is evidence."""

import asyncio
import random
from collections import Counter
from typing import Any, LiteralString

import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk, Row
from tests.support.eventually import eventually

SETTLING = ("EFFECT_RESOLVED", "EFFECT_CANCELLED")
#: Backends that wait for a lock in a claim.
_WAITING: LiteralString = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%claim_v1%'
"""


async def settlement(at: Desk, run_id: str, key: str = "a") -> Row:
    """The one row that settles the effect; the projection says the same."""
    [row] = [row for row in await at.journal(run_id) if row["type"] in SETTLING and row["effect_key"] == key]
    effect = await at.effect(run_id, key)
    assert effect["settled_seq"] == row["seq"]
    assert row["data"].get("state") in (None, f"EFFECT_STATE_{effect['state']}")
    return row


async def evidence(at: Desk, run_id: str) -> list[str]:
    """Reasons of what was refused and kept, by its cause."""
    rows = [row["data"] for row in await at.journal(run_id) if row["type"] == "EFFECT_SUPERSEDED"]
    return [f"{row['cause']}: {row['refused_data'].get('error', {}).get('reason', 'success')}" for row in rows]


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("first", ["deadline", "answer"])
async def test_an_answer_and_the_deadline_of_who_was_asked(at: Desk, first: str) -> None:
    run_id = await at.create()
    await at.request(run_id, "a", kind="EXTERNAL", capabilities=[], pool="", total_timeout_s=60.0)
    answers = []
    for what in ("deadline", "answer") if first == "deadline" else ("answer", "deadline"):
        if what == "deadline":
            assert (await at.append(run_id, items.resolved(run_id, "a")))["outcome"] == "ok"
        else:
            answers.append((await at.one("resolve_external_v1", items.answer(run_id, "a")))["outcome"])
    row = await settlement(at, run_id)
    if first == "deadline":
        assert (row["data"]["state"], answers) == ("EFFECT_STATE_TIMED_OUT", ["settled"]), "whoever answers is told"
        assert await evidence(at, run_id) == []
    else:
        assert (row["data"]["state"], answers) == ("EFFECT_STATE_SUCCEEDED", ["ok"])
        assert await evidence(at, run_id) == ["settled: EFFECT_REASON_TIMEOUT_TOTAL"]


@pytest.mark.invariant("I2", "I3")
@pytest.mark.parametrize("first", ["deadline", "claim", "result"])
async def test_a_total_deadline_and_the_next_attempt(at: Desk, first: str) -> None:
    """The owner saw that the pause outlasts the deadline; by the time it says so, another attempt may be under way."""
    run_id = await at.running("a", max_attempts=3, total_timeout_s=60.0)
    await at.settle(run_id, "a", "failed")
    taken = await at.claim(known=True) if first != "deadline" else []
    assert [row["attempt"] for row in taken] == ([2] if taken else [])
    if first == "result":
        assert (await at.settle(run_id, "a", attempt=2))["outcome"] == "ok"
    assert (await at.append(run_id, items.resolved(run_id, "a")))["outcome"] == "ok"
    if first == "deadline":
        assert await at.claim() == []
        assert (await settlement(at, run_id))["data"]["error"]["reason"] == "EFFECT_REASON_TIMEOUT_TOTAL"
        return
    if first == "claim":  # it has its deadline with it, and its executor says how it ended
        assert (await at.settle(run_id, "a", attempt=2))["outcome"] == "ok"
    assert (await settlement(at, run_id))["data"]["state"] == "EFFECT_STATE_SUCCEEDED"
    cause = "live_attempt" if first == "claim" else "settled"
    assert await evidence(at, run_id) == [f"{cause}: EFFECT_REASON_TIMEOUT_TOTAL"]


@pytest.mark.invariant("I2", "I3")
async def test_deadline_claim_and_result_at_once_settle_once(at: Desk) -> None:
    """Many tries, each on connections of their own, a few milliseconds apart in any order."""
    draw = random.Random(11)
    seen: Counter[str] = Counter()
    async with at.another() as taking, at.another() as owning:
        for _ in range(40):
            run_id = await at.running("a", max_attempts=3, total_timeout_s=60.0)
            await at.settle(run_id, "a", "failed")

            async def attempt(run_id: str = run_id) -> None:
                await asyncio.sleep(draw.uniform(0, 0.004))
                for row in await at.claim(known=True, on=taking):
                    if row["token_index"] >= 0:
                        await at.one("attempts_settle_v1", items.settled(run_id, "a", attempt=2), on=taking)

            async def owner(run_id: str = run_id) -> None:
                await asyncio.sleep(draw.uniform(0, 0.02))
                item = at.appending(run_id, items.resolved(run_id, "a"))
                while (await at.one("append_v1", item, on=owning))["outcome"] == "busy":
                    continue

            await asyncio.gather(attempt(), owner())
            row = await settlement(at, run_id)
            timed_out = row["data"]["state"] == "EFFECT_STATE_TIMED_OUT"
            seen[row["data"]["state"]] += 1
            refused = await evidence(at, run_id)
            assert [said.partition(": ")[2] for said in refused] == (
                [] if timed_out else ["EFFECT_REASON_TIMEOUT_TOTAL"]
            )
            dispatched = [r["attempt"] for r in await at.journal(run_id) if r["type"] == "EFFECT_DISPATCHED"]
            assert dispatched == ([1] if timed_out else [1, 2])
    assert sum(seen.values()) == 40


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("first", ["lost", "timed out"])
async def test_a_timeout_and_the_loss_of_its_attempt(at: Desk, first: str) -> None:
    """The executor says that it ended the attempt for its time; the owner, that the executor is gone."""
    run_id = await at.running("a")
    late: dict[str, Any] = {"outcome": "timed_out", "why": "TIMEOUT_START_TO_CLOSE", "death": "DEATH_PROVEN"}
    if first == "lost":
        assert (await at.lose(run_id, "a"))["outcome"] == "ok"
        assert (await at.settle(run_id, "a", **late))["type"] == "EFFECT_SUPERSEDED"
        assert await evidence(at, run_id) == ["settled: EFFECT_REASON_TIMEOUT_START_TO_CLOSE"]
    else:
        assert (await at.settle(run_id, "a", **late))["outcome"] == "ok"
        assert (await at.lose(run_id, "a"))["outcome"] == "settled"
    reason = "EXECUTOR_LOST" if first == "lost" else "TIMEOUT_START_TO_CLOSE"
    row = await settlement(at, run_id)
    assert row["data"]["error"]["reason"] == f"EFFECT_REASON_{reason}"
    assert row["data"]["death"] == ("DEATH_UNPROVEN" if first == "lost" else "DEATH_PROVEN")


@pytest.mark.invariant("I3")
async def test_a_pause_that_began_while_a_claim_was_under_way_is_kept(at: Desk) -> None:
    """A claim picks without lock: until it comes to an effect, another one may have taken that, and it has failed."""
    run_id = await at.create()
    later = await at.create(items.later_than(run_id))
    await at.request(run_id, "a")
    await at.request(later, "b", max_attempts=3, initial_s=3600.0)
    async with at.another(autocommit=False) as holder, at.another() as slow:
        lock: LiteralString = "SELECT 1 FROM backburner.effects WHERE effect_id = %s FOR UPDATE"
        await holder.execute(lock, [items.effect_id(run_id, "a")])
        claiming = asyncio.create_task(at.claim(on=slow))
        await eventually(lambda: at.rows(_WAITING), 30, "the claim does not wait")
        taken = await at.claim(known=True)
        assert [row["effect_key"] for row in taken if row["token_index"] >= 0] == ["b"]
        assert (await at.settle(later, "b", "failed"))["type"] == "EFFECT_ATTEMPT_FAILED"
        await holder.rollback()
        assert [row["effect_key"] for row in await claiming if row["token_index"] >= 0] == ["a"]
    effect = await at.effect(later, "b")
    assert (effect["state"], effect["attempt"]) == ("QUEUED", 1), "it was started without its pause"
    assert items.effect_id(later, "b") in await at.queued()
