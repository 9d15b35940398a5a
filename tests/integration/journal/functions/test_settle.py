"""attempts_settle_v1: each effect settles once, by the holder of its attempt's token; retries are decided here."""

import asyncio
from typing import Any

import psycopg
import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk

SETTLING = ("EFFECT_RESOLVED", "EFFECT_CANCELLED")


@pytest.mark.invariant("I2")
async def test_success_settles_the_effect(at: Desk) -> None:
    run_id = await at.running("a")
    done = await at.settle(run_id, "a")
    assert (done["outcome"], done["type"], done["seq"], done["effect_key"]) == ("ok", "EFFECT_RESOLVED", 4, "a")
    effect = await at.effect(run_id, "a")
    assert (effect["state"], effect["settled_seq"], effect["elapsed_s"]) == ("SUCCEEDED", 4, 0.25)
    row = (await at.journal(run_id))[-1]
    assert row["writer"] == f"executor/{items.EXECUTOR}"
    assert row["data"] == {
        "state": "EFFECT_STATE_SUCCEEDED", "result": {"value": {"value": "a"}}, "elapsed": "0.250000s",
    }  # fmt: skip


@pytest.mark.invariant("I2", "I14")
async def test_repeated_settlement_answers_with_the_recorded_row(at: Desk) -> None:
    run_id = await at.running("a")
    first = await at.settle(run_id, "a")
    again = await at.settle(run_id, "a", "failed")
    assert again == first | {"outcome": "already"}
    assert (await at.types(run_id)).count("EFFECT_RESOLVED") == 1


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("answers", [("succeeded", "succeeded"), ("succeeded", "failed"), ("cancelled", "timed_out")])
async def test_two_connections_settling_at_a_time_settle_once(at: Desk, answers: tuple[str, str]) -> None:
    """Both calls are under way before either commits: the second waits for the head, then finds it settled."""
    run_id = await at.running("a")
    async with at.another(autocommit=False) as one, at.another() as two:
        sent = [items.settled(run_id, "a", outcome) for outcome in answers]
        first = await at.one("attempts_settle_v1", sent[0], on=one)
        second = asyncio.create_task(at.one("attempts_settle_v1", sent[1], on=two))
        await at.waits(second)
        assert not second.done()
        await one.commit()
        assert (first["outcome"], (await second)["outcome"]) == ("ok", "already")
        assert (await second)["seq"] == first["seq"]
    assert sum(type_ in SETTLING for type_ in await at.types(run_id)) == 1


@pytest.mark.invariant("I2")
@pytest.mark.slow
async def test_many_connections_racing_to_settle_settle_each_effect_once(at: Desk) -> None:
    keys = [f"k{n}" for n in range(40)]
    run_id = await at.running(*keys)

    async def settle(outcome: str, order: int) -> list[str]:
        async with at.another() as connection:
            said = []
            for key in keys[::order]:
                row = await at.one("attempts_settle_v1", items.settled(run_id, key, outcome), on=connection)
                said.append(row["outcome"])
            return said

    said = await asyncio.gather(*(settle(o, d) for o in ("succeeded", "failed", "cancelled") for d in (1, -1)))
    assert sum(outcome == "ok" for one in said for outcome in one) == len(keys)
    assert sum(type_ in SETTLING for type_ in await at.types(run_id)) == len(keys)


async def test_outcomes_of_one_call_take_seqs_in_the_order_sent(at: Desk) -> None:
    run_id = await at.running("a", "b", "c")
    answers = await at.call("attempts_settle_v1", [items.settled(run_id, key) for key in ("c", "a", "b")])
    first = answers[0]["seq"]
    assert [(a["effect_key"], a["seq"]) for a in answers] == [("c", first), ("a", first + 1), ("b", first + 2)]


async def test_each_item_of_a_call_has_its_own_outcome(at: Desk) -> None:
    one, two = await at.running("a", "b"), await at.running("a")
    await at.settle(one, "b")
    answers = await at.call(
        "attempts_settle_v1",
        [
            items.settled(one, "a", token="00" * 16),
            items.settled(two, "a"),
            items.settled(one, "b"),
            items.settled(one, "unknown"),
            items.settled(items.NOWHERE, "a"),
            items.settled(one, "a", effect_id=items.effect_id(two, "a")),
        ],
    )
    assert [a["outcome"] for a in answers] == ["stale", "ok", "already", "not_found", "not_found", "not_found"]


async def test_call_about_many_runs_hands_back_the_one_that_is_held(at: Desk) -> None:
    held, free = await at.running("a"), await at.running("a")
    async with at.another(autocommit=False) as other:
        await other.execute("SELECT 1 FROM backburner.run_heads WHERE run_id = %s FOR UPDATE", [held])
        async with asyncio.timeout(30):
            answers = await at.call("attempts_settle_v1", [items.settled(held, "a"), items.settled(free, "a")])
    assert [a["outcome"] for a in answers] == ["busy", "ok"]
    assert (await at.settle(held, "a"))["outcome"] == "ok"


@pytest.mark.invariant("I2")
async def test_attempt_that_is_twice_in_one_call_settles_once(at: Desk) -> None:
    """The second is handed back, and finds the first when it comes again."""
    run_id = await at.running("a")
    answers = await at.call("attempts_settle_v1", [items.settled(run_id, "a"), items.settled(run_id, "a")])
    assert [a["outcome"] for a in answers] == ["ok", "busy"]
    assert (await at.settle(run_id, "a"))["outcome"] == "already"


# -- fences ------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("I2", "I11")
@pytest.mark.parametrize("forged", [{"token": "00" * 16}, {"token": ""}, {"token": None}, {"attempt": 2}], ids=str)
async def test_outcome_without_the_attempts_token_changes_nothing(at: Desk, forged: items.Item) -> None:
    """Nor does it fill the run's history: what was never an attempt is not evidence of one."""
    run_id = await at.running("a")
    assert (await at.one("attempts_settle_v1", items.settled(run_id, "a") | forged))["outcome"] == "stale"
    assert await at.types(run_id) == ["EFFECT_REQUESTED", "EFFECT_DISPATCHED"]
    assert (await at.settle(run_id, "a"))["outcome"] == "ok"


async def test_malformed_token_fails_the_call(at: Desk) -> None:
    run_id = await at.running("a")
    with pytest.raises(psycopg.errors.DataError):
        await at.settle(run_id, "a", token="not hexadecimal")
    assert (await at.effect(run_id, "a"))["settled_seq"] is None


async def test_no_token_is_not_the_token_of_an_effect_that_has_none(at: Desk) -> None:
    """An executor may not read what was answered to an approval: it has no right to read the journal at all."""
    run_id = await at.create()
    await at.request(run_id, "a", kind="EXTERNAL", capabilities=[], pool="")
    await at.one("resolve_external_v1", items.answer(run_id, "a", result={"value": {"value": "secret"}}))
    told = await at.one("attempts_settle_v1", items.settled(run_id, "a") | {"attempt": 0, "token": None})
    assert "secret" not in (told["data"] or "")


async def test_recorded_row_is_told_only_to_the_holder_of_the_token(at: Desk) -> None:
    run_id = await at.running("a", max_attempts=2)
    await at.settle(run_id, "a", "failed", result={"value": {"value": "secret"}})
    told = await at.settle(run_id, "a", token="00" * 16)
    assert told["outcome"] == "stale"
    assert "secret" not in (told["data"] or "")


@pytest.mark.invariant("I2")
async def test_result_of_a_lost_attempt_that_was_retried_is_evidence(at: Desk) -> None:
    run_id = await at.running("a", max_attempts=3)
    await at.lose(run_id, "a")
    [again] = await at.claim(known=True)
    assert again["attempt"] == 2
    assert (await at.settle(run_id, "a"))["outcome"] == "stale"
    evidence = (await at.journal(run_id))[-1]
    assert (evidence["type"], evidence["attempt"]) == ("EFFECT_SUPERSEDED", 1)
    assert evidence["data"]["refused_data"]["result"] == {"value": {"value": "a"}}
    assert "token" not in str(evidence["data"])
    assert (await at.settle(run_id, "a", attempt=2))["outcome"] == "ok"


@pytest.mark.invariant("I2")
async def test_result_after_the_loss_settled_the_effect_is_evidence(at: Desk) -> None:
    run_id = await at.running("a", max_attempts=1)
    await at.lose(run_id, "a")
    assert (await at.settle(run_id, "a"))["outcome"] == "stale"
    assert (await at.journal(run_id))[-1]["data"]["cause"] == "settled"
    assert (await at.effect(run_id, "a"))["state"] == "FAILED"


@pytest.mark.invariant("I2")
async def test_result_of_a_lost_attempt_that_waits_for_its_retry_is_evidence(at: Desk) -> None:
    """Lost, queued again, not dispatched yet: `already` would tell the executor that its success was recorded."""
    run_id = await at.running("a", max_attempts=3)
    await at.lose(run_id, "a")
    assert (await at.settle(run_id, "a"))["outcome"] == "stale"
    assert (await at.types(run_id))[-1] == "EFFECT_SUPERSEDED"


@pytest.mark.invariant("I14", "I11")
async def test_repeated_stale_outcome_is_kept_once(at: Desk) -> None:
    run_id = await at.running("a", max_attempts=1)
    await at.lose(run_id, "a")
    for _ in range(3):
        assert (await at.settle(run_id, "a"))["outcome"] == "stale"
    assert (await at.types(run_id)).count("EFFECT_SUPERSEDED") == 1


@pytest.mark.invariant("I11")
async def test_oversized_outcome_is_refused(at: Desk) -> None:
    run_id = await at.running("a")
    with pytest.raises(psycopg.errors.ProgramLimitExceeded):
        await at.settle(run_id, "a", result={"value": {"value": "x" * 5_000_000}})
    assert (await at.settle(run_id, "a"))["outcome"] == "ok"


# -- retry or final ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "said", "becomes"),
    [
        ({"max_attempts": 2}, {}, "EFFECT_ATTEMPT_FAILED"),
        ({"max_attempts": 1}, {}, "EFFECT_RESOLVED"),
        ({"max_attempts": 2}, {"final": True}, "EFFECT_RESOLVED"),
        ({"max_attempts": 2, "non_retryable": ["EXIT_CODE"]}, {}, "EFFECT_RESOLVED"),
        ({"max_attempts": 2, "non_retryable": ["OTHER"]}, {}, "EFFECT_ATTEMPT_FAILED"),
        ({"max_attempts": 2, "total_timeout_s": 5.0}, {}, "EFFECT_ATTEMPT_FAILED"),
        ({"max_attempts": 2, "total_timeout_s": 5.0}, {"retry_after_s": 6.0}, "EFFECT_RESOLVED"),
        ({"max_attempts": 2, "total_timeout_s": 5.0, "initial_s": 60.0}, {}, "EFFECT_RESOLVED"),
        ({"max_attempts": 2}, {"outcome": "timed_out"}, "EFFECT_ATTEMPT_FAILED"),
        ({"max_attempts": 2}, {"outcome": "cancelled"}, "EFFECT_CANCELLED"),
    ],
    ids=str,
)
async def test_retry_or_final_is_decided_in_the_same_commit(
    at: Desk, columns: dict[str, Any], said: dict[str, Any], becomes: str
) -> None:
    run_id = await at.running("a", **columns)
    row = await at.settle(run_id, "a", **({"outcome": "failed"} | said))
    assert (row["outcome"], row["type"]) == ("ok", becomes)
    retried = becomes == "EFFECT_ATTEMPT_FAILED"
    assert await at.queued() == ({items.effect_id(run_id, "a")} if retried else set())
    assert ((await at.effect(run_id, "a"))["state"] == "QUEUED") == retried


async def test_pause_grows_and_keeps_its_bounds(at: Desk) -> None:
    """initial * backoff^(n - 1), at most max_interval, at most half of it taken off."""
    for starts, most in ((1, 2.0), (2, 6.0), (3, 18.0), (4, 20.0), (1000, 20.0)):
        [drawn] = await at.rows(
            "SELECT min(p), max(p), count(DISTINCT p) AS n FROM (SELECT backburner.retry_pause(2, 3, 20, %s) AS p "
            "FROM generate_series(1, 200)) x", starts,
        )  # fmt: skip
        assert most / 2 <= drawn["min"] <= drawn["max"] <= most
        assert drawn["n"] > 100, "no jitter"


async def test_no_policy_is_too_large_for_a_pause(at: Desk) -> None:
    for initial in (0, 1e-9, 315_360_000):
        [drawn] = await at.rows("SELECT backburner.retry_pause(%s, 1e308, 315360000, 1000) AS p", initial)
        assert 0 <= drawn["p"] <= 315_360_000


async def test_proposed_pause_is_kept(at: Desk) -> None:
    run_id = await at.running("a", max_attempts=2)
    row = await at.settle(run_id, "a", "failed", retry_after_s=600.0)
    effect = await at.effect(run_id, "a")
    assert (effect["not_before"] - row["recorded_at"]).total_seconds() == 600
    assert await at.claim() == []


async def test_attempts_are_counted_by_starts(at: Desk) -> None:
    """Two starts allowed: the first attempt never started, so that the third is the second start."""
    run_id = await at.running("a", max_attempts=2)
    await at.lose(run_id, "a", never_started=True)
    [second] = await at.claim(known=True)
    assert (await at.settle(run_id, "a", "failed", second["attempt"]))["type"] == "EFFECT_ATTEMPT_FAILED"
    [third] = await at.claim(known=True)
    assert third["attempt"] == 3
    assert (await at.settle(run_id, "a", "failed", 3))["type"] == "EFFECT_RESOLVED"


# -- with a cancel asked for -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "becomes", "state"),
    [
        ("succeeded", "EFFECT_RESOLVED", "SUCCEEDED"),
        ("failed", "EFFECT_CANCELLED", "CANCELLED"),
        ("timed_out", "EFFECT_CANCELLED", "CANCELLED"),
        ("cancelled", "EFFECT_CANCELLED", "CANCELLED"),
    ],
)
async def test_end_of_an_attempt_whose_cancel_was_asked_for(at: Desk, outcome: str, becomes: str, state: str) -> None:
    """A success stays a success; everything else is the cancel, with its reason, and is not retried."""
    run_id = await at.running("a", max_attempts=5)
    await at.one("request_cancels_v1", items.cancel_request(run_id, "a"))
    row = await at.settle(run_id, "a", outcome)
    assert (row["outcome"], row["type"]) == ("ok", becomes)
    effect = await at.effect(run_id, "a")
    assert (effect["state"], await at.queued()) == (state, set())
    if becomes == "EFFECT_CANCELLED":
        data = (await at.journal(run_id))[-1]["data"]
        assert (data["reason"], data["message"]) == ("EFFECT_REASON_REQUESTED", "enough")
        assert effect["reason"] == "REQUESTED"
