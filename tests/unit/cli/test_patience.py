"""Calls are repeated while the service is away, and only then."""

import grpc
import pytest

from scheduler_service.cli import client


def away(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "away")


async def answered(*errors: grpc.StatusCode) -> str:
    left = list(errors)

    async def call() -> str:
        if left:
            raise away(left.pop(0))
        return "here"

    return await client.patiently(call)


async def test_a_call_is_repeated_while_the_service_is_away_or_closes() -> None:
    """A server that closes ends what comes in just then with CANCELLED (chaos, seed 71003)."""
    assert await answered(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) == "here"


async def test_an_answer_is_not_asked_for_again() -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await answered(grpc.StatusCode.NOT_FOUND)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
