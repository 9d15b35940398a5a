"""attempts_started_v1, attempts_progress_v1, output_append_v1: what an executor writes before the end."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk, Row

FORGED = "00" * 16


async def start(at: Desk, run_id: str, key: str = "a", **fields: Any) -> Row:
    return await at.one("attempts_started_v1", items.attempt_of(run_id, key) | {"pid": 7} | fields)


async def progress(at: Desk, run_id: str, ordinal: int, key: str = "a", **fields: Any) -> Row:
    said = {"ordinal": ordinal, "progress": {"percent": ordinal}, "usage": None, "durable": True} | fields
    return await at.one("attempts_progress_v1", items.attempt_of(run_id, key) | said)


@pytest.mark.invariant("I14", "I3")
async def test_start_is_recorded_once(at: Desk) -> None:
    run_id = await at.running("a")
    assert [(await start(at, run_id))["outcome"] for _ in range(2)] == ["ok", "already"]
    assert (await at.types(run_id)).count("EFFECT_STARTED") == 1
    assert (await at.effect(run_id, "a"))["state"] == "RUNNING"


async def test_start_of_a_cancelled_attempt_does_not_hide_the_cancel(at: Desk) -> None:
    run_id = await at.running("a")
    await at.one("request_cancels_v1", items.cancel_request(run_id, "a"))
    assert (await start(at, run_id))["outcome"] == "ok"
    assert (await at.effect(run_id, "a"))["state"] == "CANCELLING"


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("function", ["attempts_started_v1", "attempts_progress_v1"])
@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"token": FORGED}, "stale"), ({"token": None}, "stale"), ({"attempt": 2}, "stale"),
        ({"attempt": None}, "stale"), ({"effect_id": items.NOWHERE}, "not_found"),
        ({"run_id": items.NOWHERE}, "not_found"),
    ],
    ids=str,
)  # fmt: skip
async def test_what_is_not_the_attempts_changes_nothing(
    at: Desk, function: Any, fields: items.Item, outcome: str
) -> None:
    run_id = await at.running("a")
    item = items.attempt_of(run_id, "a") | {"pid": 7, "ordinal": 1, "progress": {}, "durable": True} | fields
    assert (await at.one(function, item))["outcome"] == outcome
    assert await at.types(run_id) == ["EFFECT_REQUESTED", "EFFECT_DISPATCHED"]
    assert (await at.effect(run_id, "a"))["started_at"] is None


async def test_nothing_is_recorded_after_the_end(at: Desk) -> None:
    run_id = await at.running("a")
    await at.settle(run_id, "a")
    assert [(await start(at, run_id))["outcome"], (await progress(at, run_id, 1))["outcome"]] == ["settled", "settled"]


@pytest.mark.invariant("I14")
async def test_progress_is_recorded_once_an_ordinal_and_never_goes_back(at: Desk) -> None:
    run_id = await at.running("a")
    await start(at, run_id)
    said = [(await progress(at, run_id, n))["outcome"] for n in (1, 1, 3, 2, 3)]
    assert said == ["ok", "already", "ok", "already", "already"]
    effect = await at.effect(run_id, "a")
    assert (effect["progress"], effect["progress_ordinal"]) == ({"percent": 3}, 3)


@pytest.mark.invariant("I11")
async def test_run_has_ten_durable_progress_rows_a_second(at: Desk) -> None:
    """However many of its effects report; what is beyond goes to the projection."""
    run_id = await at.running("a", "b")
    for key in ("a", "b"):
        await start(at, run_id, key)
    said = [(await progress(at, run_id, n, key))["outcome"] for n in range(1, 9) for key in ("a", "b")]
    assert (said.count("ok"), said.count("thinned")) == (10, 6)
    assert (await at.effect(run_id, "b"))["progress"] == {"percent": 8}


@pytest.mark.invariant("I11")
async def test_ten_rows_a_second_also_between_many_other_rows(at: Desk) -> None:
    run_id = await at.running("a")
    said = []
    for n in range(1, 13):
        said.append((await progress(at, run_id, n))["outcome"])
        await at.append(run_id, *({"type": "PROCESS_LOG", "cause": 1, "data": {"message": "m"}} for _ in range(60)))
    rows = await at.rows("SELECT recorded_at AS at FROM backburner.journal WHERE type = 'EFFECT_PROGRESS' ORDER BY seq")
    spans = [last["at"] - first["at"] for first, last in zip(rows, rows[10:], strict=False)]
    assert said[:10] == ["ok"] * 10
    assert all(span.total_seconds() >= 1 for span in spans), "eleven rows take at least a second"


@pytest.mark.invariant("I11")
async def test_what_a_run_may_have_is_shared_by_its_effects(at: Desk) -> None:
    """Of 15 that report at once ten get a row; a second later it is the others' turn."""
    keys = [f"k{n}" for n in range(15)]
    run_id = await at.running(*keys)

    async def all_report(ordinal: int) -> None:
        said = {"ordinal": ordinal, "progress": {"percent": ordinal}, "usage": None, "durable": True}
        answers = await at.call("attempts_progress_v1", [items.attempt_of(run_id, key) | said for key in keys])
        assert {a["outcome"] for a in answers} == {"ok", "thinned"}

    await all_report(1)
    await at.connection.execute("ALTER TABLE backburner.journal DISABLE TRIGGER ALL")
    await at.rows("UPDATE backburner.journal SET recorded_at = recorded_at - interval '1 min' RETURNING 1")
    await at.connection.execute("ALTER TABLE backburner.journal ENABLE TRIGGER ALL")
    await all_report(2)
    counts = await at.rows("SELECT progress_rows AS n FROM backburner.effects ORDER BY 1")
    assert [row["n"] for row in counts] == [1] * 10 + [2] * 5


@pytest.mark.invariant("I11")
async def test_attempt_has_a_hundred_durable_progress_rows(at: Desk) -> None:
    run_id = await at.running("a")
    await start(at, run_id)
    await at.rows("UPDATE backburner.effects SET progress_rows = 99 RETURNING 1")
    assert [(await progress(at, run_id, n))["outcome"] for n in (1, 2)] == ["ok", "thinned"]


@pytest.mark.parametrize("durable", [False, None])
async def test_fine_progress_is_projection_only(at: Desk, durable: bool | None) -> None:
    run_id = await at.running("a")
    await start(at, run_id)
    assert (await progress(at, run_id, 1, durable=durable, usage={"input_tokens": 5}))["outcome"] == "thinned"
    assert "EFFECT_PROGRESS" not in await at.types(run_id)
    assert (await at.effect(run_id, "a"))["usage"] == {"input_tokens": 5}


@pytest.mark.invariant("I11")
async def test_oversized_progress_is_refused(at: Desk) -> None:
    run_id = await at.running("a")
    await start(at, run_id)
    noise = "".join(chr(0x4E00 + n % 20000) for n in range(70_000))
    assert (await progress(at, run_id, 1, progress={"label": noise}))["outcome"] == "too_large"


async def test_items_of_many_runs_have_their_own_outcomes(at: Desk) -> None:
    one, two = await at.running("a", "b"), await at.running("a")
    sent = [items.attempt_of(*ref) for ref in ((two, "a"), (one, "b"), (one, "a"), (one, "a"), (one, "c"))]
    answers = await at.call("attempts_started_v1", sent)
    assert [a["outcome"] for a in answers] == ["ok", "ok", "ok", "already", "not_found"]


async def test_first_progress_stands_for_the_start(at: Desk) -> None:
    run_id = await at.running("a")
    assert (await progress(at, run_id, 1))["outcome"] == "ok"
    state = (await at.effect(run_id, "a"))["state"]
    await start(at, run_id)
    assert state == "RUNNING"


# -- output ------------------------------------------------------------------------------------------------------


async def output(
    at: Desk, run_id: str, chunks: Sequence[tuple[int, bytes]], token: bytes | None = None, **f: int
) -> int:
    secret = token if token is not None else items.token_of(run_id, "a")
    n = len(chunks)
    [row] = await at.rows(
        "SELECT backburner.output_append_v1(%s::uuid[], %s::uuid[], %s::int[], %s::bytea[], %s::smallint[], "
        "%s::bigint[], %s::bytea[]) AS stored",
        [run_id] * n, [items.effect_id(run_id, "a")] * n, [f.get("attempt", 1)] * n, [secret] * n,
        [f.get("stream", 1)] * n, [at_ for at_, _ in chunks], [chunk for _, chunk in chunks],
    )  # fmt: skip
    return int(row["stored"])


@pytest.mark.invariant("I14")
async def test_output_is_stored_once_an_offset(at: Desk) -> None:
    run_id = await at.running("a")
    assert await output(at, run_id, [(0, b"he"), (2, b"llo")]) == 2
    assert await output(at, run_id, [(2, b"XXX"), (5, b"!")]) == 1
    kept = await at.rows("SELECT data FROM backburner.effect_output ORDER BY offset_")
    assert b"".join(row["data"] for row in kept) == b"hello!"


async def test_a_transcript_is_a_stream_of_its_own(at: Desk) -> None:
    run_id = await at.running("a")
    assert await output(at, run_id, [(0, b"{}\n")], stream=3) == 1
    assert await output(at, run_id, [(0, b"out")]) == 1
    kept = await at.rows("SELECT stream, data FROM backburner.effect_output ORDER BY stream")
    assert [(row["stream"], bytes(row["data"])) for row in kept] == [(1, b"out"), (3, b"{}\n")]


@pytest.mark.parametrize(
    "forged", [{"token": b"0" * 16}, {"token": b""}, {"attempt": 2}, {"stream": 4}, {"stream": 0}], ids=str
)
async def test_output_that_is_not_the_attempts_is_dropped(at: Desk, forged: dict[str, Any]) -> None:
    run_id = await at.running("a")
    assert await output(at, run_id, [(0, b"x")], **forged) == 0


@pytest.mark.invariant("I11")
async def test_output_that_cannot_be_kept_does_not_take_the_rest_with_it(at: Desk) -> None:
    run_id = await at.running("a")
    assert await output(at, run_id, [(-1, b"x"), (0, b""), (0, b"x" * 1_048_577), (0, b"kept")]) == 1


@pytest.mark.invariant("I11")
@pytest.mark.slow
async def test_output_of_an_attempt_is_capped(at: Desk) -> None:
    run_id = await at.running("a")
    stored = [await output(at, run_id, [(n * 1_048_576, b"x" * 1_048_576)]) for n in range(40)]
    assert stored[-1] == 0
