"""Child runs and continued runs: each begins, is asked to end, and ends for its parent in one commit with the cause."""

import asyncio
from typing import Any

import psycopg
import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk


async def parent_and_child(at: Desk, **columns: Any) -> tuple[str, str]:
    parent = await at.create()
    child = items.later_than(parent)
    outcome = await at.append(parent, items.child(parent, "child", child, **columns))
    assert outcome["outcome"] == "ok", outcome
    return parent, child


async def run_row(at: Desk, run_id: str) -> Any:
    return (await at.rows("SELECT * FROM backburner.runs WHERE run_id = %s", run_id))[0]


async def test_a_child_begins_in_the_commit_of_its_request(at: Desk) -> None:
    parent = await at.create(labels={"team": "a"})
    child = items.later_than(parent)
    outcome = await at.append(parent, items.child(parent, "child", child))
    assert await at.types(parent) == ["EFFECT_REQUESTED", "CHILD_RUN_STARTED"]
    [created] = await at.journal(child)
    assert created["data"] == {
        "process": "p", "namespace": "default", "labels": {"team": "a"}, "parent_run_id": parent,
        "parent_effect_id": items.effect_id(parent, "child"),
    }  # fmt: skip
    row = await run_row(at, child)
    assert (row["depth"], row["labels"], str(row["parent_run_id"])) == (1, {"team": "a"}, parent)
    assert (await at.head(child))["epoch"] == at.epoch(child), "its owner need not adopt it"
    assert outcome["detail"]["begun"][0] == {
        "run_id": child, "epoch": at.epoch(child), "head": 1, "data": created["data"],
    }  # fmt: skip
    assert (await at.effect(parent, "child"))["state"] == "WAITING"


@pytest.mark.invariant("I14")
async def test_a_repeated_request_makes_no_second_child(at: Desk) -> None:
    parent = await at.create()
    item = at.appending(parent, items.child(parent, "child"), append_id="one")
    first, again = await at.one("append_v1", item), await at.one("append_v1", item)
    assert (first["outcome"], again["outcome"]) == ("ok", "already")
    assert len(await at.rows("SELECT 1 FROM backburner.runs")) == 2


ENDINGS = [
    (items.row("RUN_COMPLETED", result={"value": {"a": 1}}), "EFFECT_RESOLVED",
     {"state": "EFFECT_STATE_SUCCEEDED", "result": {"value": {"value": {"a": 1}}}}, "SUCCEEDED"),
    (items.row("RUN_COMPLETED"), "EFFECT_RESOLVED", {"state": "EFFECT_STATE_SUCCEEDED"}, "SUCCEEDED"),
    (items.row("RUN_CANCELLED", reason="enough"), "EFFECT_CANCELLED",
     {"reason": "EFFECT_REASON_CANCELLED_BY_USER", "message": "enough"}, "CANCELLED"),
]  # fmt: skip


@pytest.mark.invariant("I2", "I7")
@pytest.mark.parametrize(("ending", "type_", "data", "state"), ENDINGS)
async def test_the_end_of_a_child_settles_its_effect(
    at: Desk, ending: items.Item, type_: str, data: Any, state: str
) -> None:
    parent, child = await parent_and_child(at)
    outcome = await at.append(child, ending)
    last = (await at.journal(parent))[-1]
    assert (last["type"], last["data"], last["effect_key"]) == (type_, data, "child")
    effect = await at.effect(parent, "child")
    assert (effect["state"], effect["settled_seq"]) == (state, last["seq"])
    assert (await at.head(parent))["open_effects"] == 0
    [told] = outcome["detail"]["elsewhere"]
    assert (told["run_id"], told["rows"][0]["seq"]) == (parent, last["seq"])


async def test_a_failed_child_says_why_and_hands_its_session_on(at: Desk) -> None:
    parent, child = await parent_and_child(at)
    error = {"kind": "EFFECT_FAILED", "message": "no luck", "session": {"harness": "codex", "session_id": "s1"}}
    await at.append(child, items.row("RUN_FAILED", error=error))
    data = (await at.journal(parent))[-1]["data"]
    assert data == {
        "state": "EFFECT_STATE_FAILED",
        "error": {"reason": "EFFECT_REASON_CHILD_RUN_FAILED", "message": f"run {child} failed: no luck"},
        "result": {"session": {"harness": "codex", "session_id": "s1"}},
    }


@pytest.mark.invariant("I6")
async def test_the_cancel_of_the_effect_is_the_childs_in_the_same_commit(at: Desk) -> None:
    parent, child = await parent_and_child(at)
    outcome = await at.append(parent, items.cancel(parent, "child"))
    assert (await at.effect(parent, "child"))["state"] == "CANCELLING"
    assert (await at.journal(child))[-1]["data"] == {"reason": "its parent asked: RACE_LOST"}
    assert (await at.head(child))["cancel_requested"]
    assert outcome["detail"]["elsewhere"][0]["run_id"] == child
    again = await at.append(parent, items.cancel(parent, "child"))
    assert "elsewhere" not in again["detail"], "once is enough"
    await at.append(child, items.row("RUN_CANCELLED", reason="its parent asked: RACE_LOST"))
    assert (await at.journal(parent))[-1]["data"] == {"reason": "EFFECT_REASON_RACE_LOST"}


@pytest.mark.invariant("I6")
async def test_a_cancel_from_outside_reaches_the_child(at: Desk) -> None:
    parent, child = await parent_and_child(at)
    answered = await at.one("request_cancels_v1", items.cancel_request(parent, "child"))
    assert (answered["outcome"], await at.types(child)) == ("ok", ["RUN_CANCEL_REQUESTED"])
    assert await at.types(parent, 3) == ["EFFECT_CANCEL_REQUESTED"]


async def test_a_child_that_ran_out_of_time_timed_out(at: Desk) -> None:
    parent, child = await parent_and_child(at)
    await at.append(parent, items.cancel(parent, "child", "TIMEOUT_TOTAL", 0))
    await at.append(child, items.row("RUN_CANCELLED"))
    assert (await at.journal(parent))[-1]["data"]["state"] == "EFFECT_STATE_TIMED_OUT"


async def test_a_child_that_completes_in_spite_of_the_cancel_has_succeeded(at: Desk) -> None:
    parent, child = await parent_and_child(at)
    await at.append(parent, items.cancel(parent, "child"))
    await at.append(child, items.row("RUN_COMPLETED", result={"value": 1}))
    assert (await at.effect(parent, "child"))["state"] == "SUCCEEDED"


async def test_a_refused_child_fails_its_effect_and_is_no_run(at: Desk) -> None:
    parent = await at.create()
    row = items.child(parent, "child")
    del row["x"]["child"]
    row["x"]["refusal"] = {"reason": "EFFECT_REASON_INVALID_WORK", "message": "no such process"}
    await at.append(parent, row)
    assert (await at.journal(parent))[-1]["data"]["error"]["message"] == "no such process"
    assert (await at.head(parent))["open_effects"] == 0
    assert len(await at.rows("SELECT 1 FROM backburner.runs")) == 1


async def test_runs_are_nested_sixteen_deep_and_no_deeper(at: Desk) -> None:
    run_id = await at.create()
    for depth in range(16):
        child = items.later_than(run_id)
        await at.append(run_id, items.child(run_id, "child", child))
        assert (await run_row(at, child))["depth"] == depth + 1
        run_id = child
    await at.append(run_id, items.child(run_id, "child"))
    error = (await at.journal(run_id))[-1]["data"]["error"]
    assert error["message"] == "runs are nested at most 16 deep: let a run above this one start it"


@pytest.mark.invariant("I2", "I4")
async def test_children_that_end_while_their_parent_works_settle_once_each(at: Desk) -> None:
    """Ends of children, cancels of the parent and its appends, all at the same time over the same heads."""
    parent = await at.create()
    children = [items.later_than(parent) for _ in range(12)]
    await at.append(parent, *(items.child(parent, f"c{n}", child) for n, child in enumerate(children)))

    async def end(child: str) -> None:
        async with at.another() as connection:
            for _ in range(200):
                item = at.appending(child, items.row("RUN_COMPLETED", result={"value": 1}))
                if (await at.one("append_v1", item, on=connection))["outcome"] == "ok":
                    return
        raise AssertionError("never")

    async def cancel() -> None:
        async with at.another() as connection:
            for n in range(12):
                await at.one("request_cancels_v1", items.cancel_request(parent, f"c{n}"), on=connection)

    async def log_lines() -> None:
        async with at.another() as connection:
            for _ in range(20):
                item = at.appending(parent, items.row("PROCESS_LOG", message="m"))
                if (await at.one("append_v1", item, on=connection))["outcome"] == "ok":
                    at.iterations[parent] = at.iteration(parent) + 1

    await asyncio.gather(cancel(), log_lines(), *map(end, children))
    settled = [row["effect_key"] for row in await at.journal(parent) if row["type"] == "EFFECT_RESOLVED"]
    assert sorted(settled) == sorted(f"c{n}" for n in range(12))


@pytest.mark.invariant("I6")
async def test_a_run_goes_on_as_another_with_key_parent_signals_and_cancel(at: Desk) -> None:
    parent, child = await parent_and_child(at)
    await at.one("signal_runs_v1", items.signal(child, data={"name": "untaken"}))
    untaken = (await at.head(child))["seq"]
    await at.one("signal_runs_v1", items.signal(child, data={"name": "taken"}))
    seen = (await at.head(child))["seq"]
    await at.one("signal_runs_v1", items.signal(child, data={"name": "late"}))
    await at.one("request_cancels_v1", items.cancel_request(child))
    fresh = items.later_than(child)
    await at.append(child, items.continued(child, fresh, seen, signal_seqs=[untaken]))
    rows = [(row["type"], row["data"].get("name")) for row in await at.journal(fresh)]
    assert rows == [
        ("RUN_CREATED", None), ("SIGNAL_RECEIVED", "untaken"), ("SIGNAL_RECEIVED", "late"),
        ("RUN_CANCEL_REQUESTED", None),
    ]  # fmt: skip
    created = (await at.journal(fresh))[0]["data"]
    assert (created["input"], created["previous_run_id"]) == ({"n": 2}, child)
    old, new = await run_row(at, child), await run_row(at, fresh)
    assert (old["state"], str(old["next_run_id"]), new["depth"]) == ("CONTINUED", fresh, 1)
    assert (await at.effect(parent, "child"))["settled_seq"] is None, "the effect stands for the new run now"
    await at.append(fresh, items.row("RUN_COMPLETED", result={"value": 2}))
    assert (await at.effect(parent, "child"))["state"] == "SUCCEEDED"


async def test_a_key_names_the_newest_run_of_a_chain(at: Desk) -> None:
    run_id = await at.create(key="chain")
    fresh = items.later_than(run_id)
    await at.append(run_id, items.continued(run_id, fresh))
    again = await at.one("create_runs_v1", items.created(items.later_than(fresh), key="chain"))
    assert (again["outcome"], str(again["run_id"]), again["created"]) == ("ok", fresh, False)
    other = await at.one("create_runs_v1", items.created(items.later_than(fresh), key="chain", input_digest="e"))
    assert other["outcome"] == "key_conflict"
    with pytest.raises(psycopg.errors.UniqueViolation):
        await at.connection.execute("UPDATE backburner.runs SET state = 'RUNNING', ended_at = NULL, end_seq = NULL "
                                    "WHERE state = 'CONTINUED'")  # fmt: skip


async def test_a_long_history_is_warned_of_once(at: Desk) -> None:
    run_id = await at.create()
    await at.connection.execute(
        "CREATE OR REPLACE FUNCTION backburner.history_warning() RETURNS bigint LANGUAGE sql IMMUTABLE "
        "AS $$ SELECT 6::bigint $$"
    )
    for _ in range(8):
        await at.append(run_id, items.row("PROCESS_LOG", message="m"))
    lines = [row["data"] for row in await at.journal(run_id) if row["data"].get("level") == "WARNING"]
    assert [line["message"].partition(":")[0] for line in lines] == [
        "the journal of this run has 6 rows; it ends at 200000"
    ]
