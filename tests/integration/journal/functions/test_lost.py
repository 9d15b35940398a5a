"""attempts_lost_v1 and readopt_v1: attempts whose executor is gone, or came back."""

import asyncio

import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk


@pytest.mark.invariant("I13")
async def test_lost_attempt_is_retried_by_policy(at: Desk) -> None:
    run_id = await at.running("a", max_attempts=2)
    told = await at.lose(run_id, "a")
    assert (told["outcome"], [row["type"] for row in told["extra"]]) == ("ok", ["EFFECT_ATTEMPT_LOST"])
    assert told["extra"][0]["data"]["next_attempt_at"]
    [again] = await at.claim(known=True)
    assert (again["attempt"], (await at.effect(run_id, "a"))["starts"]) == (2, 2)


@pytest.mark.invariant("I10")
async def test_last_attempt_lost_settles_the_effect_with_death_unproven(at: Desk) -> None:
    run_id = await at.running("a", max_attempts=1)
    told = await at.lose(run_id, "a")
    assert [row["type"] for row in told["extra"]] == ["EFFECT_ATTEMPT_LOST", "EFFECT_RESOLVED"]
    data = told["extra"][1]["data"]
    assert (data["state"], data["death"]) == ("EFFECT_STATE_FAILED", "DEATH_UNPROVEN")
    assert data["error"]["reason"] == "EFFECT_REASON_EXECUTOR_LOST"
    assert "next_attempt_at" not in told["extra"][0]["data"]


@pytest.mark.invariant("I10")
async def test_lost_attempt_whose_cancel_was_asked_for_is_cancelled_with_death_unproven(at: Desk) -> None:
    run_id = await at.running("a", max_attempts=5)
    await at.one("request_cancels_v1", items.cancel_request(run_id, "a"))
    told = await at.lose(run_id, "a")
    assert [row["type"] for row in told["extra"]] == ["EFFECT_ATTEMPT_LOST", "EFFECT_CANCELLED"]
    assert told["extra"][1]["data"] == {
        "reason": "EFFECT_REASON_REQUESTED", "message": "enough", "death": "DEATH_UNPROVEN",
    }  # fmt: skip
    assert await at.queued() == set()


@pytest.mark.invariant("I3")
async def test_attempt_that_never_started_does_not_count(at: Desk) -> None:
    """At most once with max_attempts=1 still allows the attempt that is provably the first."""
    run_id = await at.running("a", max_attempts=1)
    told = await at.lose(run_id, "a", never_started=True)
    assert told["extra"][0]["data"]["never_started"] is True
    assert (await at.effect(run_id, "a"))["starts"] == 0
    [again] = await at.claim(known=True)
    assert again["attempt"] == 2
    assert (await at.settle(run_id, "a", attempt=2))["outcome"] == "ok"


async def test_cancelled_before_it_started_is_known_to_be_dead(at: Desk) -> None:
    run_id = await at.running("a")
    await at.one("request_cancels_v1", items.cancel_request(run_id, "a"))
    told = await at.lose(run_id, "a", never_started=True)
    assert "death" not in told["extra"][-1]["data"]


@pytest.mark.parametrize("columns", [{"non_retryable": ["EXECUTOR_LOST"]}, {"total_timeout_s": 5.0, "initial_s": 60.0}])
async def test_lost_attempt_is_not_retried_against_policy(at: Desk, columns: items.Item) -> None:
    run_id = await at.running("a", max_attempts=5, **columns)
    assert [row["type"] for row in (await at.lose(run_id, "a"))["extra"]] == ["EFFECT_ATTEMPT_LOST", "EFFECT_RESOLVED"]


@pytest.mark.invariant("I5")
@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"epoch": 0}, "stale_epoch"),
        ({"epoch": None}, "stale_epoch"),
        ({"attempt": 2}, "stale_attempt"),
        ({"attempt": None}, "stale_attempt"),
        ({"run_id": items.NOWHERE}, "not_found"),
        ({"effect_id": items.NOWHERE}, "not_found"),
    ],
    ids=str,
)
async def test_loss_that_is_not_the_owners_to_declare_is_refused(at: Desk, fields: items.Item, outcome: str) -> None:
    run_id = await at.running("a")
    item = items.lost(run_id, "a", at.epoch(run_id)) | fields
    assert (await at.one("attempts_lost_v1", item))["outcome"] == outcome
    assert (await at.effect(run_id, "a"))["state"] == "DISPATCHED"


@pytest.mark.invariant("I14")
async def test_repeated_loss_writes_nothing(at: Desk) -> None:
    retried, over = await at.running("a", max_attempts=2), await at.running("a", max_attempts=1)
    answers = [(await at.lose(run_id, "a"))["outcome"] for run_id in (retried, over, retried, over)]
    assert answers == ["ok", "ok", "stale_attempt", "settled"]
    assert (await at.types(retried)).count("EFFECT_ATTEMPT_LOST") == 1


@pytest.mark.invariant("I2")
async def test_result_that_commits_first_wins_over_the_loss(at: Desk) -> None:
    run_id = await at.running("a")
    async with at.another(autocommit=False) as executor, at.another() as owner:
        assert (await at.one("attempts_settle_v1", items.settled(run_id, "a"), on=executor))["outcome"] == "ok"
        losing = asyncio.create_task(
            at.one("attempts_lost_v1", items.lost(run_id, "a", at.epoch(run_id)), on=owner)
        )  # fmt: skip
        await at.waits(losing)
        await executor.commit()
        assert (await losing)["outcome"] == "settled"


async def test_call_about_many_runs_hands_back_the_one_that_is_held(at: Desk) -> None:
    """Its effect is held as well: it must not be waited for either."""
    held, free = await at.running("a"), await at.running("a")
    async with at.another(autocommit=False) as other:
        await at.one("attempts_settle_v1", items.settled(held, "a", "failed"), on=other)
        async with asyncio.timeout(30):
            sent = [items.lost(run_id, "a", at.epoch(run_id)) for run_id in (held, free)]
            answers = await at.call("attempts_lost_v1", sent)
    assert [a["outcome"] for a in answers] == ["busy", "ok"]


@pytest.mark.invariant("I13")
async def test_detached_attempt_of_an_ended_run_is_declared_lost_by_the_next_owner(at: Desk) -> None:
    run_id = await at.running("a", on_run_end="DETACH", max_attempts=1)
    await at.append(run_id, items.row("RUN_COMPLETED"))
    await at.rows("UPDATE backburner.shards SET expires_at = '-infinity' RETURNING 1")
    taken = await at.rows("SELECT * FROM backburner.claim_shards_v1('s2', '', 't', 3600, 16)")
    at.epochs = {row["shard"]: row["epoch"] for row in taken}
    for shard, epoch in at.epochs.items():
        await at.rows("SELECT * FROM backburner.adopt_runs_v1('s2', %s, %s, NULL, 10)", shard, epoch)
    assert (await at.lose(run_id, "a"))["outcome"] == "ok"
    assert (await at.effect(run_id, "a"))["state"] == "FAILED"


# -- readoption --------------------------------------------------------------------------------------------------


def readoption(run_id: str, session_no: int, **fields: object) -> items.Item:
    return {
        "run_id": run_id, "effect_id": items.effect_id(run_id, "a"), "attempt": 1, "executor_id": items.EXECUTOR,
        "incarnation": items.INCARNATION, "session_no": session_no,
    } | fields  # fmt: skip


@pytest.mark.invariant("I3", "I14")
async def test_reported_attempt_belongs_to_the_new_session(at: Desk) -> None:
    run_id = await at.running("a")
    newer = await at.hello()
    item = readoption(run_id, newer)
    assert [(await at.one("readopt_v1", item))["outcome"] for _ in range(2)] == ["ok", "ok"]
    assert (await at.effect(run_id, "a"))["session_no"] == newer
    assert (await at.settle(run_id, "a"))["outcome"] == "ok"


@pytest.mark.parametrize(
    "fields",
    [{"attempt": 2}, {"incarnation": "another"}, {"executor_id": "e2"}, {"run_id": items.NOWHERE}, {"session_no": 1}],
    ids=str,
)
async def test_only_the_attempt_as_it_stands_is_readopted(at: Desk, fields: items.Item) -> None:
    run_id = await at.running("a")
    newest = await at.hello()
    assert (await at.one("readopt_v1", readoption(run_id, newest)))["outcome"] == "ok"
    assert (await at.one("readopt_v1", readoption(run_id, newest) | fields))["outcome"] == "stale_attempt"
    assert (await at.effect(run_id, "a"))["session_no"] == newest


async def test_settled_attempt_is_not_readopted(at: Desk) -> None:
    run_id = await at.running("a")
    await at.settle(run_id, "a")
    assert (await at.one("readopt_v1", readoption(run_id, await at.hello())))["outcome"] == "stale_attempt"
