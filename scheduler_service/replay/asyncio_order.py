"""The places where asyncio leads past anything that a loop can decide: two orders that hang on memory addresses, and
the functions that would bring another loop in.

All are changed for deterministic loops only; for every other loop they are what they were.
"""

from __future__ import annotations

import asyncio
import asyncio.tasks
import functools
from asyncio import events as asyncio_events
from typing import Any

from scheduler_service.authoring.errors import DeterminismError
from scheduler_service.replay.guards import process_line


def order_asyncio(deterministic: type[Any]) -> None:
    """Give futures of `asyncio.gather` a hash by creation order, and `asyncio.all_tasks` the order of creation."""
    _order_gathering(deterministic)
    _order_all_tasks(deterministic)
    for name in ("run", "new_event_loop", "set_event_loop", "set_event_loop_policy"):
        _refuse(name, deterministic)


def _refuse(name: str, deterministic: type[Any]) -> None:
    # A process has the one loop that it runs on; another one would be real.
    original = getattr(asyncio, name)

    @functools.wraps(original)
    def refuse(*args: Any, **kwargs: Any) -> Any:
        if isinstance(asyncio_events._get_running_loop(), deterministic):
            for given in args:
                if asyncio.iscoroutine(given):
                    given.close()
            raise DeterminismError(f"asyncio.{name}()", "await: a process has its one loop already", process_line())
        return original(*args, **kwargs)

    setattr(asyncio, name, refuse)


def _order_gathering(deterministic: type[Any]) -> None:
    # gather makes its future itself, past `loop.create_future`; `asyncio.wait` puts it into a set.
    def hash_by_creation(future: Any) -> int:
        loop = future.get_loop()
        if not isinstance(loop, deterministic):
            return object.__hash__(future)
        if not hasattr(future, "ordinal"):
            future.ordinal = loop.next_ordinal()
        return int(future.ordinal)

    asyncio.tasks._GatheringFuture.__hash__ = hash_by_creation  # type: ignore[attr-defined]


def _order_all_tasks(deterministic: type[Any]) -> None:
    # It walks a set that the tasks of all loops share, so that other runs would decide where ours come.
    shared = asyncio.all_tasks

    def all_tasks(loop: asyncio.AbstractEventLoop | None = None) -> set[asyncio.Task[Any]]:
        of = loop or asyncio.get_running_loop()
        if isinstance(of, deterministic):
            return set(of.tasks)
        return shared(loop)

    all_tasks.__doc__ = shared.__doc__
    asyncio.all_tasks = asyncio.tasks.all_tasks = all_tasks
