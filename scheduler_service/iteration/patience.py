"""Waiting for a database that went away in the middle of something that may be begun again."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from scheduler_service.journal import JournalUnavailable

log = logging.getLogger(__name__)

_PAUSE_SECONDS: Final = 0.25


async def patiently(work: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Does the work, from its beginning as often as Postgres goes away in it.

    Raises JournalUnavailable when it is away for longer than that.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await work()
        except JournalUnavailable as error:
            if time.monotonic() > deadline:
                raise
            log.warning("waiting for Postgres: %s", error)
            await asyncio.sleep(_PAUSE_SECONDS)
