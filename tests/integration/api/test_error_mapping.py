"""Errors on the wire, over a real server, for all four arities."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from scheduler_service.api.interceptor import ErrorInterceptor
from scheduler_service.errors import InvalidRequest, TooManyWatchers, Violation

ARITIES = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]


def raising(error: BaseException) -> dict[str, Any]:
    async def coroutine(_request: Any, _context: Any) -> bytes:
        raise error

    async def generator(_request: Any, _context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        raise error

    return {arity: generator if arity.endswith("stream") else coroutine for arity in ARITIES}


@asynccontextmanager
async def served(behaviors: dict[str, Any], **options: Any) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    handlers = {name: getattr(grpc, f"{name}_rpc_method_handler")(run, **options) for name, run in behaviors.items()}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Test", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)


async def call(channel: grpc.aio.Channel, arity: str) -> grpc.aio.AioRpcError:
    method = getattr(channel, arity)(f"/test.Test/{arity}")
    running = method(iter([b"x"])) if arity.startswith("stream") else method(b"x")

    async def finish() -> None:
        if arity.endswith("stream"):
            async for _ in running:
                pass
        else:
            await running

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await finish()
    return caught.value


def detail(error: grpc.aio.AioRpcError, kind: type[Any]) -> Any:
    status = rpc_status.from_call(cast("grpc.Call", error))
    assert status is not None
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            return message
    return None


@pytest.mark.parametrize("arity", ARITIES)
async def test_an_error_of_ours_arrives_with_its_details(arity: str) -> None:
    async with served(raising(InvalidRequest([Violation("input.files[2]", "is no text")]))) as channel:
        error = await call(channel, arity)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert detail(error, error_details_pb2.ErrorInfo).reason == "INVALID_REQUEST"
    assert detail(error, error_details_pb2.BadRequest).field_violations[0].field == "input.files[2]"


@pytest.mark.parametrize("arity", ARITIES)
async def test_waiting_time_arrives_where_waiting_helps(arity: str) -> None:
    async with served(raising(TooManyWatchers(5))) as channel:
        error = await call(channel, arity)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert detail(error, error_details_pb2.RetryInfo).retry_delay.seconds == 5


@pytest.mark.parametrize("arity", ARITIES)
async def test_a_bug_is_internal_with_an_incident_and_no_secret(arity: str, caplog: pytest.LogCaptureFixture) -> None:
    async with served(raising(KeyError("password=1234"))) as channel:
        error = await call(channel, arity)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "1234" not in str(error.details())
    assert detail(error, error_details_pb2.ErrorInfo).metadata["incident"] in caplog.text


@pytest.mark.parametrize("arity", ARITIES)
async def test_an_abort_of_the_handler_itself_goes_through(arity: str) -> None:
    async def coroutine(_request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")

    async def generator(_request: Any, context: Any) -> AsyncIterator[bytes]:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
        yield b""

    async with served({arity: generator if arity.endswith("stream") else coroutine}) as channel:
        error = await call(channel, arity)
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "no such thing")


@pytest.mark.parametrize("arity", ["unary_unary", "unary_stream"])
async def test_cancellation_reaches_the_handler(arity: str) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def block() -> None:
        started.set()
        try:
            await asyncio.sleep(30)
        finally:
            cancelled.set()

    async def coroutine(_request: Any, _context: Any) -> bytes:
        await block()
        return b""

    async def generator(_request: Any, _context: Any) -> AsyncIterator[bytes]:
        await block()
        yield b""

    async with served({arity: generator if arity.endswith("stream") else coroutine}) as channel:
        running = getattr(channel, arity)(f"/test.Test/{arity}")(b"x")
        await asyncio.wait_for(started.wait(), 30)
        running.cancel()
        await asyncio.wait_for(cancelled.wait(), 30)


@pytest.mark.parametrize("arity", ARITIES)
async def test_what_cannot_be_parsed_is_its_senders_error(arity: str, caplog: pytest.LogCaptureFixture) -> None:
    async def coroutine(request: Any, _context: Any) -> bytes:
        return b"".join([part async for part in request]) if arity == "stream_unary" else b"read"

    async def generator(request: Any, _context: Any) -> AsyncIterator[bytes]:
        if arity == "stream_stream":
            async for _ in request:
                yield b"read"
        yield b"read"

    def parse(_raw: bytes) -> bytes:
        raise DecodeError("bad wire type")

    behaviors = {arity: generator if arity.endswith("stream") else coroutine}
    async with served(behaviors, request_deserializer=parse) as channel:
        error = await call(channel, arity)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = detail(error, error_details_pb2.BadRequest).field_violations
    assert (violation.field, "bad wire type" in violation.description) == ("request", True)
    assert "Traceback" not in caplog.text
