"""Waiting for a condition in the journal: woken by what this replica hears of, with a poll as the truth behind it."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import grpc

from scheduler_service.api import limits

T = TypeVar("T")

POLL_SECONDS: Final = 1.0
# A wake can be ahead of what the database shows only when something is wrong; it must not become a busy loop.
_PAUSE_SECONDS_MIN: Final = 0.02


def wait_seconds(max_wait_s: float, context: grpc.aio.ServicerContext[Any, Any]) -> float:
    """How long a call may wait, so that its answer arrives before the caller's deadline."""
    remaining: float | None = context.time_remaining()  # None, which the stubs leave out, is "no deadline"
    allowed = max_wait_s if remaining is None else min(max_wait_s, remaining - limits.DEADLINE_MARGIN_SECONDS)
    return max(0.0, allowed)


async def wait_until(
    wake: Callable[[int, float], Awaitable[Any]],
    read: Callable[[], Awaitable[tuple[T, bool, int]]],
    seconds: float,
    leaving: Callable[[], bool],
) -> tuple[T, bool]:
    """Reads until it is done or the time is over. `read` answers (value, done, seq it has seen).

    `wake(after_seq, timeout_s)` returns when something new may be there. `leaving` says that this replica goes away:
    then the time is over, so that the caller has an answer instead of a broken call. Returns the newest value, and
    whether the time was over first.
    """
    end = time.monotonic() + seconds
    seen = -1
    while True:
        value, done, seq = await read()
        left = end - time.monotonic()
        if done or left <= 0 or leaving():
            return value, not done
        if seq == seen:
            await asyncio.sleep(_PAUSE_SECONDS_MIN)
        seen = seq
        await wake(seq, max(_PAUSE_SECONDS_MIN, min(left, POLL_SECONDS * random.uniform(0.75, 1.0))))
