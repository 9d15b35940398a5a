"""An asyncio loop whose time is made up: nothing waits, and what happens is the same each time.

Where the loop would sleep, its clock jumps. `time.monotonic` is the loop's clock meanwhile, so that the code under test
needs no clock of its own; the module `random` is seeded.
"""

import asyncio
import random
import selectors
import time
from collections.abc import Coroutine
from typing import Any, TypeVar
from unittest import mock

T = TypeVar("T")


class Stuck(AssertionError):
    """Everything waits, and nothing will ever happen."""


class _Selector(selectors.SelectSelector):
    """Never waits: the clock jumps instead."""

    def __init__(self, loop: "VirtualLoop") -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck("nothing will ever happen again")
        self._loop.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop. `now` is its time in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now


def run(main: Coroutine[Any, Any, T], seed: int) -> T:
    """Runs a coroutine to its end in made-up time."""
    state = random.getstate()
    random.seed(seed)
    loop = VirtualLoop()
    try:
        with mock.patch.object(time, "monotonic", loop.time):
            return loop.run_until_complete(main)
    finally:
        loop.close()
        random.setstate(state)
