"""claim_v1: who is next, for which session, and what is looked at again under the head lock."""

import asyncio
from typing import Any

import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk, Row


def keys(taken: list[Row]) -> list[str]:
    return [row["effect_key"] for row in taken if row["token_index"] >= 0]


@pytest.mark.invariant("I1")
async def test_claim_dispatches_and_answers_with_what_the_start_needs(at: Desk) -> None:
    run_id = await at.create()
    await at.request(run_id, "a", total_timeout_s=60.0)
    [taken] = await at.claim()
    assert (str(taken["run_id"]), taken["effect_key"], taken["attempt"], taken["seq"]) == (run_id, "a", 1, 3)
    assert (taken["name"], taken["harness"], taken["pool"], taken["background"]) == (
        "noop",
        "function",
        "functions",
        False,
    )
    assert 59 < taken["total_remaining_s"] <= 60
    assert taken["spec"] == '{"name": "noop", "function": {"function": "noop"}}'
    effect = await at.effect(run_id, "a")
    assert (effect["state"], effect["attempt"], effect["starts"]) == ("DISPATCHED", 1, 1)
    assert effect["session_no"] == at.session_no
    assert (await at.queued(), await at.claim()) == (set(), [])


async def test_each_attempt_gets_the_token_its_answer_names(at: Desk) -> None:
    runs = [await at.create() for _ in range(3)]
    for run_id in runs:
        await at.request(run_id, "a", "b")
    taken = await at.claim(6)
    assert sorted(row["token_index"] for row in taken) == list(range(6))
    assert len({bytes((await at.effect(str(r["run_id"]), r["effect_key"]))["token_hash"]) for r in taken}) == 6


async def test_foreground_comes_first_and_background_keeps_to_its_share(at: Desk) -> None:
    run_id = await at.create()
    await at.request(run_id, *(f"b{n}" for n in range(5)), background=True, priority=9)
    await at.request(run_id, "f0", "f1")
    assert set(keys(await at.claim(slots=4, background=3))) == {"f0", "f1", "b0", "b1"}
    assert set(keys(await at.claim(slots=3, background=1))) == {"b2"}
    assert keys(await at.claim(slots=3, background=0)) == []


async def test_higher_priority_comes_first_then_the_older(at: Desk) -> None:
    run_id = await at.create()
    await at.request(run_id, "old", "older still waits")
    await at.request(run_id, "urgent", priority=1)
    await at.request(run_id, "urgent later", priority=1)
    assert [keys(await at.claim(slots=1)) for _ in range(3)] == [["urgent"], ["urgent later"], ["old"]]


async def test_waiting_makes_up_for_priority(at: Desk) -> None:
    """30 seconds of waiting are worth one step."""
    run_id = await at.create()
    await at.request(run_id, "old")
    await at.rows("UPDATE backburner.dispatch_queue SET rank = rank - interval '31 s' RETURNING 1")
    await at.request(run_id, "urgent", priority=1)
    assert keys(await at.claim(slots=1)) == ["old"]


@pytest.mark.parametrize(
    ("columns", "offer"),
    [
        ({"not_before": "2040-01-01T00:00:00Z"}, {}),
        ({"capabilities": ["function/other"]}, {}),
        ({"executor_labels": {"gpu": "yes"}}, {}),
        ({"executor_labels": {"gpu": "yes"}}, {"labels": {"gpu": "no"}}),
        ({"pool": "agents"}, {}),
        ({}, {"namespace": "other"}),
        ({}, {"session_no": 99}),
        ({}, {"incarnation": "another"}),
        ({}, {"executor_id": "unknown"}),
    ],
    ids=str,
)
async def test_what_does_not_fit_is_left(at: Desk, columns: dict[str, Any], offer: dict[str, Any]) -> None:
    run_id = await at.create()
    await at.request(run_id, "a", **columns)
    assert await at.claim(**offer) == []
    assert await at.queued() == {items.effect_id(run_id, "a")}


async def test_what_fits_is_taken(at: Desk) -> None:
    run_id = await at.create()
    await at.request(run_id, "a", executor_labels={"gpu": "yes"}, not_before="2020-01-01T00:00:00Z")
    assert keys(await at.claim(labels={"gpu": "yes", "disk": "big"})) == ["a"]


async def test_harness_is_the_first_alternative_that_the_executor_has(at: Desk) -> None:
    run_id = await at.create()
    alternatives = ["agent/claude-code", "agent/codex", "agent/x"]
    await at.request(run_id, "a", kind="AGENT", capabilities=alternatives)
    [taken] = await at.claim(capabilities=["agent/x", "agent/codex"])
    assert (taken["harness"], taken["data"]["harness"]) == ("codex", "codex")


@pytest.mark.invariant("I1")
async def test_draining_executor_gets_nothing(at: Desk) -> None:
    run_id = await at.create()
    await at.request(run_id, "a")
    session_no = await at.hello(draining=True)
    assert await at.claim(session_no=session_no) == []


async def test_group_runs_at_most_its_limit_at_a_time(at: Desk) -> None:
    run_id = await at.create()
    await at.request(run_id, *(f"k{n}" for n in range(5)), group_id="g", group_max=2)
    assert keys(await at.claim(known=True)) == ["k0", "k1"]
    assert keys(await at.claim()) == []
    await at.settle(run_id, "k0")
    assert keys(await at.claim()) == ["k2"]


@pytest.mark.invariant("I11")
async def test_full_group_does_not_hold_up_what_waits_behind_it(at: Desk) -> None:
    """Its queued effects are the oldest, and more than there are slots: the others must be seen all the same."""
    hog, other = await at.create(), await at.create()
    await at.request(hog, *(f"k{n}" for n in range(30)), group_id="g", group_max=1)
    assert keys(await at.claim(slots=4)) == ["k0"]
    await at.request(other, "a")
    assert keys(await at.claim(slots=4)) == ["a"]


@pytest.mark.invariant("I11")
@pytest.mark.parametrize("parking", ["RUN_HALTED", "PROCESS_RUNTIME_ERROR"])
async def test_parked_run_is_not_dispatched_and_holds_up_nobody(at: Desk, parking: str) -> None:
    parked, other = await at.create(), await at.create()
    await at.request(parked, *(f"k{n}" for n in range(30)))
    await at.append(parked, items.row(parking, 1, error={"kind": "EXCEPTION"}))
    await at.request(other, "a")
    assert keys(await at.claim(slots=4)) == ["a"]
    await at.one("resume_runs_v1", items.control(parked))
    assert keys(await at.claim(slots=4)) == ["k0", "k1", "k2", "k3"]


async def test_detached_effects_of_an_ended_run_are_dispatched(at: Desk) -> None:
    run_id = await at.create()
    await at.request(run_id, "detached", on_run_end="DETACH")
    await at.append(run_id, items.row("RUN_COMPLETED"))
    assert keys(await at.claim()) == ["detached"]


@pytest.mark.invariant("I3")
async def test_claims_of_two_sessions_share_the_queue(at: Desk) -> None:
    runs = [await at.create() for _ in range(8)]
    for run_id in runs:
        await at.request(run_id, *(f"k{n}" for n in range(5)))
    other = await at.hello("e2", incarnation="i2")

    async def claims(**session: Any) -> list[Row]:
        """Claims until nothing is left: each leaves what the other holds at the moment."""
        mine: list[Row] = []
        async with at.another() as connection:
            for _ in range(200):
                mine += await at.claim(4, on=connection, **session)
                if not await at.queued():
                    break
        return mine

    both = await asyncio.gather(claims(), claims(executor_id="e2", incarnation="i2", session_no=other))
    taken = [(row["run_id"], row["effect_key"]) for one in both for row in one if row["token_index"] >= 0]
    assert len(taken) == len(set(taken)) == 40


@pytest.mark.invariant("I3")
async def test_run_that_is_held_is_left_for_the_next_claim(at: Desk) -> None:
    """The caller is told to come again; the cancel that held the run is then seen."""
    held, free = await at.create(), await at.create()
    await at.request(held, "a")
    await at.request(free, "b")
    async with at.another(autocommit=False) as other:
        cancelled = await at.one("request_cancels_v1", items.cancel_request(held, "a"), on=other)
        assert cancelled["outcome"] == "ok"
        async with asyncio.timeout(30):
            taken = await at.claim()
        await other.commit()
    assert (keys(taken), taken[-1]["token_index"]) == (["b"], -1)
    assert await at.claim() == []
    assert await at.types(held) == ["EFFECT_REQUESTED", "EFFECT_CANCEL_REQUESTED", "EFFECT_CANCELLED"]
