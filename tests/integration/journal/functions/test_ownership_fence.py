"""The owner's fence at the moment that counts: after the head is locked, never with an older snapshot."""

import asyncio

import psycopg
import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk

LOG = items.row("PROCESS_LOG", 1, level="INFO", message="here")


@pytest.mark.invariant("I5")
async def test_replica_that_lost_the_shard_cannot_append(at: Desk) -> None:
    run_id = await at.create()
    shard = int(run_id[-2:], 16) % 16
    await at.rows("UPDATE backburner.shards SET expires_at = '-infinity' RETURNING shard")
    taken = await at.rows("SELECT * FROM backburner.claim_shards_v1('s2', '', 't', 3600, 16)")
    epoch = {row["shard"]: row["epoch"] for row in taken}[shard]
    adopted = await at.rows("SELECT * FROM backburner.adopt_runs_v1('s2', %s, %s, NULL, 10)", shard, epoch)
    assert [str(row["run_id"]) for row in adopted] == [run_id]
    assert (await at.append(run_id, LOG))["outcome"] == "stale_epoch"
    assert (await at.append(run_id, LOG, epoch=epoch))["outcome"] == "ok"


@pytest.mark.invariant("I5")
async def test_epoch_is_checked_after_the_wait_for_the_head(at: Desk) -> None:
    """Adoption commits while the old owner's append waits for the row: the append must see the new epoch."""
    run_id = await at.create()
    shard = int(run_id[-2:], 16) % 16
    async with at.another(autocommit=False) as other:
        await other.execute("UPDATE backburner.shards SET owner = 's2', epoch = epoch + 1 WHERE shard = %s", [shard])
        adopt = "SELECT * FROM backburner.adopt_runs_v1('s2', %s, %s, NULL, 10)"
        await other.execute(adopt, [shard, at.epochs[shard] + 1])
        waiting = asyncio.create_task(at.append(run_id, LOG))
        await at.waits(waiting)
        assert not waiting.done()
        await other.commit()
        assert (await waiting)["outcome"] == "stale_epoch"
    assert await at.types(run_id) == []


async def test_key_that_the_run_has_is_refused_and_changes_nothing(at: Desk) -> None:
    run_id = await at.create()
    await at.request(run_id, "a")
    with pytest.raises(psycopg.errors.UniqueViolation):
        await at.append(run_id, LOG, items.requested(run_id, "a"))
    assert await at.types(run_id) == ["EFFECT_REQUESTED"]
