"""Where asyncio does something else before Python 3.13: a run has to go the same way wherever it is replayed.

What is changed here is changed for deterministic loops only; `tasks.py` has one more such place, `Task.uncancel`.
"""

from __future__ import annotations

import asyncio
import asyncio.tasks
import sys
from asyncio import events as asyncio_events
from collections.abc import Awaitable
from typing import Any


def align_asyncio(deterministic: type[Any]) -> None:
    """Give older Pythons what 3.13 does with cancels in TaskGroups, and with `asyncio.wait_for`."""
    if sys.version_info < (3, 13):
        _align_groups(deterministic)
    if sys.version_info < (3, 12):
        _align_wait_for(deterministic)


def _align_groups(deterministic: type[Any]) -> None:
    # A group whose child fails while the group is waited for left a cancel counted on its task, so that a later
    # `asyncio.timeout` did not know its own; and a cancel from outside that came together with a failure was lost.
    original = asyncio.TaskGroup.__aexit__

    async def leave(group: Any, kind: Any, error: Any, traceback: Any) -> None:
        requested, parent = group._parent_cancel_requested, group._parent_task
        try:
            await original(group, kind, error, traceback)
        except BaseExceptionGroup:
            if group._parent_cancel_requested and not requested:
                parent.uncancel()
            if parent.cancelling():  # from outside: it comes again, at the next await
                parent.uncancel()
                parent.cancel()
            raise

    async def __aexit__(group: Any, kind: Any, error: Any, traceback: Any) -> None:
        leaves = leave if isinstance(asyncio_events._get_running_loop(), deterministic) else original
        await leaves(group, kind, error, traceback)

    asyncio.TaskGroup.__aexit__ = __aexit__  # type: ignore[assignment]


def _align_wait_for(deterministic: type[Any]) -> None:
    # It ran the awaitable in a task of its own, which changes the order in which all goes on.
    shared = asyncio.wait_for

    async def wait_for(fut: Awaitable[Any], timeout: float | None) -> Any:
        if not isinstance(asyncio_events._get_running_loop(), deterministic):
            return await shared(fut, timeout)
        if timeout is not None and timeout <= 0:
            return await _at_once(asyncio.ensure_future(fut))
        async with asyncio.timeout(timeout):
            return await fut

    wait_for.__doc__ = shared.__doc__
    asyncio.wait_for = asyncio.tasks.wait_for = wait_for  # type: ignore[assignment]


async def _at_once(future: asyncio.Future[Any]) -> Any:
    if future.done():
        return future.result()
    future.cancel()
    await asyncio.wait([future])
    try:
        return future.result()
    except asyncio.CancelledError as error:
        raise TimeoutError from error
