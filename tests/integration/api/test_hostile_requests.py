"""Whatever a caller sends: an answer in time, and never INTERNAL."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from backburner.scheduler.v1 import operator_service_pb2, scheduler_service_pb2
from tests.integration.api.scene import NOWHERE, Scene, external, log_row, shell

ALLOWED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.CANCELLED,  # streams, which the test leaves after a few frames
}
SERVICES = {
    "client": scheduler_service_pb2.DESCRIPTOR.services_by_name["SchedulerService"],
    "operator": operator_service_pb2.DESCRIPTOR.services_by_name["OperatorService"],
}
METHODS = [(name, method.name) for name, service in SERVICES.items() for method in service.methods]

Known = dict[str, list[str]]

edges = st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31)])
wide_edges = st.sampled_from([0, 1, 2, -1, 2**53, 2**63 - 1, -(2**63)])
floats = st.floats() | st.sampled_from([0.0, 1e308, float("nan"), float("inf")])


def texts(known: list[str]) -> st.SearchStrategy[str]:
    nasty = ["", "\x00", "a" * 300, "é" * 200, "p", "../..", "%s", "'; DROP TABLE runs --", "\U0001f600", "\n"]
    return st.sampled_from(nasty + known * 3) | st.text(st.characters(codec="utf-8"), max_size=40)


def likely(field: str, known: Known) -> st.SearchStrategy[str]:
    """Mostly what gets a request past its checks, so that what lies behind them is attacked too."""
    good = known.get(field)
    if good is None:
        return texts([text for values in known.values() for text in values])
    return st.integers(0, 9).flatmap(lambda n: texts(good) if n == 0 else st.sampled_from(good))


def messages(kind: type[Message], known: Known, depth: int = 0) -> st.SearchStrategy[Message]:
    """Random messages of a type: any subset of fields, likely and unlikely values."""
    fields = kind.DESCRIPTOR.fields

    @st.composite
    def build(draw: Any) -> Message:
        message = kind()
        for field in fields:
            if depth < 5 and draw(st.integers(0, 7)) < (7 if field.name in known or field.name == "effect" else 1):
                put(message, field, draw, known, depth)
        return message

    if kind is not scheduler_service_pb2.EffectName:
        return build()
    by_id = scheduler_service_pb2.EffectName(effect_id=known["effect_id"][0])
    by_key = scheduler_service_pb2.EffectName(run_id=known["run_id"][0], key="sh")
    return st.integers(0, 3).flatmap(lambda n: build() if n == 0 else st.sampled_from([by_id, by_key]))


def put(message: Message, field: Any, draw: Any, known: Known, depth: int) -> None:
    target = getattr(message, field.name)
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        if kind.fields_by_name["value"].message_type is None:
            for key in draw(st.lists(likely("label", known), max_size=3)):
                target[key] = draw(likely("label", known))
        else:
            for key in draw(st.lists(likely("input", known), max_size=2)):
                target[key].CopyFrom(draw(messages(type(target[key]), known, depth + 1)))
    elif kind is not None and field.is_repeated:
        for _ in range(draw(st.integers(0, 3))):
            item = target.add()
            item.CopyFrom(draw(messages(type(item), known, depth + 1)))
    elif kind is not None:
        target.SetInParent()
        target.CopyFrom(draw(messages(type(target), known, depth + 1)))
    elif field.is_repeated:
        target.extend(draw(st.lists(scalar(field, known), max_size=4)))
    else:
        setattr(message, field.name, draw(scalar(field, known)))


def scalar(field: Any, known: Known) -> st.SearchStrategy[Any]:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return st.binary(max_size=20) if field.type == FieldDescriptor.TYPE_BYTES else likely(field.name, known)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return st.integers(-1, 12)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return floats
    return wide_edges if field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64) else edges


async def outcome(method: Any, request: Message) -> grpc.StatusCode:
    streams = isinstance(method, grpc.aio.UnaryStreamMultiCallable)
    call = method(request, timeout=0.3 if streams else 5)
    try:
        async with asyncio.timeout(10):
            if streams:
                for _ in range(5):
                    if await call.read() is grpc.aio.EOF:
                        break
                call.cancel()
            else:
                await call
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and streams:
            return grpc.StatusCode.OK  # a watch of something that does not end
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_no_message_makes_an_internal_error_or_hangs(at: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """One test for all rpcs: a database for each would cost more than the requests."""
    run_id = await at.create(key="known-key")
    ask = await at.request(run_id, "ask", external("yes"))
    await at.request(run_id, "sh", shell())
    await at.append(run_id, log_row(1))
    known = {
        "namespace": ["", "default"], "run_id": [run_id], "effect_id": [ask, ""], "key": ["ask", "known-key", ""],
        "keys": ["ask", "sh"], "process": ["p"], "processes": ["p"], "request_id": ["", NOWHERE],
        "name": ["go"], "reuse_from": [""],
        "page_token": [""], "input": ["files", "depth"], "label": ["a", "b"], "choice": ["yes"],
    }  # fmt: skip
    answers: dict[str, set[grpc.StatusCode]] = {}
    runner = asyncio.get_running_loop()

    def attack(stub: str, name: str) -> None:
        service = SERVICES[stub]
        request_type = at_type(service.methods_by_name[name].input_type)
        method = getattr(at.client if stub == "client" else at.operator, name)

        @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
        @given(messages(request_type, known))
        def example(request: Message) -> None:
            cap_waits(request)
            code = asyncio.run_coroutine_threadsafe(outcome(method, request), runner).result(30)
            assert code in ALLOWED, request
            answers.setdefault(name, set()).add(code)

        example()

    for stub, name in METHODS:
        await asyncio.to_thread(attack, stub, name)
    assert "incident" not in caplog.text
    shallow = [name for name, codes in answers.items() if not codes - {grpc.StatusCode.INVALID_ARGUMENT}]
    assert not shallow, f"{answers}: the attack never got past the checks of these"
    page = await at.client.ReadJournal(scheduler_service_pb2.ReadJournalRequest(run_id=run_id, page_size=1000))
    assert [event.seq for event in page.events] == list(range(1, page.head_seq + 1))


def at_type(descriptor: Any) -> type[Message]:
    module = scheduler_service_pb2 if hasattr(scheduler_service_pb2, descriptor.name) else operator_service_pb2
    found: type[Message] = getattr(module, descriptor.name)
    return found


def cap_waits(request: Message) -> None:
    """A wait of 55 s is an answer in time too, but not within this test's."""
    if "max_wait" in request.DESCRIPTOR.fields_by_name:
        wait = request.max_wait  # type: ignore[attr-defined]
        wait.seconds, wait.nanos = min(wait.seconds, 0), min(wait.nanos, 10_000_000)
