"""Every limit that GetServerInfo names, tried over the wire: at its edge, and one past it.

A limit without a case fails the first test. Where the value itself would cost a test minutes or gigabytes, the case
says how it comes near.
"""

import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Value
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api import limits
from scheduler_service.api.effect_specs import stored_spec
from scheduler_service.authoring import options
from scheduler_service.authoring.values import canonical_json
from tests.integration.api.scene import Scene, log_row, refused, shell
from tests.support.client_program import ClientProgram, external, fresh_key, spec

Case = Callable[[Scene, pytest.MonkeyPatch], Awaitable[None]]
#: Sends something of a size; asserts nothing.
Send = Callable[[Scene, int], Awaitable[Any]]
CASES: Final[dict[str, Case]] = {}


def case(name: str) -> Callable[[Case], Case]:
    """Registers what tries a limit."""

    def register(found: Case) -> Case:
        assert CASES.setdefault(name, found) is found, f"{name} has two cases"
        return found

    return register


def edge(name: str, field: str, reason: str = "INVALID_REQUEST") -> Callable[[Send], Send]:
    """Registers what sends the limit, which is taken, and one more, which is refused with this field and reason."""

    def register(send: Send) -> Send:
        async def tried(at: Scene, _patch: pytest.MonkeyPatch) -> None:
            most = int(limits.LIMITS[name])
            await send(at, most)
            await violates(send(at, most + 1), field, reason)

        case(name)(tried)
        return send

    return register


async def violates(call: Awaitable[Any], field: str, reason: str) -> None:
    """Asserts that a call is refused for one field, and for no other."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(cast("grpc.Call", caught.value))
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status is not None, caught.value
    for packed in status.details:
        packed.Unpack(info)
        packed.Unpack(bad)
    assert (caught.value.code(), info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert [violation.field for violation in bad.field_violations] == [field], bad


def test_every_limit_has_a_case() -> None:
    assert set(CASES) == set(limits.LIMITS)


async def test_each_limit_is_where_it_is_said_to_be(at: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """One database for all of them; every limit that does not hold is named."""
    failures: dict[str, BaseException] = {}
    for name, tried in CASES.items():
        with monkeypatch.context() as patch:
            try:
                await tried(at, patch)
            except (AssertionError, grpc.RpcError, pytest.fail.Exception) as error:
                failures[name] = error
    if failures:
        raise BaseExceptionGroup(f"these limits do not hold: {', '.join(failures)}", [*failures.values()])


# -- names, texts and counts ---------------------------------------------------------------------------------------


@edge("namespace_bytes_max", "namespace")
async def _namespace(at: Scene, size: int) -> None:
    await at.create(namespace="n" * size)


@edge("key_bytes_max", "key")
async def _key(at: Scene, size: int) -> None:
    await at.create(key=fresh_key().ljust(size, "k"))


@edge("name_bytes_max", "processes[0]")
async def _name(at: Scene, size: int) -> None:
    await at.client.ListRuns(pb.ListRunsRequest(processes=["é" * (size // 2) + "p" * (size % 2)]))


@edge("labels_max", "labels")
async def _labels(at: Scene, count: int) -> None:
    await at.create(labels={f"l{n}": "" for n in range(count)})


@edge("label_name_bytes_max", f"labels['{'l' * 64}']")
async def _label_name(at: Scene, size: int) -> None:
    await at.create(labels={"l" * size: ""})


@edge("label_value_bytes_max", "labels['l']")
async def _label_value(at: Scene, size: int) -> None:
    await at.create(labels={"l": "v" * size})


@edge("reason_bytes_max", "reason")
async def _reason(at: Scene, size: int) -> None:
    await at.client.HaltRun(pb.HaltRunRequest(run_id=await at.create(), reason="r" * size))


@edge("actor_bytes_max", "actor")
async def _actor(at: Scene, size: int) -> None:
    request = pb.ResolveEffectRequest(effect=await _question(at), actor="a" * size)
    request.succeeded.choice = "yes"
    await at.client.ResolveEffect(request)


@edge("filter_values_max", "processes")
async def _filter(at: Scene, count: int) -> None:
    await at.client.ListRuns(pb.ListRunsRequest(processes=["p"] * count))


@edge("wait_keys_max", "keys")
async def _wait_keys(at: Scene, count: int) -> None:
    program = await ClientProgram.start(at.client)
    keys = [f"k{n}" for n in range(count)]
    await program.request(dict.fromkeys(keys[: limits.REQUEST_EFFECTS_MAX], external("yes")))
    assert len(await program.wait(*keys, max_wait_s=0)) == count


@edge("output_positions_max", "output_positions")
async def _positions(at: Scene, count: int) -> None:
    watch = pb.WatchRunRequest(run_id=await at.create())
    for n in range(count):
        watch.output_positions.add(effect_id=str(uuid.uuid4()), attempt=n, stream=1)
    call = at.client.WatchRun(watch)
    await call.read()
    call.cancel()


# -- values --------------------------------------------------------------------------------------------------------


@edge("input_bytes_max", "input", "PAYLOAD_TOO_LARGE")
async def _input(at: Scene, size: int) -> None:
    request = pb.CreateRunRequest()
    request.client.SetInParent()
    request.input["x"] = "x" * (size - len('{"x":""}'))
    await at.client.CreateRun(request)


@edge("value_bytes_max", "succeeded.value", "PAYLOAD_TOO_LARGE")
async def _value(at: Scene, size: int) -> None:
    request = pb.ResolveEffectRequest(effect=await _question(at))
    request.succeeded.choice = "yes"
    request.succeeded.value.string_value = "v" * (size - len('""'))
    await at.client.ResolveEffect(request)


@edge("signal_bytes_max", "value", "PAYLOAD_TOO_LARGE")
async def _signal(at: Scene, size: int) -> None:
    request = pb.SignalRunRequest(run_id=await at.create(), name="s", request_id=str(uuid.uuid4()))
    request.value.string_value = "v" * (size - len('""'))
    await at.client.SignalRun(request)


@edge("spec_bytes_max", "effects[0].spec", "PAYLOAD_TOO_LARGE")
async def _spec(at: Scene, size: int) -> None:
    program = await ClientProgram.start(at.client)
    around = len(canonical_json(stored_spec(spec(external={"prompt": "p"})))) - 1
    await program.request({"k": spec(external={"prompt": "p" * (size - around)})})


@edge("error_bytes_max", "failed.message")
async def _error(at: Scene, size: int) -> None:
    program = await ClientProgram.start(at.client)
    await program.finish(error="m" * size)


@edge("error_data_bytes_max", "failed.data", "PAYLOAD_TOO_LARGE")
async def _error_data(at: Scene, size: int) -> None:
    program = await ClientProgram.start(at.client)
    request = pb.FinishRunRequest(run_id=program.run_id, client_epoch=program.epoch)
    request.failed.data.string_value = "d" * (size - len('""'))
    await at.client.FinishRun(request)


@edge("message_bytes_max", "input", "PAYLOAD_TOO_LARGE")
async def _message(at: Scene, size: int) -> None:
    """Small numbers: 2 bytes as JSON, 11 as a message. Whoever is taken is answered, by default clients."""
    request = pb.CreateRunRequest()
    request.client.SetInParent()
    request.input.update({"numbers": [1] * 250_000, "rest": ""})
    rest = size - Value(struct_value=request.input).ByteSize()
    request.input["rest"] = "x" * rest
    rest -= Value(struct_value=request.input).ByteSize() - size  # its lengths are longer now
    request.input["rest"] = "x" * rest
    assert Value(struct_value=request.input).ByteSize() == size
    run_id = (await at.client.CreateRun(request)).run.run_id
    run = (await at.client.GetRun(pb.GetRunRequest(run_id=run_id))).run
    [created] = (await at.client.ReadJournal(pb.ReadJournalRequest(run_id=run_id))).events
    assert run.input == created.run_created.input == request.input


# -- requests and open work ----------------------------------------------------------------------------------------


@edge("request_effects_max", "effects")
async def _request_effects(at: Scene, count: int) -> None:
    program = await ClientProgram.start(at.client)
    await program.request({f"k{n}": external("yes") for n in range(count)})


@edge("request_bytes_max", "effects", "PAYLOAD_TOO_LARGE")
async def _request_bytes(at: Scene, size: int) -> None:
    program = await ClientProgram.start(at.client)
    request = pb.RequestEffectsRequest(run_id=program.run_id, client_epoch=program.epoch)
    for n in range(5):
        request.effects.add(key=f"k{n}", spec=spec(external={"prompt": "p" * (size // 5 - 1000)}))
    request.effects[0].spec.external.prompt += "p" * (size - request.ByteSize())
    assert request.ByteSize() == size
    await at.client.RequestEffects(request)


@case("open_effects_max")
async def _open_effects(at: Scene, _patch: pytest.MonkeyPatch) -> None:
    """The head is told that it has all but one of them open."""
    program = await ClientProgram.start(at.client)
    async with await psycopg.AsyncConnection.connect(at.dsn, autocommit=True) as connection:
        await connection.execute(
            "UPDATE backburner.run_heads SET open_effects = %s WHERE run_id = %s",
            [limits.OPEN_EFFECTS_MAX - 1, program.run_id],
        )
    too_many = program.request({"a": external("yes"), "b": external("yes")})
    await refused(too_many, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    await program.request({"a": external("yes")})
    info = await refused(program.request({"b": external("yes")}), grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert int(info.metadata["open_effects_max"]) == limits.OPEN_EFFECTS_MAX


# -- times ---------------------------------------------------------------------------------------------------------


@case("idle_seconds_default")
async def _idle_default(at: Scene, _patch: pytest.MonkeyPatch) -> None:
    [created] = await (await ClientProgram.start(at.client)).events()
    assert created.run_created.idle_timeout.ToTimedelta().total_seconds() == limits.IDLE_SECONDS_DEFAULT


@case("idle_seconds_min")
async def _idle_min(at: Scene, _patch: pytest.MonkeyPatch) -> None:
    await ClientProgram.start(at.client, idle_s=limits.IDLE_SECONDS_MIN)
    short = ClientProgram.start(at.client, idle_s=limits.IDLE_SECONDS_MIN - 0.001)
    await violates(short, "client.idle_timeout", "INVALID_REQUEST")


@edge("idle_seconds_max", "client.idle_timeout")
async def _idle_max(at: Scene, seconds: int) -> None:
    await ClientProgram.start(at.client, idle_s=seconds)


@edge("cleanup_seconds_max", "cleanup_timeout")
async def _cleanup(at: Scene, seconds: int) -> None:
    await at.create(cleanup_timeout=Duration(seconds=seconds))


@case("cleanup_seconds_default")
async def _cleanup_default(at: Scene, _patch: pytest.MonkeyPatch) -> None:
    """A run that says nothing is left to the loop, which reads the same figure."""
    read = pb.ReadJournalRequest(run_id=await at.create())
    [created] = (await at.client.ReadJournal(read)).events
    assert not created.run_created.HasField("cleanup_timeout")
    assert limits.CLEANUP_SECONDS_DEFAULT == options.CLEANUP_SECONDS_DEFAULT


@case("wait_seconds_default")
async def _wait_default(at: Scene, patch: pytest.MonkeyPatch) -> None:
    """The figure is shortened: who does not say how long waits that long, not until its deadline."""
    patch.setattr(limits, "WAIT_SECONDS_DEFAULT", 0.1)
    assert (await at.client.WaitRun(pb.WaitRunRequest(run_id=await at.create()), timeout=20)).timed_out


@case("wait_seconds_max")
async def _wait_max(at: Scene, patch: pytest.MonkeyPatch) -> None:
    """The figure is shortened: who asks for more is answered after that long, without an error."""
    patch.setattr(limits, "WAIT_SECONDS_MAX", 0.1)
    request = pb.WaitRunRequest(run_id=await at.create(), max_wait=Duration(seconds=3600))
    assert (await at.client.WaitRun(request, timeout=20)).timed_out


# -- answers -------------------------------------------------------------------------------------------------------


@case("page_size_default")
async def _page_default(at: Scene, _patch: pytest.MonkeyPatch) -> None:
    assert await _page(at, 0, limits.PAGE_SIZE_DEFAULT + 1) == limits.PAGE_SIZE_DEFAULT


@case("page_size_max")
async def _page_max(at: Scene, _patch: pytest.MonkeyPatch) -> None:
    assert await _page(at, limits.PAGE_SIZE_MAX + 1, limits.PAGE_SIZE_MAX + 1) == limits.PAGE_SIZE_MAX


@case("answer_bytes_max")
async def _answer_bytes(at: Scene, _patch: pytest.MonkeyPatch) -> None:
    """A page ends with the last effect that fits."""
    run_id = await _large_effects(at)
    request = pb.ListEffectsRequest(run_id=run_id, view=pb.VIEW_FULL)
    first = await at.client.ListEffects(request)
    assert first.next_page_token
    request.page_token = first.next_page_token
    second = await at.client.ListEffects(request)
    assert first.ByteSize() <= limits.ANSWER_BYTES_MAX < first.ByteSize() + second.effects[0].ByteSize()
    assert len(first.effects) + len(second.effects) == 11


@case("journal_page_bytes_max")
async def _journal_bytes(at: Scene, _patch: pytest.MonkeyPatch) -> None:
    """A page ends with the last row that fits; the next one goes on there."""
    request = pb.ReadJournalRequest(run_id=await _large_effects(at), page_size=100)
    first = await at.client.ReadJournal(request)
    assert first.next_after_seq < first.head_seq
    request.after_seq = first.next_after_seq
    second = await at.client.ReadJournal(request)
    assert first.ByteSize() <= limits.JOURNAL_PAGE_BYTES_MAX < first.ByteSize() + second.events[0].ByteSize()
    assert [event.seq for event in (*first.events, *second.events)] == list(range(1, first.head_seq + 1))


@case("snapshot_effects_max")
async def _snapshot(at: Scene, _patch: pytest.MonkeyPatch) -> None:
    program = await ClientProgram.start(at.client)
    await program.request({f"k{n}": external("yes") for n in range(limits.SNAPSHOT_EFFECTS_MAX)})
    for _ in range(2):
        call = at.client.WatchRun(pb.WatchRunRequest(run_id=program.run_id))
        first = await anext(aiter(call))
        assert len(first.snapshot.effects) == limits.SNAPSHOT_EFFECTS_MAX
        call.cancel()
        await program.request({"past": external("yes")})


@case("output_chunk_bytes_max")
async def _chunk(at: Scene, _patch: pytest.MonkeyPatch) -> None:
    await at.connect_executor()
    run_id, most = await at.create(), limits.OUTPUT_CHUNK_BYTES_MAX
    effect_id = await at.request(run_id, "e", shell(), dispatch=True)
    await at.record_output(run_id, effect_id, 1, 0, b"o" * most)
    await at.record_output(run_id, effect_id, 2, 0, b"e" * (most + 1))
    request = pb.StreamOutputRequest(effect=pb.EffectName(effect_id=effect_id))
    frames = [frame async for frame in at.client.StreamOutput(request)]
    assert [len(frame.chunk.data) for frame in frames if frame.HasField("chunk")] == [most, most, 1]


# -- what the cases share ------------------------------------------------------------------------------------------


async def _question(at: Scene) -> pb.EffectName:
    """An external effect that waits for its answer."""
    program = await ClientProgram.start(at.client)
    [effect] = await program.request({"ask": external("yes")})
    return pb.EffectName(effect_id=effect.effect_id)


async def _large_effects(at: Scene) -> str:
    """A run with 11 effects: 8 fit into a page of the journal, 10 into an answer."""
    program = await ClientProgram.start(at.client)
    large = spec(external={"prompt": "p" * 350_000})
    for keys in ("abcdef", "ghijk"):
        await program.request(dict.fromkeys(keys, large))
    return program.run_id


async def _page(at: Scene, page_size: int, rows: int) -> int:
    """How many of so many rows a page of the journal has."""
    run_id = await at.create()
    await at.append(run_id, *(log_row(n) for n in range(rows)))
    return len((await at.client.ReadJournal(pb.ReadJournalRequest(run_id=run_id, page_size=page_size))).events)
