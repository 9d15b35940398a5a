"""What is told of errors that asyncio itself would be short about, or silent."""

import asyncio
import gc
import logging
from typing import Any

import pytest

import scheduler_service.authoring as bb
from scheduler_service.replay.harness import Driven, Reply, check_prefixes, drive, failed
from tests.replay.answers import by_key


def end_of(body: Any, answer: Any = None, outside: list[Reply] | None = None) -> tuple[str, str, str]:
    driven: Driven = drive(bb.ProcessDefinition("body", body), {}, answer or by_key(), outside=outside or [])
    check_prefixes(driven)
    assert driven.end is not None
    error = driven.end.data["error"]
    return driven.end.type, error["kind"], error["message"]


async def fail() -> None:
    await asyncio.sleep(1)
    raise KeyError("bug")


def test_the_errors_of_a_group_are_told_one_by_one() -> None:
    async def body(ctx: bb.Context) -> Any:
        async with asyncio.TaskGroup() as tasks:
            for n in range(7):
                tasks.create_task(ctx.run(bb.function("f"), key=f"f/{n}"))

    def answer(_command: Any) -> list[Reply]:
        return failed("RAISED", "no", after=1)

    type_, kind, message = end_of(body, answer)
    assert (type_, kind) == ("RUN_FAILED", "GROUP")
    assert message == "unhandled errors in a TaskGroup (1 sub-exception): EffectFailed: effect f/0: RAISED: no"

    async def both(ctx: bb.Context) -> Any:
        raise ExceptionGroup("many", [ExceptionGroup("two", [ValueError("a"), KeyError()]), *map(OSError, range(5))])

    assert end_of(both)[2] == (
        "many (6 sub-exceptions): ValueError: a; KeyError: KeyError; OSError: 0; OSError: 1; OSError: 2; and 2 more"
    )


def test_a_process_that_cancelled_itself_is_told_so() -> None:
    async def body(ctx: bb.Context) -> Any:
        task = asyncio.create_task(asyncio.sleep(100))
        await asyncio.sleep(0)
        task.cancel()
        await task

    type_, kind, message = end_of(body)
    assert (type_, kind) == ("PROCESS_RUNTIME_ERROR", "EXCEPTION")
    assert message == (
        "CancelledError left the process, but nobody asked for the run's cancel: process code awaited a task or a "
        "future that it had cancelled itself; catch it where it is awaited, or wait with asyncio.wait"
    )


def test_an_error_without_words_is_told_by_its_type() -> None:
    async def body(ctx: bb.Context) -> Any:
        raise NotImplementedError

    assert end_of(body)[2] == "NotImplementedError"


def test_an_error_whose_text_cannot_be_had_is_still_that_error() -> None:
    class Mute(bb.Fail):
        def __str__(self) -> str:
            raise ValueError("no words")

    async def body(ctx: bb.Context) -> Any:
        raise Mute("unsaid")

    assert end_of(body) == ("RUN_FAILED", "FAIL", "Mute (its text cannot be had: ValueError)")


def test_fields_of_a_log_line_may_have_any_name() -> None:
    async def body(ctx: bb.Context) -> Any:
        ctx.log.info("said", level=3, message="m", self=1)

    [row] = drive(bb.ProcessDefinition("body", body), {}).rows("PROCESS_LOG")
    assert row.data == {"level": "INFO", "message": "said", "fields": {"level": 3, "message": "m", "self": 1}}


def test_continue_as_new_in_a_task_that_nobody_awaits_is_not_lost() -> None:
    async def goes_on(ctx: bb.Context) -> None:
        await ctx.run(bb.function("f"), key="f")
        await ctx.continue_as_new()

    async def forgets(ctx: bb.Context) -> Any:
        task = asyncio.create_task(goes_on(ctx), name="renewal")
        await asyncio.sleep(5)
        return task.done()

    async def awaits_later(ctx: bb.Context) -> Any:
        task = asyncio.create_task(goes_on(ctx))
        await asyncio.sleep(5)
        await task

    assert end_of(forgets) == (
        "PROCESS_RUNTIME_ERROR",
        "EXCEPTION",
        "ctx.continue_as_new was called in task 'renewal', which nobody awaited, and the process has returned: await "
        "that task",
    )
    later = drive(bb.ProcessDefinition("body", awaits_later), {}, by_key())
    assert later.events[-1].type == "RUN_CONTINUED"


def test_the_error_of_a_task_that_nobody_looks_at_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def body(ctx: bb.Context) -> Any:
        asyncio.create_task(fail())  # noqa: RUF006 - forgotten on purpose
        await asyncio.sleep(2)
        gc.collect()
        return "returned"

    with caplog.at_level(logging.WARNING):
        driven = drive(bb.ProcessDefinition("body", body), {})
    assert driven.result == "returned"
    assert [record.getMessage() for record in caplog.records] == ["process code: Task exception was never retrieved"]
    assert "KeyError: 'bug'" in caplog.text
