"""A message that cannot be parsed is its sender's error: gRPC itself would answer UNKNOWN and log a traceback."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError

from executor_service.errors import InvalidRequest

if TYPE_CHECKING:  # the class has parameters in the stubs only
    Handler = grpc.RpcMethodHandler[Any, Any]

Refuse = Callable[[Any, InvalidRequest], Awaitable[None]]

_REBUILD: Final[dict[str, Callable[..., "Handler"]]] = {
    "unary_unary": grpc.unary_unary_rpc_method_handler,
    "unary_stream": grpc.unary_stream_rpc_method_handler,
}


class RefuseUnreadable(grpc.aio.ServerInterceptor):
    """Refuses what cannot be parsed, with `refuse(context, error)`. For rpcs whose request is one message."""

    def __init__(self, refuse: Refuse) -> None:
        self._refuse = refuse

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Wraps the handler of the call."""
        handler = await continuation(handler_call_details)
        for arity, rebuild in _REBUILD.items():
            behavior = getattr(handler, arity, None)
            if handler is not None and behavior is not None and handler.request_deserializer is not None:
                return rebuild(
                    self._reading(behavior),
                    request_deserializer=_forgiving(handler.request_deserializer),
                    response_serializer=handler.response_serializer,
                )
        return handler

    def _reading(self, behavior: Callable[..., Any]) -> Callable[..., Any]:
        async def one(request: Any, context: Any) -> Any:
            if isinstance(request, DecodeError):
                await self._refuse(context, _unreadable(request))
            return await behavior(request, context)

        async def many(request: Any, context: Any) -> AsyncIterator[Any]:
            if isinstance(request, DecodeError):
                await self._refuse(context, _unreadable(request))
            async for frame in behavior(request, context):
                yield frame

        if inspect.isasyncgenfunction(behavior):
            return many
        return one if inspect.iscoroutinefunction(behavior) else behavior


def _unreadable(error: DecodeError) -> InvalidRequest:
    return InvalidRequest("request", f"cannot be parsed: {error}")


def _forgiving(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except DecodeError as error:
            return error

    return parse
