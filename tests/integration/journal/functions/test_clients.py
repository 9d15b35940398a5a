"""open_clients_v1, client_requests_v1, finish_runs_v1, halt_idle_v1: what clients write, fenced by their epoch."""

import asyncio
import hashlib

import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk, Row
from tests.support.eventually import eventually


async def ask(at: Desk, run_id: str, *keys: str, **fields: object) -> Row:
    return await at.one("client_requests_v1", items.client_request(run_id, *keys, **fields))  # type: ignore[arg-type]


async def finish(at: Desk, run_id: str, **fields: object) -> Row:
    return await at.one("finish_runs_v1", items.finish(run_id, **fields))  # type: ignore[arg-type]


async def state(at: Desk, run_id: str) -> str:
    [run] = await at.rows("SELECT state FROM backburner.runs WHERE run_id = %s", run_id)
    assert (await at.head(run_id))["state"] == run["state"]
    return str(run["state"])


@pytest.mark.invariant("I14")
async def test_the_same_start_again_is_the_same_epoch_and_another_one_the_next(at: Desk) -> None:
    run_id = await at.client_run()
    starts = [items.client_start(run_id, start_id=name) for name in ("first", "second", "second", "first", "third")]
    answers = [await at.one("open_clients_v1", start) for start in starts]
    assert [(a["outcome"], a["client_epoch"]) for a in answers] == [
        ("already", 1), ("ok", 2), ("already", 2), ("ok", 3), ("ok", 4),
    ]  # fmt: skip
    assert await at.types(run_id) == [], "a start is no event"


async def test_only_the_newest_epoch_may_write(at: Desk) -> None:
    run_id = await at.client_run("a")
    await at.one("open_clients_v1", items.client_start(run_id))
    before = await at.types(run_id)
    for epoch in (0, 1, 3):
        refusal = await ask(at, run_id, "b", client_epoch=epoch)
        assert (refusal["outcome"], refusal["detail"]["client_epoch"]) == ("superseded", 2)
        assert (await ask(at, run_id, "a", client_epoch=epoch))["outcome"] == "superseded", "not even to be answered"
        assert (await finish(at, run_id, client_epoch=epoch))["outcome"] == "superseded"
    assert await at.types(run_id) == before


async def test_a_run_of_a_process_takes_no_calls_of_clients(at: Desk) -> None:
    run_id = await at.create()
    assert (await ask(at, run_id, "a"))["outcome"] == "not_client_driven"
    assert (await finish(at, run_id))["outcome"] == "not_client_driven"
    assert (await at.one("open_clients_v1", items.client_start(run_id)))["outcome"] == "not_client_driven"
    assert (await ask(at, items.NOWHERE, "a"))["outcome"] == "not_found"


@pytest.mark.invariant("I14")
async def test_a_batch_again_writes_nothing_and_what_is_new_in_it_is_written(at: Desk) -> None:
    run_id = await at.client_run("a", "b")
    again = await ask(at, run_id, "a", "b")
    assert (again["outcome"], again["extra"]) == ("recorded", [])
    more = await ask(at, run_id, "b", "c", "a", "d")
    assert (more["outcome"], more["detail"]["fresh"]) == ("ok", ["c", "d"])
    rows = [row for row in await at.journal(run_id) if row["type"] == "EFFECT_REQUESTED"]
    assert [row["effect_key"] for row in rows] == ["a", "b", "c", "d"]
    assert [row["seq"] for row in rows[2:]] == [more["first_seq"], more["first_seq"] + 1]
    assert await at.queued() == {items.effect_id(run_id, "c"), items.effect_id(run_id, "d")}


@pytest.mark.invariant("I1")
async def test_a_batch_with_a_conflict_writes_nothing_at_all(at: Desk) -> None:
    run_id = await at.client_run("a", "b")
    before = await at.types(run_id)
    refusal = await ask(at, run_id, "new", "b", "a", digest="other")
    assert refusal["outcome"] == "key_conflict"
    assert refusal["detail"]["conflicts"] == [{"key": key, "recorded_digest": "d"} for key in ("b", "a")]
    assert await at.types(run_id) == before
    taken = await ask(at, run_id, "new", "b", digest="other", use_recorded=True)
    assert (taken["outcome"], taken["detail"]["fresh"]) == ("ok", ["new"])


@pytest.mark.invariant("I11")
async def test_open_effects_are_bounded(at: Desk) -> None:
    run_id = await at.client_run("a")
    await at.connection.execute(
        "UPDATE backburner.run_heads SET open_effects = backburner.open_effects_max() - 1 WHERE run_id = %s", [run_id]
    )
    assert (await ask(at, run_id, "b", "c"))["outcome"] == "queue_full"
    assert (await ask(at, run_id, "b"))["outcome"] == "ok"
    await at.connection.execute("UPDATE backburner.run_heads SET open_effects = 2 WHERE run_id = %s", [run_id])


@pytest.mark.invariant("I14")
async def test_an_end_again_is_no_error_and_another_end_is_refused(at: Desk) -> None:
    for fields in ({}, {"state": "FAILED"}, {"value": None}):
        run_id = await at.client_run()
        assert [(await finish(at, run_id, **fields))["outcome"] for _ in range(2)] == ["ok", "already"]
        for other in ({"value": 2}, {"state": "FAILED", "value": 2}):
            assert (await finish(at, run_id, **other))["outcome"] == "run_closed"
        assert len(await at.types(run_id)) == 1


async def test_a_finished_run_is_waited_for_by_what_it_left_open(at: Desk) -> None:
    run_id = await at.client_run("runs", "asks")
    refusal = await finish(at, run_id)
    assert (refusal["outcome"], refusal["detail"]["open"]) == ("effects_open", ["runs", "asks"])
    assert (await finish(at, run_id, wait=True))["outcome"] == "ok"
    assert await state(at, run_id) == "CLOSING"
    assert (await finish(at, run_id))["outcome"] == "already"
    assert (await finish(at, run_id, value=2, wait=True))["outcome"] == "run_closed"
    assert (await ask(at, run_id, "more"))["outcome"] == "run_closed"
    assert (await ask(at, run_id, "runs"))["outcome"] == "recorded"


async def test_a_failure_cancels_what_no_executor_has_in_the_same_commit(at: Desk) -> None:
    run_id = await at.client_run("queued", fast=False)
    ended = await finish(at, run_id, state="FAILED")
    assert [row["type"] for row in ended["extra"]] == ["EFFECT_CANCEL_REQUESTED", "EFFECT_CANCELLED", "RUN_FAILED"]
    assert await state(at, run_id) == "FAILED"
    assert await at.queued() == set()


async def test_a_failure_tells_of_the_cancels_that_executors_must_hear_of(at: Desk) -> None:
    run_id = await at.client_run("runs")
    ended = await finish(at, run_id, state="FAILED")
    assert [cancel["effect_id"] for cancel in ended["detail"]["cancels"]] == [items.effect_id(run_id, "runs")]
    assert await state(at, run_id) == "CLOSING"


async def test_a_run_is_halted_only_while_its_client_is_silent(at: Desk) -> None:
    """The owner looked, and the client called before the owner came to write."""
    run_id = await at.client_run()
    item = items.idle(run_id, at.epoch(run_id))
    assert (await at.one("halt_idle_v1", item))["outcome"] == "not_idle"
    await at.connection.execute("UPDATE backburner.client_runs SET idle_at = '-infinity' WHERE run_id = %s", [run_id])
    await ask(at, run_id, "a")
    assert (await at.one("halt_idle_v1", item))["outcome"] == "not_idle"
    assert (await at.silence(run_id))["outcome"] == "ok"
    assert await state(at, run_id) == "HALTED"


@pytest.mark.invariant("I5")
async def test_only_the_owner_halts_a_silent_client(at: Desk) -> None:
    run_id = await at.client_run()
    await at.connection.execute("UPDATE backburner.client_runs SET idle_at = '-infinity' WHERE run_id = %s", [run_id])
    stale = items.idle(run_id, at.epoch(run_id) - 1)
    assert (await at.one("halt_idle_v1", stale))["outcome"] == "stale_epoch"
    assert (await at.one("halt_idle_v1", items.idle(run_id, at.epoch(run_id))))["outcome"] == "ok"


async def test_runs_that_are_over_are_looked_at_once(at: Desk) -> None:
    run_id = await at.client_run()
    await finish(at, run_id)
    assert (await at.silence(run_id))["outcome"] == "not_running"
    due = "SELECT 1 FROM backburner.client_runs WHERE idle_at < 'infinity'"
    assert await at.rows(due) == []


async def test_what_a_silent_client_does_wakes_its_run(at: Desk) -> None:
    for item in (items.client_start, lambda run: items.client_request(run, "a"), items.finish):
        run_id = await at.client_run()
        await at.silence(run_id)
        sent = item(run_id)
        function = "finish_runs_v1" if "wait" in sent else "client_requests_v1" if "rows" in sent else "open_clients_v1"
        [answer] = await at.call(function, [sent])
        assert answer["extra"][0]["type"] == "RUN_RESUMED"
        assert (await at.types(run_id))[:2] == ["RUN_HALTED", "RUN_RESUMED"]


async def test_an_operators_halt_is_the_operators_to_end(at: Desk) -> None:
    run_id = await at.client_run()
    await at.one("halt_runs_v1", items.control(run_id))
    assert (await at.one("open_clients_v1", items.client_start(run_id)))["extra"] == []
    assert (await finish(at, run_id, client_epoch=2))["outcome"] == "halted"
    asked = await ask(at, run_id, "a", client_epoch=2, session_no=at.session_no)
    assert (asked["outcome"], asked["extra"]) == ("ok", []), "asked for, and not dispatched"
    assert await at.claim() == []


async def test_a_sign_of_life_puts_off_the_time_and_nothing_else(at: Desk) -> None:
    run_id, process = await at.client_run(), await at.create()
    await at.connection.execute("UPDATE backburner.client_runs SET idle_at = now() WHERE run_id = %s", [run_id])
    seen = await at.rows("SELECT * FROM backburner.clients_seen_v1(%s::uuid[])", [run_id, process])
    assert [(str(row["run_id"]), row["idle_timeout_s"]) for row in seen] == [(run_id, 3600.0)]
    assert (await at.one("halt_idle_v1", items.idle(run_id, at.epoch(run_id))))["outcome"] == "not_idle"
    await at.silence(run_id)
    assert await at.rows("SELECT * FROM backburner.clients_seen_v1(%s::uuid[])", [run_id]) == [], "no longer watched"


@pytest.mark.invariant("I5")
async def test_the_fence_is_read_after_the_lock(at: Desk) -> None:
    """A request waits for the head while another start takes the run over."""
    run_id = await at.client_run()
    async with at.another(autocommit=False) as newer, at.another() as zombie:
        await at.one("open_clients_v1", items.client_start(run_id), on=newer)
        call = asyncio.create_task(at.one("client_requests_v1", items.client_request(run_id, "a"), on=zombie))
        stuck = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
        await eventually(lambda: at.rows(stuck, zombie.info.backend_pid))
        await newer.commit()
        assert (await call)["outcome"] == "superseded"
    assert await at.types(run_id) == []


@pytest.mark.parametrize("client", [True, False])
async def test_succeeded_effects_of_an_earlier_run_answer_equal_requests(at: Desk, client: bool) -> None:
    old = await at.client_run("a", "failed", "open")
    digest = hashlib.sha256(b"123").hexdigest()
    blob = {"blob": {"digest": digest, "size_bytes": 3, "media_type": "application/json"}}
    await at.settle(old, "a", blob_text="123")
    await at.settle(old, "failed", "failed")
    keys = ("failed", "a", "open", "new")
    if client:
        run_id = await at.client_run(*keys, reuse_from=old)
    else:
        run_id = await at.create(reuse_from=old)
        await at.request(run_id, *keys, fast=True)
    [reused] = [row for row in await at.journal(run_id) if row["type"] == "EFFECT_REUSED"]
    assert (reused["effect_key"], reused["cause"]) == ("a", 0)
    assert reused["data"] == {
        "from_run_id": old, "from_effect_id": items.effect_id(old, "a"), "result": {"value": blob},
    }  # fmt: skip
    effect = await at.effect(run_id, "a")
    assert (effect["state"], effect["settled_seq"], effect["attempt"]) == ("SUCCEEDED", reused["seq"], 0)
    assert [(await at.effect(run_id, key))["state"] for key in keys] == ["DISPATCHED", "SUCCEEDED", *["DISPATCHED"] * 2]
    [copied] = await at.rows("SELECT content FROM backburner.blobs WHERE run_id = %s", run_id)
    assert bytes(copied["content"]) == b"123"


async def test_other_work_under_the_same_key_is_done_anew(at: Desk) -> None:
    old = await at.client_run("a")
    await at.settle(old, "a")
    run_id = await at.client_run(reuse_from=old)
    assert (await ask(at, run_id, "a", digest="other"))["extra"] == []
    assert (await at.effect(run_id, "a"))["state"] == "QUEUED"
