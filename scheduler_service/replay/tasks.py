"""The futures, tasks and timers of the deterministic loop: the same order in every set, on every Python."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scheduler_service.replay.loop import DeterministicLoop


class LoopFuture(asyncio.Future[Any]):
    """A Future that hashes by creation order, so that sets of futures have the same order on every replay."""

    def __init__(self, *, loop: DeterministicLoop) -> None:
        self.ordinal = loop.next_ordinal()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.ordinal


if TYPE_CHECKING or sys.version_info >= (3, 13):
    _Task = asyncio.Task
else:
    # Since 3.13, `uncancel` takes back a cancel that was not delivered yet. The Task that is written in C keeps that
    # state to itself before, and a run has to go the same way wherever it is replayed.
    class _Task(asyncio.tasks._PyTask):
        @property
        def __class__(self):
            return asyncio.Task  # for `isinstance` in process code

        def uncancel(self):
            left = super().uncancel()
            if left == 0:
                self._must_cancel = False
            return left


class LoopTask(_Task[Any]):
    """A Task that hashes by creation order. Its name comes from the loop, never from a counter of the interpreter."""

    def __init__(self, coro: Any, *, loop: DeterministicLoop, name: str | None, context: Any) -> None:
        self.ordinal = loop.next_ordinal()  # before the base class registers the task in a set
        super().__init__(coro, loop=loop, name=name or f"t{self.ordinal}", context=context)

    def __hash__(self) -> int:
        return self.ordinal


class LoopTimer(asyncio.TimerHandle):
    """A durable timer. `due_us` is its due time in microseconds since the epoch, whole milliseconds; None: never."""

    __slots__ = ("asked_at", "due_us", "ordinal")

    def __init__(self, when: float, callback: Any, args: Any, loop: Any, context: Any) -> None:
        super().__init__(when, callback, args, loop, context)
        self.due_us: int | None = None
        self.ordinal = 0  # given when it is written
        self.asked_at = ""
