"""Waiting for a condition instead of sleeping."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")
Message = str | Callable[[], str]


@overload
async def eventually(
    predicate: Callable[[], Awaitable[T]], timeout: float = ..., message: Message = ..., interval: float = ...
) -> T: ...
@overload
async def eventually(
    predicate: Callable[[], T], timeout: float = ..., message: Message = ..., interval: float = ...
) -> T: ...
async def eventually(
    predicate: Callable[[], Any], timeout: float = 30.0, message: Message = "", interval: float = 0.01
) -> Any:
    """Return the first true value of `predicate` (plain or async); fail when there is none in time.

    An AssertionError that the predicate raises counts as "not yet", and is shown as the cause of the failure: so a
    group of asserts can be waited for as it stands.
    """
    deadline = time.monotonic() + timeout
    while True:
        failure: AssertionError | None = None
        value = None
        try:
            answer = predicate()
            value = await answer if inspect.isawaitable(answer) else answer
        except AssertionError as error:
            failure = error
        if value:
            return value
        if time.monotonic() > deadline:
            said = message() if callable(message) else message
            raise AssertionError(f"not within {timeout:g} s: {said or predicate}; last: {value!r}") from failure
        await asyncio.sleep(interval)
