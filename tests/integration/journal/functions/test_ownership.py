"""Shards, adoption, strikes, sessions: who owns what, by the database's clock."""

import asyncio
import json
from typing import Any

import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Connection, Desk, Row

CLAIM = "SELECT * FROM backburner.claim_shards_v1(%s, '', 't', %s, %s)"
ADOPT = "SELECT * FROM backburner.adopt_runs_v1(%s, %s, %s, %s, %s)"


async def expire(at: Desk) -> None:
    await at.rows("UPDATE backburner.shards SET expires_at = '-infinity' RETURNING 1")


async def renewed(at: Desk, scheduler: str) -> set[int]:
    return {
        row["shard"] for row in await at.rows("SELECT * FROM backburner.renew_shards_v1(%s, 60) AS shard", scheduler)
    }


@pytest.mark.invariant("I5")
async def test_lease_that_runs_is_nobody_elses(at: Desk) -> None:
    assert await at.rows(CLAIM, "s2", 60.0, 16) == []
    assert len(await renewed(at, items.SCHEDULER)) == 16
    assert await renewed(at, "s2") == set()


@pytest.mark.invariant("I5")
async def test_lease_that_ran_out_is_not_renewed_and_its_next_owner_has_a_new_epoch(at: Desk) -> None:
    await expire(at)
    assert await renewed(at, items.SCHEDULER) == set()
    taken = await at.rows(CLAIM, "s2", 60.0, 5)
    assert {row["shard"]: row["epoch"] for row in taken} == {s: at.epochs[s] + 1 for s in range(5)}
    assert await renewed(at, "s2") == set(range(5))


async def test_released_shards_are_free_at_once(at: Desk) -> None:
    await at.rows("SELECT backburner.release_shards_v1(%s)", items.SCHEDULER)
    assert len(await at.rows(CLAIM, "s2", 60.0, 16)) == 16
    await at.rows("SELECT backburner.release_shards_v1(%s)", items.SCHEDULER)
    assert len(await renewed(at, "s2")) == 16


@pytest.mark.invariant("I5")
async def test_replicas_claiming_at_a_time_share_the_shards(at: Desk) -> None:
    await expire(at)

    async def claim(scheduler: str) -> list[Row]:
        async with at.another() as connection:
            return [
                row
                for _ in range(8)
                for row in await (await connection.execute(CLAIM, [scheduler, 60.0, 2])).fetchall()
            ]

    taken = await asyncio.gather(*(claim(f"r{n}") for n in range(4)))
    assert sorted(shard for one in taken for shard in {row["shard"] for row in one}) == list(range(16))


@pytest.mark.invariant("I14")
async def test_owner_whose_claim_was_not_answered_hears_of_its_shards_by_the_renewal(at: Desk) -> None:
    """The answer was lost at COMMIT. Else the shard is renewed for ever, and its runs stand still."""
    await expire(at)
    await at.rows(CLAIM, "s2", 60.0, 16)
    assert await at.rows(CLAIM, "s2", 60.0, 16) == []
    renewed = await at.rows("SELECT * FROM backburner.renew_shards_v1('s2', 60.0) AS shard")
    assert sorted(row["shard"] for row in renewed) == list(range(16))
    await at.rows("SELECT backburner.release_shards_v1('s2')")
    assert len(await at.rows(CLAIM, "s2", 60.0, 16)) == 16


# -- adoption ----------------------------------------------------------------------------------------------------


async def take_over(at: Desk, run_id: str) -> tuple[int, int]:
    await expire(at)
    shard = int(run_id[-2:], 16) % 16
    taken = {row["shard"]: row["epoch"] for row in await at.rows(CLAIM, "s2", 60.0, 16)}
    return shard, taken[shard]


@pytest.mark.invariant("I5")
async def test_adoption_stamps_the_epoch_before_it_reads(at: Desk) -> None:
    run_id = await at.create()
    await at.append(run_id, items.row("PROCESS_LOG"))
    shard, epoch = await take_over(at, run_id)
    [adopted] = await at.rows(ADOPT, "s2", shard, epoch, None, 10)
    assert (str(adopted["run_id"]), adopted["seq"], adopted["epoch"], adopted["iteration"]) == (run_id, 2, epoch, 1)
    assert (adopted["state"], adopted["process"], adopted["cancel_requested"]) == ("RUNNING", "p", False)
    assert (await at.head(run_id))["epoch"] == epoch


@pytest.mark.invariant("I5")
@pytest.mark.parametrize("claim", [("s1", 1), ("s2", 1), ("s2", -1), ("s3", 0)], ids=str)
async def test_adoption_without_the_lease_stamps_nothing(at: Desk, claim: tuple[str, int]) -> None:
    run_id = await at.create()
    shard, epoch = await take_over(at, run_id)
    scheduler, off = claim
    assert await at.rows(ADOPT, scheduler, shard, epoch + off, None, 10) == []
    assert (await at.head(run_id))["epoch"] == at.epochs[shard]


@pytest.mark.invariant("I14")
async def test_adoption_comes_in_pages_and_may_be_repeated(at: Desk) -> None:
    runs = sorted([await at.create(f"00000000-0000-4000-8000-0000000{n:05}") for n in range(160)])
    mine = [run_id for run_id in runs if int(run_id[-2:], 16) % 16 == 3]
    shard, epoch = await take_over(at, mine[0])
    for _ in range(2):
        seen: list[str] = []
        after: Any = None
        while page := await at.rows(ADOPT, "s2", shard, epoch, after, 4):
            seen += [str(row["run_id"]) for row in page]
            after = page[-1]["run_id"]
        assert seen == mine


@pytest.mark.invariant("I5")
async def test_run_created_while_its_shard_changes_hands_is_not_left_with_the_old_epoch(at: Desk) -> None:
    """The creation is under way when the shard is claimed: claimed after it commits, or its epoch is the new one."""
    await at.rows("UPDATE backburner.shards SET expires_at = clock_timestamp() + interval '0.3 s' RETURNING 1")
    run_id = "00000000-0000-4000-8000-000000000003"

    async def claims(connection: Connection) -> dict[int, int]:
        taken = await (await connection.execute(CLAIM, ["s2", 60.0, 16])).fetchall()
        return {row["shard"]: row["epoch"] for row in taken}

    async with at.another(autocommit=False) as creator, at.another() as successor:
        [made] = await at.call("create_runs_v1", [items.created(run_id)], on=creator)
        assert made["outcome"] == "ok"
        await asyncio.sleep(0.4)
        while_open = await claims(successor)
        await creator.commit()
        epochs = while_open | await claims(successor)
    await at.rows(ADOPT, "s2", 3, epochs[3], None, 10)
    assert (await at.head(run_id))["epoch"] == epochs[3]


@pytest.mark.invariant("I5")
@pytest.mark.parametrize("how", ["from outside", "by its parent"])
async def test_creation_that_hangs_holds_up_no_renewal_and_still_fences_a_claim(at: Desk, how: str) -> None:
    """Its epoch holds as long as nobody takes the shard over; that the lease runs longer is no matter of it."""
    run_id, parent = "00000000-0000-4000-8000-000000000013", await at.create("00000000-0000-4000-8000-000000000001")
    async with at.another(autocommit=False) as creator, at.another() as successor:
        if how == "from outside":
            await at.call("create_runs_v1", [items.created(run_id)], on=creator)
        else:
            await at.call("append_v1", [at.appending(parent, items.child(parent, "c", run_id))], on=creator)
        for renewal in ("renew_shards_v1('s1', 60)", "renew_shards_v3('s1', '', 't', 60, false, '{}')"):
            await successor.execute("SET statement_timeout = '20s'")
            renewed_ = await (await successor.execute(f"SELECT * FROM backburner.{renewal}")).fetchall()
            assert len(renewed_) == 16
        await successor.execute("UPDATE backburner.shards SET expires_at = '-infinity'")
        taken = {row["shard"] for row in await (await successor.execute(CLAIM, ["s2", 60.0, 16])).fetchall()}
        assert 3 not in taken, "the run is not there yet, and would never be adopted"
        await creator.commit()
        assert {row["shard"] for row in await (await successor.execute(CLAIM, ["s2", 60.0, 16])).fetchall()} == {3}
    [adopted] = [
        row for row in await at.rows(ADOPT, "s2", 3, at.epochs[3] + 1, None, 10) if str(row["run_id"]) == run_id
    ]
    assert adopted["epoch"] == at.epochs[3] + 1


# -- strikes and sessions ----------------------------------------------------------------------------------------


async def test_strikes_count_replays_and_are_cleared_by_an_iteration(at: Desk) -> None:
    run_id = await at.create()
    strike = "SELECT backburner.strike_v1(%s, %s) AS n"
    counted = [(await at.rows(strike, run_id, at.epoch(run_id)))[0]["n"] for _ in range(3)]
    assert counted == [1, 2, 3]
    assert (await at.rows(strike, run_id, 99))[0]["n"] is None
    await at.append(run_id, items.row("PROCESS_LOG"))
    assert (await at.head(run_id))["strikes"] == 0


@pytest.mark.invariant("I3")
async def test_each_hello_is_a_newer_session(at: Desk) -> None:
    async def hello() -> int:
        async with at.another() as connection:
            cursor = await connection.execute(
                "SELECT * FROM backburner.executor_hello_v1(%s::jsonb)", [json.dumps(items.hello("e9"))]
            )
            return int((await cursor.fetchall())[0]["session_no"])

    assert sorted(await asyncio.gather(*(hello() for _ in range(10)))) == list(range(1, 11))


async def test_signs_of_life_and_the_end_of_an_old_session_do_not_touch_the_new_one(at: Desk) -> None:
    old, new = at.session_no, await at.hello()
    await at.rows("SELECT backburner.executor_gone_v1('e1', %s)", old)
    seen = '[{"executor_id": "e1", "session_no": %s, "state": "DRAINING"}]'
    await at.rows("SELECT backburner.executors_seen_v1(%s::jsonb)", seen % old)
    [executor] = await at.rows("SELECT * FROM backburner.executors WHERE executor_id = 'e1'")
    assert (executor["state"], executor["session_no"]) == ("CONNECTED", new)
    await at.rows("SELECT backburner.executors_seen_v1(%s::jsonb)", seen % new)
    [executor] = await at.rows("SELECT * FROM backburner.executors WHERE executor_id = 'e1'")
    assert executor["state"] == "DRAINING"
