"""Groups: how far an adaptive limit moves, and that no number of claims at once goes beyond it.

The fixture checks every journal at the end: who ran when, and what the limit must be by the outcomes (rule `groups`).
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, LiteralString

import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Connection, Desk
from tests.integration.journal.items import Item
from tests.support.eventually import eventually

ADAPTIVE: dict[str, Any] = {"group_id": "g", "group_strategy": "ADAPTIVE"}


async def limit(at: Desk, run_id: str) -> tuple[int, int]:
    [row] = await at.rows("SELECT limit_, successes FROM backburner.run_groups WHERE run_id = %s", run_id)
    return row["limit_"], row["successes"]


def keys(taken: list[dict[str, Any]]) -> list[str]:
    return [row["effect_key"] for row in taken if row["token_index"] >= 0]


async def one_after_the_other(at: Desk, run_id: str, outcomes: list[str]) -> list[int]:
    """Ends attempts of the group with these outcomes; the limit after each."""
    seen = []
    for n, outcome in enumerate(outcomes):
        key = f"{len(await at.types(run_id))}.{n}"
        await at.request(run_id, key, fast=True, group_max=8, **ADAPTIVE)
        await at.settle(run_id, key, "succeeded" if outcome == "succeeded" else "failed", why=outcome)
        seen.append((await limit(at, run_id))[0])
    return seen


async def test_overload_halves_and_ten_successes_raise_by_one(at: Desk) -> None:
    run_id = await at.create()
    good, slow = "succeeded", "RATE_LIMITED"
    assert await one_after_the_other(at, run_id, [good] * 3) == [8, 8, 8], "it starts at the most"
    assert await one_after_the_other(at, run_id, [slow, "OVERLOADED", slow, slow]) == [4, 2, 1, 1], "never below 1"
    assert await one_after_the_other(at, run_id, [good] * 10) == [1] * 9 + [2]
    assert await one_after_the_other(at, run_id, [good] * 9 + [slow]) == [2] * 9 + [1]
    assert await one_after_the_other(at, run_id, [good] * 9) == [1] * 9, "a halving begins the count anew"
    assert await one_after_the_other(at, run_id, ["EXITED_NONZERO", good]) == [1, 2], "other failures do not count"
    rising = [2] * 9 + [step for step in range(3, 8) for _ in range(10)] + [8] * 11
    assert await one_after_the_other(at, run_id, [good] * 70) == rising
    assert await limit(at, run_id) == (8, 0), "never above what was asked for"


async def test_a_failed_attempt_that_is_tried_again_counts_too(at: Desk) -> None:
    run_id = await at.running("a", max_attempts=3, group_max=8, **ADAPTIVE)
    assert (await at.settle(run_id, "a", "failed", why="OVERLOADED"))["type"] == "EFFECT_ATTEMPT_FAILED"
    assert await limit(at, run_id) == (4, 0)


@pytest.mark.parametrize(("why", "after"), [("RATE_LIMITED", 4), ("QUOTA_EXHAUSTED", 8)])
async def test_a_rate_limit_that_parks_halves_too(at: Desk, why: str, after: int) -> None:
    """However long it lasts: what waits for the reset is still work that came too fast. A spent quota is no rate."""
    run_id = await at.running("a", max_attempts=3, group_max=8, **ADAPTIVE)
    assert (await at.settle(run_id, "a", "failed", why=why, retry_after_s=7200))["type"] == "EFFECT_PARKED"
    assert await limit(at, run_id) == (after, 0)


async def test_outcomes_of_one_commit_count_in_their_order(at: Desk) -> None:
    names = [f"k{n}" for n in range(8)]
    run_id = await at.running(*names, group_max=8, **ADAPTIVE)
    outcomes = [items.settled(run_id, key) for key in names]
    for n in (2, 6):
        outcomes[n] = items.settled(run_id, names[n], "failed", why="RATE_LIMITED")
    await at.call("attempts_settle_v1", outcomes)
    assert await limit(at, run_id) == (2, 1), "two halvings, and one success after the second"
    await at.call("attempts_settle_v1", outcomes)
    assert await limit(at, run_id) == (2, 1), "a repeated call changes nothing"


@pytest.mark.parametrize("fast", [True, False])
async def test_a_lowered_limit_holds_for_claims_and_for_the_fast_path(at: Desk, fast: bool) -> None:
    run_id = await at.running("a", "b", "c", group_max=4, **ADAPTIVE)
    await at.settle(run_id, "a", "failed", why="RATE_LIMITED")
    await at.request(run_id, "d", "e", "f", fast=fast, group_max=4, **ADAPTIVE)
    assert keys(await at.claim()) == [], "two run, and two is the limit now"
    await at.settle(run_id, "b")
    assert keys(await at.claim(known=True)) == ["d"]


async def test_groups_move_apart_from_each_other_and_from_other_runs(at: Desk) -> None:
    one, other = await at.running("a", group_max=8, **ADAPTIVE), await at.running("a", group_max=8, **ADAPTIVE)
    await at.request(one, "b", fast=True, group_id="h", group_max=6, group_strategy="CONCURRENT")
    await at.settle(one, "a", "failed", why="RATE_LIMITED")
    await at.settle(one, "b", "failed", why="RATE_LIMITED")
    rows = await at.rows("SELECT run_id, group_id, limit_ FROM backburner.run_groups")
    found = {(str(row["run_id"]), row["group_id"]): row["limit_"] for row in rows}
    assert found == {(one, "g"): 4, (one, "h"): 6, (other, "g"): 8}


async def test_a_group_is_what_it_was_declared_as_first(at: Desk) -> None:
    run_id = await at.create()
    await at.request(run_id, *(f"a{n}" for n in range(9)), group_id="g", group_max=3)
    await at.request(run_id, *(f"b{n}" for n in range(9)), group_id="g", group_max=5)
    assert len(keys(await at.claim(known=True))) == 3
    await at.settle(run_id, "a0")
    await at.request(run_id, "c", group_id="g", group_max=1)
    assert "c" not in keys(await at.claim(30)), "and nobody gets more than it asked for"


LOW, HIGH = "01890a5d-ac96-774b-bcce-000000000000", "01890a5d-ac96-774b-bcce-000000000010"


async def a_claim_between_its_look_and_its_lock(at: Desk, meanwhile: Callable[[], Awaitable[Any]]) -> list[str]:
    """Has a claim see two runs, holds it up at the first one, and lets something happen to the second meanwhile.

    Answers with what it then took of the second run.
    """
    await at.request(LOW, "low")
    async with at.another(autocommit=False) as holder, at.another() as claimer:
        await holder.execute("SELECT 1 FROM backburner.effects WHERE run_id = %s FOR UPDATE", [LOW])
        claim = asyncio.create_task(at.claim(10, on=claimer))
        await eventually(partial(waits, at))
        await meanwhile()
        await holder.rollback()
        return [key for key in keys(await claim) if key != "low"]


async def waits(at: Desk) -> bool:
    rows = await at.rows("SELECT 1 FROM pg_locks WHERE NOT granted")
    return bool(rows)


@pytest.mark.invariant("I11")
async def test_what_others_took_between_look_and_lock_is_counted(at: Desk) -> None:
    await at.create(LOW)
    await at.request(await at.create(HIGH), *(f"k{n}" for n in range(6)), group_id="g", group_max=2)

    async def meanwhile() -> None:
        await at.request(HIGH, "quick", "quicker", fast=True, group_id="g", group_max=2)

    assert await a_claim_between_its_look_and_its_lock(at, meanwhile) == []


@pytest.mark.invariant("I11")
async def test_a_limit_that_was_lowered_between_look_and_lock_holds(at: Desk) -> None:
    await at.create(LOW)
    await at.create(HIGH)
    await at.request(HIGH, "x", "y", fast=True, group_max=4, **ADAPTIVE)
    await at.request(HIGH, *(f"k{n}" for n in range(6)), group_max=4, **ADAPTIVE)

    async def meanwhile() -> None:
        await at.settle(HIGH, "x", "failed", why="OVERLOADED")

    assert await a_claim_between_its_look_and_its_lock(at, meanwhile) == ["k0"], "two were free, and one is left"


@pytest.mark.slow
@pytest.mark.invariant("I11")
@pytest.mark.parametrize("strategy", ["CONCURRENT", "ADAPTIVE"])
async def test_many_claims_and_outcomes_at_once_never_exceed_the_limit(at: Desk, strategy: str) -> None:
    chance = random.Random(strategy)
    runs = [await at.create() for _ in range(3)]
    for run_id in runs:
        await at.request(
            run_id, *(f"k{n}" for n in range(60)), group_id="g", group_max=5, group_strategy=strategy, max_attempts=9
        )
    running: list[Item] = []

    async def claims(connection: Connection) -> None:
        for _ in range(40):
            taken = await at.claim(chance.randint(1, 8), on=connection)
            running.extend(row for row in taken if row["token_index"] >= 0)
            await asyncio.sleep(0)

    async def ends(connection: Connection) -> None:
        for _ in range(60):
            some = [running.pop() for _ in range(min(len(running), chance.randint(1, 3)))]
            await at._give_known_tokens(some)
            await at.call("attempts_settle_v1", [end(row) for row in some], on=connection)
            await asyncio.sleep(0)

    def end(row: Item) -> Item:
        outcome = chance.choice(["succeeded"] * 12 + ["failed"])
        fields = {} if outcome == "succeeded" else {"why": "OVERLOADED"}
        return items.settled(str(row["run_id"]), row["effect_key"], outcome, row["attempt"], **fields)

    async def alone(work: Any) -> None:
        async with at.another() as connection:
            await work(connection)

    await asyncio.gather(*(alone(work) for work in (claims, claims, claims, claims, ends, ends)))
    dispatched = await at.rows("SELECT count(*) AS n FROM backburner.journal WHERE type = 'EFFECT_DISPATCHED'")
    assert dispatched[0]["n"] > 30, "the fixture judges them"


async def test_a_claim_finds_what_stands_behind_long_full_groups(at: Desk) -> None:
    """Groups that are full when it looks, and such as become full by what it takes: hundreds of each, alike in rank."""
    run_id, other = await at.create(LOW), await at.create(HIGH)
    named: dict[str, dict[str, Any]] = {
        name: {"group_id": name, "group_max": 2, "group_strategy": "CONCURRENT"} for name in "gh"
    }
    await at.request(run_id, "x", "y", fast=True, **named["g"])
    await at.request(run_id, *(f"g{n}" for n in range(250)), **named["g"])
    await at.request(run_id, *(f"h{n}" for n in range(250)), **named["h"])
    await at.request(other, *(f"g{n}" for n in range(250)), **named["g"])
    await at.request(other, "alone")
    assert await at.claim(1, slots=1) != []
    taken = await at.claim(100, slots=100)
    found = [(str(row["run_id"]), row["effect_key"]) for row in taken]
    assert found == [(LOW, "h1"), (HIGH, "g0"), (HIGH, "g1"), (HIGH, "alone")]
    assert keys(await at.claim(100, slots=100)) == []


async def test_a_claim_that_fills_many_groups_reads_the_queue_a_few_times(at: Desk) -> None:
    """Effects that were asked for in one step are alike in rank: a look that begins anew reads them all again."""
    run_id = await at.create()
    for g in range(40):
        await at.request(run_id, *(f"{g}/{n}" for n in range(30)), group_id=str(g), group_max=1)
    await at.connection.execute("UPDATE backburner.dispatch_queue SET rank = now()")
    scans: LiteralString = (
        "SELECT (seq_scan + idx_scan)::int AS n FROM pg_stat_xact_user_tables WHERE relname = 'dispatch_queue'"
    )
    async with at.another(autocommit=False) as connection:
        [before] = await (await connection.execute(scans)).fetchall()
        found = await (await connection.execute(
            "SELECT * FROM backburner.claimable('default', 'functions', false, 'e1', %s, '{}', false, '60 s', 100)",
            [["function/noop"]],
        )).fetchall()  # fmt: skip
        [after] = await (await connection.execute(scans)).fetchall()
    assert len(found) == 40, "one of each"
    assert after["n"] - before["n"] < 10
