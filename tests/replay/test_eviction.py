"""Eviction is not cancellation: coroutines are closed newest first, nothing is asked for, nobody else is disturbed."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

import scheduler_service.authoring as bb
from scheduler_service.replay.events import Event
from scheduler_service.replay.execution import Execution
from scheduler_service.replay.harness import RUN_ID, START, drive
from scheduler_service.replay.loop import CLOSES_MAX, OPEN_GENERATORS_WARNING
from tests.replay.answers import by_key


def work(name: str = "work") -> bb.Effect[Any]:
    return bb.function(name)


def evicted(body: Any) -> Execution:
    """An execution that is dropped while its first step's waits are open."""
    execution = Execution(bb.ProcessDefinition("body", body), RUN_ID)
    execution.feed(Event(1, "RUN_CREATED", START))
    execution.evict()
    return execution


def test_eviction_runs_finally_and_emits_nothing() -> None:
    seen: list[str] = []

    async def body(ctx: bb.Context) -> Any:
        async def inner() -> None:
            try:
                await ctx.run(work(), key="k")
            except asyncio.CancelledError:
                seen.append("cancelled")  # must not happen
            finally:
                seen.append("finally")
                await ctx.run(work(), key="cleanup")
                seen.append("emitted")  # must not happen

        async with asyncio.TaskGroup() as group:
            group.create_task(inner())
            group.create_task(inner_sleep())

    async def inner_sleep() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            seen.append("sleep")

    execution = evicted(body)
    assert seen == ["sleep", "finally"]  # newest first
    assert not execution.open_effects
    assert not execution.timers
    with pytest.raises(ValueError, match="evicted"):
        execution.feed(Event(2, "TIMER_FIRED", START, data={"ordinal": 1}))


def test_cleanup_of_an_evicted_run_cannot_start_tasks_or_timers() -> None:
    seen: list[str] = []

    async def body(ctx: bb.Context) -> Any:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(10)
        finally:
            for call in (lambda: loop.create_task(asyncio.sleep(0)), lambda: loop.call_later(1, print)):
                try:
                    call()
                except bb.RunEvicted:
                    seen.append("refused")

    evicted(body)
    assert seen == ["refused", "refused"]


def test_a_handle_used_after_eviction_refuses() -> None:
    kept: list[Any] = []

    async def body(ctx: bb.Context) -> Any:
        kept.extend([ctx, ctx.start(work(), key="k")])
        await asyncio.sleep(1)

    evicted(body)
    ctx, handle = kept
    for call in (lambda: ctx.start(work()), handle.cancel, ctx.now, ctx.uuid4, lambda: ctx.log.info("x")):
        with pytest.raises(bb.RunEvicted):
            call()


@pytest.mark.parametrize("waits_for", ["signal", "effect"])
def test_a_task_group_that_is_closed_around_its_body_is_no_error(
    waits_for: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A TaskGroup that is closed waits for its children first, and makes a group of the GeneratorExit."""
    seen: list[str] = []

    async def body(ctx: bb.Context) -> Any:
        async def child() -> None:
            try:
                await asyncio.sleep(10)
            finally:
                seen.append("child")

        try:
            async with asyncio.TaskGroup() as outer, asyncio.TaskGroup() as inner:
                for group in (outer, inner):
                    group.create_task(child())
                await (ctx.signal("s") if waits_for == "signal" else ctx.run(work(), key="k"))
        finally:
            seen.append("body")

    with caplog.at_level(logging.DEBUG):
        execution = evicted(body)
    assert seen == ["child", "child", "body"]
    assert not execution.open_effects
    assert not caplog.records


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), LookupError("x"), asyncio.CancelledError()])
def test_cleanup_that_raises_does_not_keep_others_from_theirs(error: BaseException) -> None:
    seen: list[str] = []

    async def body(ctx: bb.Context) -> Any:
        async def child(name: str) -> None:
            try:
                await asyncio.sleep(10)
            finally:
                seen.append(name)
                raise error

        async with asyncio.TaskGroup() as group:
            for name in ("a", "b", "c"):
                group.create_task(child(name))

    evicted(body)
    assert seen == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("waits", "warnings"),
    [
        (CLOSES_MAX - 1, []),
        (CLOSES_MAX, ["process code of stubborn has waited 50 times after RunEvicted; it is closed"]),
        # What is more is left to garbage collection, which closes it once again.
        (CLOSES_MAX + 1, ["process code of stubborn goes on after RunEvicted; it is dropped where it waits"]),
    ],
)
def test_a_coroutine_that_goes_on_after_eviction_is_reported_and_dropped(
    waits: int, warnings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    async def body(ctx: bb.Context) -> Any:
        loop = asyncio.get_running_loop()

        async def refuses() -> None:
            waiter = loop.create_future()
            try:
                await waiter
            except bb.RunEvicted:
                for _ in range(waits):
                    with contextlib.suppress(bb.RunEvicted, GeneratorExit):
                        await loop.create_future()

        async def polite() -> None:
            try:
                await asyncio.sleep(10)
            finally:
                seen.append("polite")

        async with asyncio.TaskGroup() as group:
            group.create_task(polite())
            group.create_task(refuses(), name="stubborn")

    evicted(body)
    assert seen == ["polite"]
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == warnings


def test_open_generators_are_closed_newest_first_and_not_cancelled() -> None:
    seen: list[str] = []

    async def numbers(name: str) -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            seen.append("cancelled")  # must not happen
            raise
        finally:
            seen.append(name)

    async def body(ctx: bb.Context) -> Any:
        held = [numbers(name) for name in ("a", "b", "c")]
        for one in held:
            await anext(one)
        await asyncio.sleep(10)

    evicted(body)
    assert seen == ["c", "b", "a"]


@pytest.mark.parametrize(("count", "warnings"), [(OPEN_GENERATORS_WARNING, 0), (OPEN_GENERATORS_WARNING + 50, 1)])
def test_too_many_open_generators_are_warned_of_once(
    count: int, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[int] = []

    async def numbers(n: int) -> AsyncIterator[int]:
        try:
            yield n
            yield n
        finally:
            closed.append(n)

    async def body(ctx: bb.Context) -> int:
        held = [numbers(n) for n in range(count)]
        for one in held:
            await anext(one)
        return len(held)

    run = drive(bb.ProcessDefinition("body", body), {}, by_key())
    assert run.result == count
    assert closed == list(range(count)), "closed in the order in which they were begun"
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == [f"a process holds over {OPEN_GENERATORS_WARNING} open async generators"] * warnings
