"""A reader that takes too long is cut, and costs nothing from then on; one that reads gets every frame in order."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from scheduler_service.api.watchers import BUFFER_FRAMES_MAX, Pace, Watchers, at_readers_pace
from scheduler_service.errors import TooManyWatchers
from tests.support.eventually import eventually


class Frames:
    """Makes numbers and says how far it has come."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.made = 0
        self.closed = False
        self._count = count
        self._error = error

    async def __call__(self) -> AsyncGenerator[int, None]:
        try:
            while self.made < self._count:
                self.made += 1
                yield self.made
            if self._error is not None:
                raise self._error
        finally:
            self.closed = True


async def test_every_frame_arrives_in_order() -> None:
    frames = Frames(100)
    assert [n async for n in at_readers_pace(frames(), 60.0, lambda: -1)] == list(range(1, 101))
    assert frames.closed


async def test_no_more_is_made_than_the_reader_has_room_for() -> None:
    frames = Frames(1000)
    async with aclosing(at_readers_pace(frames(), 60.0, lambda: -1)) as read:  # type: ignore[type-var]
        assert await anext(read) == 1
        await asyncio.sleep(0.02)
        assert frames.made <= BUFFER_FRAMES_MAX + 2
    assert frames.closed


async def test_a_slow_reader_is_cut_while_it_sleeps_and_told_so_at_last() -> None:
    frames = Frames(1000)
    got = []
    async for n in at_readers_pace(frames(), 0.05, lambda: -1):
        got.append(n)
        if n == 1:
            await eventually(lambda: frames.closed, message="a watch holds what it has while its reader is stuck")
    assert got == [*range(1, len(got)), -1]
    assert len(got) < 50


async def test_an_error_comes_after_what_was_made_before_it() -> None:
    read = at_readers_pace(Frames(3, ValueError("broken"))(), 60.0, lambda: -1)
    assert [await anext(read) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ValueError, match="broken"):
        await anext(read)


async def test_a_reader_that_leaves_ends_the_making() -> None:
    frames = Frames(1000)
    async with aclosing(at_readers_pace(frames(), 60.0, lambda: -1)) as read:  # type: ignore[type-var]
        await anext(read)
    assert frames.closed


def test_the_number_of_watches_is_bounded() -> None:
    watchers = Watchers(1)
    with watchers.one():
        with pytest.raises(TooManyWatchers), watchers.one():
            pass
        assert len(watchers) == 1
    with watchers.one():
        pass
    assert len(watchers) == 0


def test_lifetimes_differ_so_that_watches_do_not_all_come_back_at_once() -> None:
    ends = {round(Pace(lifetime_s=100).end(), 3) for _ in range(20)}
    assert len(ends) > 10
