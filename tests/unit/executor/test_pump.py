"""The reader of a pipe: large pieces of what is quick to get through, small ones of what is not."""

import asyncio
import os
from collections.abc import Callable

import pytest

from executor_service import process_group
from executor_service.process_group import READ_BYTES, READ_BYTES_MIN, TURN_SECONDS, Pump
from tests.support.eventually import eventually

pytestmark = pytest.mark.invariant("I11")


class Clock:
    """Time that only passes when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


async def pieces(monkeypatch: pytest.MonkeyPatch, cost: Callable[[int], float], rounds: int = 12) -> list[int]:
    """Sizes of the pieces that a pump reads of a pipe which is always full; `cost` is seconds by piece number."""
    clock, sizes = Clock(), list[int]()
    monkeypatch.setattr(process_group, "time", clock)

    def take(data: bytes) -> None:
        clock.now += cost(len(sizes))
        sizes.append(len(data))

    read, write = os.pipe()
    os.set_blocking(write, False)
    ended = asyncio.Event()
    pump = Pump(read, take, ended.set)

    def fill() -> bool:
        try:
            while True:
                os.write(write, bytes(READ_BYTES))
        except BlockingIOError:
            return len(sizes) >= rounds

    try:
        await eventually(fill, interval=0.001)
    finally:
        os.close(write)
        pump.close()
    assert ended.is_set()
    return sizes


async def test_what_is_slow_to_get_through_is_read_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = await pieces(monkeypatch, lambda _number: 2 * TURN_SECONDS)
    assert sizes[0] == READ_BYTES
    assert set(sizes[5:]) == {READ_BYTES_MIN}


async def test_what_gets_quick_again_is_read_in_large_pieces_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = await pieces(monkeypatch, lambda number: 2 * TURN_SECONDS if number < 6 else 0.0, rounds=24)
    assert min(sizes) == READ_BYTES_MIN
    assert max(sizes[12:]) == READ_BYTES
