"""Large values: they reach process code and clients whole, and are blobs where they lie."""

import hashlib
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

import backburner as bb
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.journal import payloads
from scheduler_service.journal.histories import histories
from scheduler_service.journal.payloads import INLINE_BYTES_MAX
from scheduler_service.replay.checking import check_history
from tests.integration.engine.executor import FAILED, ScriptedExecutor
from tests.integration.engine.processes import probe
from tests.integration.engine.world import World, world
from tests.support.eventually import eventually

LARGE = "x" * INLINE_BYTES_MAX  # as JSON it has two quotes more
SMALL = "x" * (INLINE_BYTES_MAX - 2)


@bb.process("blob-echo")
async def echo(ctx: bb.Context, count: int = 1) -> Any:
    results = [await ctx.run(probe(n), key=f"it/{n}") for n in range(count)]
    return results[0] if count == 1 else [len(result) for result in results]


@bb.process("blob-changes")
async def changes(ctx: bb.Context) -> list[int]:
    lengths = []
    for n in range(3):
        value = await ctx.run(probe(n), key=f"it/{n}")
        value.append(n)
        lengths.append(len(value))
    return lengths


@bb.process("blob-parent")
async def parent(ctx: bb.Context) -> Any:
    return len(await ctx.run(bb.run(echo), key="kid"))


@bb.process("blob-asks")
async def asks(ctx: bb.Context) -> Any:
    return len(await ctx.run(bb.external("?"), key="ask"))


PROCESSES = {p.name: p for p in (echo, changes, parent, asks)}


@pytest.fixture
async def at(database_url: str) -> AsyncIterator[World]:
    async with world(database_url, PROCESSES, grace_seconds=600.0) as made:
        yield made


async def settle(executor: ScriptedExecutor, key: str, value: Any) -> None:
    await executor.settle(await executor.start_of(key), blob_text=json.dumps(value))


async def content(at: World, run_id: str, blob: Any, offset: int = 0) -> bytes:
    frames = at.client.ReadBlob(pb.ReadBlobRequest(run_id=run_id, digest=blob["digest"], offset=offset), timeout=60)
    position, parts = offset, []
    async for frame in frames:
        assert frame.offset == position
        assert 0 < len(frame.data) <= 64 << 10
        position += len(frame.data)
        parts.append(frame.data)
    return b"".join(parts)


async def test_a_large_result_is_whole_to_the_process_and_a_blob_to_everybody_else(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("blob-echo")
    await settle(executor, "it/0", LARGE)
    run = await at.result(run_id)
    blob = json_format.MessageToDict(run.result, preserving_proto_field_name=True)["blob"]
    stored = await content(at, run_id, blob)
    assert json.loads(stored) == LARGE
    assert (hashlib.sha256(stored).hexdigest(), len(stored)) == (blob["digest"], blob["size_bytes"])
    assert (await content(at, run_id, blob, len(stored) - 3)) == stored[-3:]
    assert (await content(at, run_id, blob, len(stored))) == b""
    [row] = await at.rows(run_id, "EFFECT_RESOLVED")
    assert row.data["result"]["value"] == {"blob": blob}
    assert await at.query("SELECT count(*) FROM backburner.blobs WHERE run_id = %s", run_id) == [(1,)]


async def test_what_fits_stays_in_the_row(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("blob-echo")
    await executor.settle(await executor.start_of("it/0"), SMALL)
    assert await at.value(run_id) is not None
    assert (await at.result(run_id)).result.value.string_value == SMALL
    assert await at.query("SELECT count(*) FROM backburner.blobs") == [(0,)]


async def test_what_is_reused_stays_when_the_run_that_it_is_from_is_gone(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    old = await at.create("blob-echo", count=3)
    for n, value in enumerate([LARGE, LARGE, LARGE + "y"]):
        await settle(executor, f"it/{n}", value)
    await at.result(old)
    lost = hashlib.sha256(json.dumps(LARGE + "y").encode()).hexdigest()
    await at.query("DELETE FROM backburner.blobs WHERE run_id = %s AND digest = %s RETURNING 1", old, lost)
    request = pb.CreateRunRequest(process="blob-echo", reuse_from=old)
    request.input["count"] = 3
    run_id = (await at.client.CreateRun(request)).run.run_id
    at.runs.append(run_id)
    await eventually(lambda: len(executor.starts) == 4)
    await executor.settle(executor.starts[-1], value=[1])
    await at.query("DELETE FROM backburner.blobs WHERE run_id = %s RETURNING 1", old)
    assert await at.value(run_id) == [65536, 65536, 1]
    rows = await at.rows(run_id, "EFFECT_REUSED")
    assert [row.key for row in rows] == ["it/0", "it/1"], "what has lost its content answers nothing"
    blobs = [row.data["result"]["value"]["blob"] for row in rows]
    assert [json.loads(await content(at, run_id, blob)) for blob in blobs] == [LARGE] * 2
    assert await at.query("SELECT count(*) FROM backburner.blobs WHERE run_id = %s", run_id) == [(1,)]


async def test_a_replay_loads_what_was_large(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("blob-echo", count=3)
    await settle(executor, "it/0", LARGE)
    await settle(executor, "it/1", LARGE + "y")
    await executor.start_of("it/2")
    await at.restart(PROCESSES)
    executor.channel = at.channel
    await executor.connect([executor.starts[-1]])
    await settle(executor, "it/2", LARGE)
    assert await at.value(run_id) == [65536, 65537, 65536]
    async with aclosing(histories(at.dsn, run_ids=[run_id])) as stored:
        checked = [check_history({echo.name: echo}, *history).verdict async for history in stored]
    assert checked == ["FINE"]
    await at.query("DELETE FROM backburner.blobs WHERE run_id = %s RETURNING 1", run_id)
    async with aclosing(histories(at.dsn, run_ids=[run_id])) as stored:
        gone = [check_history({echo.name: echo}, *history) async for history in stored]
    assert gone[0].verdict == "UNCHECKED"
    assert "the value at seq " in gone[0].message


async def test_a_value_that_comes_twice_is_two_values_to_the_process(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("blob-changes")
    await settle(executor, "it/0", [LARGE])
    await settle(executor, "it/1", [LARGE])
    await executor.start_of("it/2")
    await at.restart(PROCESSES)
    executor.channel = at.channel
    await executor.connect([executor.starts[-1]])
    await settle(executor, "it/2", [LARGE])
    assert await at.value(run_id) == [2, 2, 2]
    assert await at.query("SELECT count(*) FROM backburner.blobs WHERE run_id = %s", run_id) == [(1,)]


async def test_results_that_are_too_large_together_park_the_run(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("blob-echo", count=2)
    monkeypatch.setattr(payloads, "RUN_BLOB_BYTES_MAX", 65_600)
    await settle(executor, "it/0", LARGE)
    await settle(executor, "it/1", LARGE + "y" * 100)
    error = (await at.result(run_id)).error
    assert error.kind == "HISTORY_LIMIT"
    assert error.message.startswith("the large results of this run are 131176 bytes; at most 65600 are loaded")


async def test_a_result_that_is_gone_parks_the_run_and_says_what_to_do(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("blob-echo", count=2)
    await settle(executor, "it/0", LARGE)
    await executor.start_of("it/1")
    kept = await at.query("DELETE FROM backburner.blobs WHERE run_id = %s RETURNING *", run_id)
    await at.restart(PROCESSES)
    error = (await at.result(run_id)).error
    [settled] = await at.rows(run_id, "EFFECT_RESOLVED")
    assert error.kind == "BLOBS_MISSING"
    assert error.message == (
        f"the stored result of it/0 (seq {settled.seq}) is gone from table blobs: put its rows back from a backup and "
        f"resume the run; or cancel it, and start it again with reuse_from={run_id}, which runs again what is gone"
    )
    # Both ways out are as it says.
    executor.channel = at.channel
    await executor.connect([executor.starts[-1]])
    await settle(executor, "it/1", LARGE + "y")
    request = pb.CreateRunRequest(process="blob-echo", reuse_from=run_id)
    json_format.ParseDict({"count": 2}, request.input)
    again = (await at.client.CreateRun(request, timeout=60)).run.run_id
    start = await eventually(lambda: next((start for start in executor.starts if start.run_id == again), None))
    assert start is not None
    await executor.settle(start, blob_text=json.dumps(LARGE))
    assert await at.value(again) == [65536, 65537]
    assert [row.key for row in await at.rows(again, "EFFECT_REUSED")] == ["it/1"]
    await at.query("INSERT INTO backburner.blobs VALUES (%s, %s, %s, %s) RETURNING 1", *kept[0])
    await at.client.ResumeRun(pb.ResumeRunRequest(run_id=run_id), timeout=60)
    assert await at.value(run_id) == [65536, 65537]


async def test_a_childs_large_result_becomes_its_parents(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("blob-parent")
    await settle(executor, "it/0", LARGE)
    assert await at.value(run_id) == 65536
    [row] = await at.rows(run_id, "EFFECT_RESOLVED")
    assert json.loads(await content(at, run_id, row.data["result"]["value"]["blob"])) == LARGE


async def test_a_large_answer_from_outside(at: World) -> None:
    run_id = await at.create("blob-asks")
    await at.row(run_id, "EFFECT_REQUESTED")
    request = pb.ResolveEffectRequest(effect=pb.EffectName(run_id=run_id, key="ask"))
    request.succeeded.value.string_value = LARGE
    for _ in range(2):
        await at.client.ResolveEffect(request, timeout=60)
    assert await at.value(run_id) == 65536


@pytest.mark.invariant("I2", "I14")
async def test_what_comes_late_is_evidence_with_its_value(at: World) -> None:
    executor = at.executor(notices=False)
    await executor.connect()
    run_id = await at.create("blob-echo")
    start = await executor.start_of("it/0")
    for said in ("ok", "already"):
        assert await executor.settle(start, blob_text=json.dumps(LARGE)) == said
    assert await at.query("SELECT count(*) FROM backburner.blobs WHERE run_id = %s", run_id) == [(1,)]
    [(size,)] = await at.query("SELECT max(octet_length(data::text)) FROM backburner.journal WHERE run_id = %s", run_id)
    assert size < 4096, "no row holds the value itself"


@pytest.mark.parametrize(
    ("digest", "offset", "code", "said"),
    [
        ("0" * 64, 0, grpc.StatusCode.NOT_FOUND, "has no blob"),
        ("nonsense", 0, grpc.StatusCode.INVALID_ARGUMENT, "must be a SHA-256 in hex"),
        (None, -1, grpc.StatusCode.INVALID_ARGUMENT, "offset"),
        (None, 65_539, grpc.StatusCode.OUT_OF_RANGE, "is beyond the 65538 bytes of blob"),
    ],
)
async def test_what_cannot_be_read_is_said(
    at: World, digest: str | None, offset: int, code: grpc.StatusCode, said: str
) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("blob-echo")
    await settle(executor, "it/0", LARGE)
    known = (await at.result(run_id)).result.blob.digest
    request = pb.ReadBlobRequest(run_id=run_id, digest=digest or known, offset=offset)
    with pytest.raises(grpc.aio.AioRpcError, match=said) as refused:
        await at.client.ReadBlob(request, timeout=60).read()
    assert refused.value.code() is code
    other = pb.ReadBlobRequest(run_id=str(uuid.uuid4()), digest=known)
    with pytest.raises(grpc.aio.AioRpcError) as nowhere:
        await at.client.ReadBlob(other, timeout=60).read()
    assert nowhere.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_large_result_is_reused_whole(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    first = await at.create("blob-echo", count=2)
    await settle(executor, "it/0", LARGE)
    await executor.settle(await executor.start_of("it/1"), **FAILED)
    await at.result(first)
    request = pb.CreateRunRequest(process="blob-echo", reuse_from=first)
    request.input["count"] = 2
    run_id = (await at.client.CreateRun(request, timeout=60)).run.run_id
    start = await eventually(lambda: next((s for s in executor.starts if s.run_id == run_id), None), message="no start")
    assert start is not None
    await executor.settle(start, LARGE[:3])
    assert await at.value(run_id) == [65536, 3]


async def test_a_client_finishes_with_a_large_result(at: World) -> None:
    made = await at.client.CreateRun(pb.CreateRunRequest(key="large", client=pb.ClientDriven()), timeout=60)
    request = pb.FinishRunRequest(run_id=made.run.run_id, client_epoch=made.client_epoch)
    request.succeeded.string_value = LARGE
    for _ in range(2):
        run = (await at.client.FinishRun(request, timeout=60)).run
        blob = json_format.MessageToDict(run.result, preserving_proto_field_name=True)["blob"]
        assert json.loads(await content(at, run.run_id, blob)) == LARGE
