"""The one place where errors become statuses, for all four arities of an rpc.

A message that cannot be read is an error of its sender too: gRPC itself would answer it with UNKNOWN and a traceback.
Cancellation always goes on: gRPC itself must see it, or the call's core objects leak.
"""

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from scheduler_service import failpoints
from scheduler_service.api.status import service_error, status_of
from scheduler_service.errors import InvalidRequest, Violation

if TYPE_CHECKING:  # the class has parameters in the stubs only
    Handler = grpc.RpcMethodHandler[Any, Any]

Context = grpc.aio.ServicerContext[Any, Any]
Begins = Callable[[str, Context], None]


def _unheard(_method: str, _context: Context) -> None:
    """Hears of calls when nobody else does."""


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns whatever a handler raises into a google.rpc.Status. `begins` hears of each call: its method and context."""

    def __init__(self, begins: Begins | None = None) -> None:
        self._begins = begins

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Wraps the handler of the call."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        return None if handler is None else _wrapped(handler, method, self._begins)


def _wrapped(handler: "Handler", method: str, begins: Begins | None) -> "Handler":
    for arity, rebuild in _ARITIES.items():
        behavior = getattr(handler, arity)
        if behavior is not None:
            return rebuild(
                _guarded(behavior, method, begins or _unheard, streams=arity.startswith("stream")),
                request_deserializer=_forgiving(handler.request_deserializer),
                response_serializer=handler.response_serializer,
            )
    return handler


_ARITIES: dict[str, Callable[..., "Handler"]] = {
    "unary_unary": grpc.unary_unary_rpc_method_handler,
    "unary_stream": grpc.unary_stream_rpc_method_handler,
    "stream_unary": grpc.stream_unary_rpc_method_handler,
    "stream_stream": grpc.stream_stream_rpc_method_handler,
}


class _Unreadable:
    """Stands for a message that could not be parsed, until it is taken where errors become statuses."""

    def __init__(self, error: DecodeError) -> None:
        self.problem = f"cannot be parsed: {error}"

    @classmethod
    def refuse(cls, message: Any) -> Any:
        """The message, when it is one."""
        if isinstance(message, cls):
            raise InvalidRequest([Violation("request", message.problem)])
        return message


def _forgiving(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    def parse(raw: bytes) -> Any:
        assert deserialize is not None  # noqa: S101 - said below
        try:
            return deserialize(raw)
        except DecodeError as error:
            return _Unreadable(error)

    return None if deserialize is None else parse


class _Readable:
    """The messages of a stream, up to the first that cannot be read."""

    def __init__(self, messages: AsyncIterable[Any]) -> None:
        self._source = messages
        self._messages: AsyncIterator[Any] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._messages is None:  # not earlier: gRPC's iterator must be used once it is made
            self._messages = aiter(self._source)
        return _Unreadable.refuse(await anext(self._messages))


def _guarded(behavior: Callable[..., Any], method: str, begins: Begins, *, streams: bool) -> Callable[..., Any]:
    # gRPC looks at the kind of function to know how to drive it, so that each kind is wrapped by its own kind.
    readable = _Readable if streams else _Unreadable.refuse
    if inspect.isasyncgenfunction(behavior):
        return _guarded_generator(behavior, method, begins, readable)
    if inspect.iscoroutinefunction(behavior):
        return _guarded_coroutine(behavior, method, begins, readable)
    return behavior


def _guarded_coroutine(
    behavior: Callable[..., Awaitable[Any]], method: str, begins: Begins, readable: Callable[[Any], Any]
) -> Callable[..., Awaitable[Any]]:
    async def guarded(request: Any, context: Context) -> Any:
        begins(method, context)
        try:
            answer = await behavior(readable(request), context)
            failpoints.hit("answer", "send")
            return answer
        except grpc.aio.BaseError:
            raise
        except Exception as error:  # noqa: BLE001  # logged and answered as INTERNAL
            await _abort(context, error, method)

    return guarded


def _guarded_generator(
    behavior: Callable[..., Any], method: str, begins: Begins, readable: Callable[[Any], Any]
) -> Callable[..., AsyncIterator[Any]]:
    async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
        begins(method, context)
        try:
            async with aclosing(behavior(readable(request), context)) as frames:
                context.add_done_callback(partial(_close_soon, frames))  # type: ignore[arg-type]  # its stub wants a keyword
                async for frame in frames:
                    yield frame
        except grpc.aio.BaseError:
            raise
        except Exception as error:  # noqa: BLE001  # logged and answered as INTERNAL
            await _abort(context, error, method)

    return guarded


def _close_soon(frames: AsyncGenerator[Any, None], _context: Context) -> None:
    """Closes what made the frames of a call that is over.

    A call that ends while a frame is being sent drops this generator where it stands. Whatever it holds (a place among
    the watchers, subscriptions) would stay held until the garbage collector comes by.
    """
    closing = asyncio.ensure_future(_close(frames))
    _CLOSING.add(closing)
    closing.add_done_callback(_CLOSING.discard)


async def _close(frames: AsyncGenerator[Any, None]) -> None:
    with suppress(RuntimeError):  # it is being closed already
        await frames.aclose()


#: Held here until they are done: the event loop keeps only weak references to tasks.
_CLOSING: set[asyncio.Future[None]] = set()


async def _abort(context: Context, error: Exception, method: str) -> NoReturn:
    status = rpc_status.to_status(status_of(service_error(error, method)))
    await context.abort_with_status(status)
    raise AssertionError("abort_with_status returned")
