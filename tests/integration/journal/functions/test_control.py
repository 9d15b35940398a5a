"""halt_runs_v1, resume_runs_v1 and signal_runs_v1: any replica writes them, fenced by the run's state."""

import asyncio
import uuid
from typing import LiteralString

import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk

HALT: LiteralString = "halt_runs_v1"
RESUME: LiteralString = "resume_runs_v1"
SIGNAL: LiteralString = "signal_runs_v1"


async def outcome(at: Desk, function: LiteralString, item: items.Item) -> str:
    return str((await at.one(function, item))["outcome"])


async def state(at: Desk, run_id: str) -> str:
    [run] = await at.rows("SELECT state FROM backburner.runs WHERE run_id = %s", run_id)
    assert (await at.head(run_id))["state"] == run["state"]
    return str(run["state"])


async def test_a_halt_is_a_row_with_its_reason_and_actor(at: Desk) -> None:
    run_id = await at.create()
    told = await at.one(HALT, items.control(run_id))
    assert (told["outcome"], told["head_seq"]) == ("ok", 2)
    row = (await at.journal(run_id))[-1]
    assert (row["type"], row["cause"], row["writer"], row["data"]) == ("RUN_HALTED", 0, "client/t", {"reason": "look"})
    assert await state(at, run_id) == "HALTED"


@pytest.mark.invariant("I14")
async def test_halting_and_resuming_again_write_nothing(at: Desk) -> None:
    run_id = await at.create()
    assert [await outcome(at, HALT, items.control(run_id)) for _ in range(3)] == ["ok", "already", "already"]
    item = items.control(run_id)
    assert [await outcome(at, RESUME, item) for _ in range(3)] == ["ok", "already", "already"]
    assert await outcome(at, RESUME, items.control(run_id)) == "not_parked"
    assert await at.types(run_id) == ["RUN_HALTED", "RUN_RESUMED"]


@pytest.mark.parametrize("fast", [False, True])
async def test_nothing_is_dispatched_while_a_run_is_halted(at: Desk, fast: bool) -> None:
    run_id = await at.create()
    await at.request(run_id, "a", "b")
    await at.one(HALT, items.control(run_id))
    assert await at.claim() == []
    asked = items.requested(run_id, "c", dispatch=items.dispatch(run_id, "c", at.session_no) if fast else None)
    refusal = await at.append(run_id, asked)
    assert (refusal["outcome"], refusal["head_seq"]) == ("parked", 4)
    await at.one(RESUME, items.control(run_id))
    assert len(await at.claim()) == 2
    assert (await at.append(run_id, asked))["outcome"] == "ok"


@pytest.mark.invariant("I2")
async def test_what_runs_is_settled_while_its_run_is_halted(at: Desk) -> None:
    run_id = await at.running("a", "b", max_attempts=2)
    await at.one(HALT, items.control(run_id))
    await at.settle(run_id, "a")
    await at.settle(run_id, "b", "failed")
    assert ((await at.effect(run_id, "a"))["state"], (await at.effect(run_id, "b"))["state"]) == ("SUCCEEDED", "QUEUED")
    assert await at.claim() == [], "the next attempt waits for the resumption"


async def test_cancels_answers_and_signals_reach_a_halted_run(at: Desk) -> None:
    run_id = await at.create()
    await at.request(run_id, "ask", "queued", kind="EXTERNAL", capabilities=[], pool="")
    await at.one(HALT, items.control(run_id))
    assert await outcome(at, SIGNAL, items.signal(run_id)) == "ok"
    assert await outcome(at, "resolve_external_v1", items.answer(run_id, "ask")) == "ok"
    assert await outcome(at, "request_cancels_v1", items.cancel_request(run_id, "queued")) == "ok"
    assert await outcome(at, "request_cancels_v1", items.cancel_request(run_id)) == "ok"
    assert await state(at, run_id) == "HALTED"


@pytest.mark.parametrize("parking", ["RUN_HALTED", "PROCESS_RUNTIME_ERROR"])
async def test_a_run_goes_on_as_what_it_was(at: Desk, parking: str) -> None:
    running, cancelling, closing, both = [await at.create() for _ in range(4)]
    for run_id in (closing, both):
        await at.append(run_id, items.row("RUN_CLOSING"))
    for run_id in (cancelling, both):
        await at.one("request_cancels_v1", items.cancel_request(run_id))
    for run_id in (running, cancelling, closing, both):
        await at.append(run_id, items.row(parking, error={"kind": "EXCEPTION"}))
        await at.one(RESUME, items.control(run_id))
    states = [await state(at, run_id) for run_id in (running, cancelling, closing, both)]
    assert states == ["RUNNING", "CANCELLING", "CLOSING", "CLOSING"]


async def test_resuming_forgives_the_error_and_the_strikes(at: Desk) -> None:
    run_id = await at.create()
    for _ in range(3):
        await at.rows("SELECT backburner.strike_v1(%s, %s)", run_id, at.epoch(run_id))
    await at.append(run_id, items.row("PROCESS_RUNTIME_ERROR", error={"kind": "EXCEPTION"}))
    await at.one(RESUME, items.control(run_id))
    [run] = await at.rows("SELECT error FROM backburner.runs WHERE run_id = %s", run_id)
    assert (run["error"], (await at.head(run_id))["strikes"]) == (None, 0)


@pytest.mark.invariant("I5", "I6")
async def test_the_owner_may_only_end_a_parked_run_without_its_process(at: Desk) -> None:
    run_id = await at.running("a")
    await at.one(HALT, items.control(run_id))
    for refused in (
        [], [items.row("RUN_COMPLETED")], [items.row("RUN_CLOSING", 3)], [items.row("TIMER_FIRED", 0, ordinal=1)],
        [items.resolved(run_id, "a")], [items.cancel(run_id, "a", cause=0), items.row("PROCESS_LOG", 0)],
    ):  # fmt: skip
        assert (await at.append(run_id, *refused))["outcome"] == "parked", refused
    ended = await at.append(run_id, items.cancel(run_id, "a", cause=0), items.row("RUN_CLOSING", 0))
    assert ended["outcome"] == "ok"
    assert await state(at, run_id) == "CLOSING"


async def test_control_comes_too_late_for_a_run_that_is_over(at: Desk) -> None:
    run_id = await at.create()
    await at.append(run_id, items.row("RUN_COMPLETED"))
    for function in (HALT, RESUME):
        assert await outcome(at, function, items.control(run_id)) == "run_closed"
        assert await outcome(at, function, items.control(items.NOWHERE)) == "not_found"
    assert await outcome(at, SIGNAL, items.signal(run_id)) == "run_closed"
    assert await outcome(at, SIGNAL, items.signal(items.NOWHERE)) == "not_found"


@pytest.mark.invariant("I14")
async def test_a_signal_arrives_once_for_each_request_id(at: Desk) -> None:
    run_id, other = await at.create(), await at.create()
    item = items.signal(run_id, "r1")
    answers = [await at.one(SIGNAL, item) for _ in range(3)]
    assert [(a["outcome"], a["seq"]) for a in answers] == [("ok", 2), ("already", 2), ("already", 2)]
    for wrong in (item | {"digest": "e"}, items.signal(other, "r1", digest="f")):
        assert await outcome(at, SIGNAL, wrong) == "request_conflict"
    assert await outcome(at, SIGNAL, item | {"namespace": "elsewhere"}) == "ok"
    await at.append(run_id, items.row("RUN_COMPLETED"))
    assert (await at.one(SIGNAL, item))["outcome"] == "already", "the repetition of what arrived, though it is over"


async def test_a_request_id_is_free_again_after_a_day(at: Desk) -> None:
    run_id = await at.create()
    await at.one(SIGNAL, items.signal(run_id, "r1"))
    await at.connection.execute("UPDATE backburner.requests SET created_at = created_at - interval '25 h'")
    assert (await at.one(SIGNAL, items.signal(run_id, "r1", digest="other")))["seq"] == 3


@pytest.mark.invariant("I4", "I14")
async def test_the_same_signal_from_many_callers_arrives_once(at: Desk) -> None:
    runs = [await at.create() for _ in range(3)]
    sent = [items.signal(run_id, f"r{n}", digest=f"{n}") for n, run_id in enumerate(runs)]

    async def send(turn: int) -> None:
        async with at.another() as connection:
            waiting = sent[::-1] if turn % 2 else sent
            while waiting:
                answers = await at.call(SIGNAL, waiting, on=connection)
                assert {a["outcome"] for a in answers} <= {"ok", "already", "busy"}
                waiting = [item for item, a in zip(waiting, answers, strict=True) if a["outcome"] == "busy"]

    async with asyncio.timeout(30):
        await asyncio.gather(*(send(turn) for turn in range(8)))
    assert [await at.types(run_id) for run_id in runs] == [["SIGNAL_RECEIVED"]] * 3


async def test_one_request_id_for_two_runs_at_a_time_is_a_conflict_and_no_deadlock(at: Desk) -> None:
    one, two = await at.create(), await at.create()
    async with at.another(autocommit=False) as first, at.another() as second:
        await at.one(SIGNAL, items.signal(one, "r", digest="1"), on=first)
        late = asyncio.create_task(at.one(SIGNAL, items.signal(two, "r", digest="2"), on=second))
        await at.waits(late)
        await first.commit()
        assert (await asyncio.wait_for(late, 30))["outcome"] == "busy"
    assert await outcome(at, SIGNAL, items.signal(two, "r", digest="2")) == "request_conflict"


async def test_calls_about_many_runs_hand_back_the_one_that_is_held(at: Desk) -> None:
    held, free = await at.create(), await at.create()
    async with at.another(autocommit=False) as other:
        await other.execute("SELECT 1 FROM backburner.run_heads WHERE run_id = %s FOR UPDATE", [held])
        for function, make in ((HALT, items.control), (RESUME, items.control), (SIGNAL, items.signal)):
            async with asyncio.timeout(30):
                answers = await at.call(function, [make(run_id) for run_id in (held, free)])
            assert [a["outcome"] for a in answers] == ["busy", "ok"]


@pytest.mark.invariant("I4", "I5")
@pytest.mark.parametrize("first", ["halt", "append"])
async def test_a_halt_and_an_append_at_a_time(at: Desk, first: str) -> None:
    """Whichever has the head first is first in the journal; an append that comes second is refused whole."""
    run_id = await at.create()
    asked = at.appending(run_id, items.requested(run_id, "a", dispatch=items.dispatch(run_id, "a", at.session_no)))
    calls: dict[str, tuple[LiteralString, items.Item]] = {
        "halt": (HALT, items.control(run_id)), "append": ("append_v1", asked),
    }  # fmt: skip
    second = "append" if first == "halt" else "halt"
    async with at.another(autocommit=False) as one, at.another() as two:
        await at.one(*calls[first], on=one)
        waiting = asyncio.create_task(at.one(*calls[second], on=two))
        await at.waits(waiting)
        await one.commit()
        late = await asyncio.wait_for(waiting, 30)
    if first == "halt":
        assert (late["outcome"], await at.types(run_id)) == ("parked", ["RUN_HALTED"])
    else:
        assert (late["outcome"], await at.types(run_id)) == (
            "ok",
            ["EFFECT_REQUESTED", "EFFECT_DISPATCHED", "RUN_HALTED"],
        )
    assert await state(at, run_id) == "HALTED"


async def test_a_full_journal_takes_no_more_signals(at: Desk) -> None:
    run_id = await at.create()
    await at.connection.execute(
        "INSERT INTO backburner.journal (run_id, seq, type, recorded_at, writer, data)"
        " SELECT %s, n, 'PROCESS_LOG', h.recorded_at, 'x', '{}' FROM generate_series(2, 200000) n,"
        " backburner.run_heads h WHERE h.run_id = %s",
        [run_id, run_id],
    )
    await at.connection.execute("UPDATE backburner.run_heads SET seq = 200000 WHERE run_id = %s", [run_id])
    told = await at.one(SIGNAL, items.signal(run_id, uuid.uuid4().hex))
    assert (told["outcome"], told["head_seq"]) == ("history_limit", 200_000)
