"""Values too large for a row: kept in the commit of the row that refers to them, by the digest of what is kept."""

import asyncio
import hashlib
from typing import Any

import psycopg
import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk, Row

TEXT = '"' + "x" * 70_000 + '"'
MOST = 16 << 20


def ref(text: str) -> Row:
    content = text.encode()
    digest = hashlib.sha256(content).hexdigest()
    return {"blob": {"digest": digest, "size_bytes": len(content), "media_type": "application/json"}}


async def kept(at: Desk) -> list[tuple[str, bytes]]:
    rows = await at.rows("SELECT run_id, content FROM backburner.blobs ORDER BY run_id, digest")
    return [(str(row["run_id"]), bytes(row["content"])) for row in rows]


@pytest.mark.invariant("I2", "I14")
async def test_a_value_is_kept_once_however_often_it_comes(at: Desk) -> None:
    run_id = await at.running("a", "b")
    said = [(await at.settle(run_id, key, blob_text=TEXT))["outcome"] for key in ("a", "a", "b")]
    assert said == ["ok", "already", "ok"]
    assert await kept(at) == [(run_id, TEXT.encode())]
    values = [row["data"]["result"]["value"] for row in await at.journal(run_id) if row["type"] == "EFFECT_RESOLVED"]
    assert values == [ref(TEXT)] * 2


async def test_of_two_values_for_one_attempt_in_one_call_the_recorded_one_is_kept(at: Desk) -> None:
    run_id = await at.running("a")
    sent = [items.settled(run_id, "a", blob_text=text) for text in (TEXT, TEXT[:-1] + 'y"')]
    assert [a["outcome"] for a in await at.call("attempts_settle_v1", sent)] == ["ok", "busy"]
    assert await kept(at) == [(run_id, TEXT.encode())]


@pytest.mark.invariant("I6")
async def test_of_a_settlement_that_dies_before_its_commit_nothing_is_left(at: Desk) -> None:
    run_id = await at.running("a")
    async with at.another(autocommit=False) as dying:
        await at.one("attempts_settle_v1", items.settled(run_id, "a", blob_text=TEXT), on=dying)
        await at.rows("SELECT pg_terminate_backend(%s)", dying.info.backend_pid)
        with pytest.raises(psycopg.OperationalError):
            await dying.commit()
    assert (await at.effect(run_id, "a"))["settled_seq"] is None
    assert await kept(at) == []
    assert (await at.settle(run_id, "a", blob_text=TEXT))["outcome"] == "ok"
    assert await kept(at) == [(run_id, TEXT.encode())]


async def test_equal_values_of_effects_that_settle_at_a_time(at: Desk) -> None:
    """In both orders, of the same runs, on several connections: each waits for the other, never for ever."""
    runs = [await at.running("a", "b") for _ in range(3)]

    async def settle(key: str, order: int) -> list[str]:
        async with at.another() as connection:
            sent = [items.settled(run_id, key, blob_text=TEXT) for run_id in runs[::order]]
            waiting, said = sent, list[str]()
            while waiting:
                answers = await at.call("attempts_settle_v1", waiting, on=connection)
                said += [a["outcome"] for a in answers if a["outcome"] != "busy"]
                waiting = [waiting[a["ord"]] for a in answers if a["outcome"] == "busy"]
            return said

    said = await asyncio.gather(*(settle(key, order) for key in "ab" for order in (1, -1)))
    assert sorted(outcome for one in said for outcome in one) == ["already"] * 6 + ["ok"] * 6
    assert await kept(at) == sorted((run_id, TEXT.encode()) for run_id in runs)


async def test_what_is_not_the_attempts_keeps_nothing(at: Desk) -> None:
    run_id = await at.running("a")
    assert (await at.settle(run_id, "a", blob_text=TEXT, token="00" * 16))["outcome"] == "stale"
    assert await kept(at) == []


@pytest.mark.invariant("I2")
async def test_evidence_keeps_its_value(at: Desk) -> None:
    run_id = await at.running("a", max_attempts=1)
    await at.lose(run_id, "a")
    assert (await at.settle(run_id, "a", blob_text=TEXT))["outcome"] == "stale"
    [evidence] = [row for row in await at.journal(run_id) if row["type"] == "EFFECT_SUPERSEDED"]
    assert evidence["data"]["refused_data"]["result"]["value"] == ref(TEXT)
    assert await kept(at) == [(run_id, TEXT.encode())]


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
async def test_what_a_failed_attempt_gave_is_kept(at: Desk, outcome: str) -> None:
    run_id = await at.running("a")
    await at.settle(run_id, "a", outcome, blob_text=TEXT)
    data: Any = (await at.journal(run_id))[-1]["data"]
    assert (data.get("partial") or data["result"])["value"] == ref(TEXT)
    assert await kept(at) == [(run_id, TEXT.encode())]


async def test_a_reference_to_what_is_not_there_cannot_be_made(at: Desk) -> None:
    run_id = await at.running("a")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="not a reference"):
        await at.settle(run_id, "a", result={"value": ref("forged")})
    await at.settle(run_id, "a", result={"value": {"value": ref("a value that only looks like one")}})
    assert await kept(at) == []


@pytest.mark.parametrize(("size", "fits"), [(MOST, True), (MOST + 16, False)])
async def test_sixteen_mebibytes_at_the_most(at: Desk, size: int, *, fits: bool) -> None:
    run_id = await at.running("a")
    text = '"' + "x" * (size - 2) + '"'
    if fits:
        assert (await at.settle(run_id, "a", blob_text=text))["outcome"] == "ok"
        return
    with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="is too large"):
        await at.settle(run_id, "a", blob_text=text)
    assert await kept(at) == []
