"""Who owns an effect (D2), what CancelledError means (D3), how runs end (D4, D5)."""

import asyncio
from typing import Any

import pytest

import scheduler_service.authoring as bb
from scheduler_service.replay.events import Event
from scheduler_service.replay.execution import Execution
from scheduler_service.replay.harness import (
    RUN_ID,
    START,
    Driven,
    Reply,
    check_prefixes,
    drive,
    failed,
    never,
    succeeded,
)
from tests.replay.answers import by_key


def work(name: str = "work") -> bb.Effect[Any]:
    return bb.function(name)


def run(body: Any, answer: Any = None, outside: list[Reply] | None = None) -> Driven:
    """Drive a process made of an async function of ctx; every history must replay from every prefix."""
    driven = drive(bb.ProcessDefinition("body", body), {}, answer or by_key(), outside=outside or [])
    check_prefixes(driven)
    return driven


def cancels(driven: Driven) -> list[tuple[str, str]]:
    return [
        (event.effect_key, event.data["reason"].removeprefix("EFFECT_REASON_"))
        for event in driven.rows("EFFECT_CANCEL_REQUESTED")
    ]


CANCEL_RUN = Reply("RUN_CANCEL_REQUESTED", {"reason": "enough"}, after=1.0)


def test_a_foreground_effect_is_cancelled_with_its_await_and_raises_only_when_it_has_settled() -> None:
    async def body(ctx: bb.Context) -> Any:
        try:
            async with asyncio.timeout(1):
                await ctx.run(work(), key="slow")
        except TimeoutError:
            return (ctx.now() - START).total_seconds()

    driven = run(body, never)
    assert cancels(driven) == [("slow", "AWAIT_CANCELLED")]
    assert driven.result == 1.002  # the cancelled row comes 2 ms after the request for it


def test_a_second_cancel_stops_waiting_for_the_proof_of_death() -> None:
    async def body(ctx: bb.Context) -> Any:
        task = asyncio.create_task(ctx.run(work(), key="slow"))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled(), (ctx.now() - START).total_seconds()

    assert run(body, never).result == [True, 1]


def test_a_background_effect_outlives_the_await_and_dies_by_cancel_only() -> None:
    async def body(ctx: bb.Context) -> Any:
        handle = ctx.start(work(), key="slow")
        for wait in (asyncio.wait_for(handle, 1), asyncio.gather(handle)):
            try:
                async with asyncio.timeout(1):
                    await wait
            except TimeoutError:
                pass
        assert handle.status == "QUEUED"
        handle.cancel("no use")
        handle.cancel("again")
        try:
            await handle
        except bb.EffectCancelled as error:
            return error.reason, error.key

    driven = run(body, never)
    assert cancels(driven) == [("slow", "CANCELLED_BY_PROCESS")]
    assert driven.result == ["CANCELLED_BY_PROCESS", "slow"]


def test_an_effect_created_and_cancelled_in_one_step_writes_nothing() -> None:
    async def body(ctx: bb.Context) -> Any:
        handle = ctx.start(work(), key="k")
        handle.cancel()
        task = asyncio.create_task(ctx.run(work(), key="f"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        with pytest.raises(bb.EffectCancelled):
            await handle
        return await ctx.run(work(), key="k")  # the key is free again

    driven = run(body)
    assert [event.effect_key for event in driven.rows("EFFECT_REQUESTED")] == ["k"]
    assert cancels(driven) == []


def test_an_effect_cancelled_by_somebody_else_is_an_ordinary_error() -> None:
    def answer(command: Any) -> list[Reply]:
        return [Reply("EFFECT_CANCELLED", {"reason": "EFFECT_REASON_CANCELLED_BY_USER"}, 1.0)]

    async def body(ctx: bb.Context) -> Any:
        await ctx.run(work(), key="k")

    driven = run(body, answer)
    assert driven.end is not None
    assert driven.end.type == "RUN_FAILED"
    assert driven.end.data["error"]["kind"] == "EFFECT_CANCELLED"
    assert driven.end.data["error"]["effect_key"] == "k"


@pytest.mark.parametrize("settles_first", ["result", "timer"])
def test_the_lower_seq_wins_a_race(settles_first: str) -> None:
    """A result and a timeout that come due together: whichever was committed first decides, on every replay."""

    async def body(ctx: bb.Context) -> Any:
        try:
            async with asyncio.timeout(1):
                return await ctx.start(work(), key="k")
        except TimeoutError:
            return "late"

    execution = Execution(bb.ProcessDefinition("body", body), RUN_ID)
    requested = execution.feed(Event(1, "RUN_CREATED", START))
    assert sorted(command.type for command in requested) == ["EFFECT_REQUESTED", "TIMER_SET"]
    result: tuple[str, str, dict[str, Any]] = (
        "EFFECT_RESOLVED",
        "k",
        {"state": "EFFECT_STATE_SUCCEEDED", "result": {"value": {"value": "in time"}}},
    )
    timer: tuple[str, str, dict[str, Any]] = ("TIMER_FIRED", "", {"ordinal": 1})
    order = [result, timer] if settles_first == "result" else [timer, result]
    commands = []
    for seq, (type_, key, data) in enumerate(order, start=2):
        commands += execution.feed(Event(seq, type_, START, effect_key=key, data=data))
    end = next(command for command in commands if command.type in ("RUN_COMPLETED", "RUN_CLOSING"))
    assert end.data["result"]["value"] == ("in time" if settles_first == "result" else "late")
    assert end.cause == 2


def test_cancelling_a_run_raises_in_the_main_task_and_lets_cleanup_run_effects() -> None:
    async def body(ctx: bb.Context) -> Any:
        try:
            await ctx.run(work(), key="slow")
        finally:
            assert ctx.cancel_reason == "enough"
            await ctx.run(work(), key="clean")

    driven = run(body, by_key({"slow": None}), [CANCEL_RUN])
    assert cancels(driven) == [("slow", "RUN_CANCELLED")]
    assert [event.effect_key for event in driven.rows("EFFECT_REQUESTED")] == ["slow", "clean"]
    assert driven.end is not None
    assert (driven.end.type, driven.end.data) == ("RUN_CANCELLED", {"reason": "enough"})


def test_a_cancelled_run_that_returns_is_completed() -> None:
    async def body(ctx: bb.Context) -> Any:
        try:
            await ctx.run(work(), key="slow")
        except asyncio.CancelledError:
            return "saved"

    assert run(body, by_key({"slow": None}), [CANCEL_RUN]).result == "saved"


def test_a_cancel_while_closing_cancels_what_is_waited_for() -> None:
    async def body(ctx: bb.Context) -> Any:
        ctx.start(work(), key="slow")
        return "done"

    driven = run(body, never, [CANCEL_RUN])
    assert cancels(driven) == [("slow", "RUN_CANCELLED")]
    assert driven.result == "done"


def test_on_run_end_waits_cancels_or_detaches() -> None:
    async def body(ctx: bb.Context) -> Any:
        ctx.start(work(), key="waits")
        ctx.start(work(), key="cancels", on_run_end="cancel")
        ctx.start(work(), key="detaches", on_run_end="detach")
        ctx.start(work(), background=False, key="foreground")
        await asyncio.sleep(1)  # else what ends with the run is never asked for
        return 1

    driven = run(body, by_key({"waits": 5.0, "cancels": None, "detaches": 60.0, "foreground": None}))
    assert cancels(driven) == [("cancels", "RUN_ENDED"), ("foreground", "RUN_ENDED")]
    closing, completed = driven.rows("RUN_CLOSING", "RUN_COMPLETED")
    assert closing.data == {"outcome": "RUN_STATE_COMPLETED", "result": {"value": 1}}
    assert completed.seq < driven.events[-1].seq  # the detached effect settled after the end
    assert (completed.recorded_at - START).total_seconds() == 5


def test_a_failed_run_cancels_what_is_open_except_the_detached() -> None:
    async def body(ctx: bb.Context) -> Any:
        ctx.start(work(), key="waits")
        ctx.start(work(), key="detaches", on_run_end="detach")
        await asyncio.sleep(1)
        raise bb.Fail("no", {"why": 1})

    driven = run(body, never)
    assert cancels(driven) == [("waits", "RUN_ENDED")]
    assert driven.end is not None
    assert driven.end.type == "RUN_FAILED"
    assert driven.end.data["error"]["data"] == {"why": 1}
    assert driven.end.data["error"]["kind"] == "FAIL"


def test_tasks_left_behind_are_cancelled_as_asyncio_run_does() -> None:
    async def body(ctx: bb.Context) -> Any:
        async def left() -> None:
            try:
                await ctx.run(work(), key="left")
            finally:
                await ctx.run(work(), key="clean")

        task = asyncio.create_task(left())
        await asyncio.sleep(1)
        return task.done()

    driven = run(body, by_key({"left": None}))
    assert cancels(driven) == [("left", "RUN_ENDED")]
    assert [event.effect_key for event in driven.rows("EFFECT_REQUESTED")] == ["left", "clean"]
    assert driven.result is False


def test_unobserved_failures_are_counted_and_looking_uncounts() -> None:
    async def body(ctx: bb.Context) -> Any:
        seen = ctx.start(work(), key="seen")
        ctx.start(work(), key="unseen")
        await asyncio.sleep(1)
        assert isinstance(seen.exception(), bb.EffectFailed)

    driven = run(body, lambda _command: failed("RAISED"))
    assert driven.end is not None
    assert driven.end.data["unobserved_failures"] == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError("t"), "TIMEOUT"),
        (ExceptionGroup("g", [TimeoutError(), bb.Fail("f")]), "GROUP"),
        (bb.Fail("f"), "FAIL"),
    ],
)
def test_errors_that_fail_a_run(error: BaseException, kind: str) -> None:
    async def body(ctx: bb.Context) -> Any:
        raise error

    driven = run(body)
    assert driven.end is not None
    assert (driven.end.type, driven.end.data["error"]["kind"]) == ("RUN_FAILED", kind)


@pytest.mark.parametrize(
    "error",
    [ValueError("bug"), ExceptionGroup("g", [TimeoutError(), ValueError()]), SystemExit(3), asyncio.CancelledError()],
)
def test_any_other_error_parks_the_run_and_drops_what_the_step_asked_for(error: BaseException) -> None:
    async def body(ctx: bb.Context) -> Any:
        await ctx.run(work(), key="before")
        ctx.start(work(), key="dropped")
        raise error

    driven = drive(bb.ProcessDefinition("body", body), {}, by_key())
    assert [event.type for event in driven.events if event.cause == 3] == ["PROCESS_RUNTIME_ERROR"]
    assert driven.events[-1].data["error"]["kind"] == "EXCEPTION"
    assert "test_ownership.py" in driven.events[-1].data["error"]["traceback"]
    assert "execution.py" not in driven.events[-1].data["error"]["traceback"]


def test_results_that_cannot_be_stored_park_the_run() -> None:
    async def body(ctx: bb.Context) -> Any:
        return {"items": [1, {2}]}

    driven = run(body)
    assert driven.end is not None
    assert driven.end.data["error"]["kind"] == "INVALID_RESULT"
    assert "result.items[1]" in driven.end.data["error"]["message"]


def test_effect_errors_carry_what_is_known() -> None:
    def answer(_command: Any) -> list[Reply]:
        result = {"exit_code": 2, "stderr": {"tail": "boom"}, "usage": {"turns": 3}, "session": {"harness": "codex"}}
        error = {"reason": "EFFECT_REASON_EXITED_NONZERO", "message": "exit code 2"}
        data = {"state": "EFFECT_STATE_FAILED", "result": result, "error": error}
        return [Reply("EFFECT_RESOLVED", data, attempt=3)]

    async def body(ctx: bb.Context) -> Any:
        with pytest.raises(bb.EffectFailed) as caught:
            await ctx.run(bb.shell("make test"))
        error = caught.value
        assert (error.key, error.reason, error.attempts, error.exit_code) == ("make#1", "EXITED_NONZERO", 3, 2)
        assert error.session is not None
        assert (error.stderr_tail, error.session.harness) == ("boom", "codex")
        assert error.session.effect_id == error.effect_id
        assert "test_ownership.py" in error.__notes__[0]
        with pytest.raises(bb.EffectFailed) as caught:
            await asyncio.create_task(ctx.run(bb.shell("make test")))
        assert not hasattr(caught.value, "__notes__")  # no line asked: the loop began that coroutine

    assert run(body, answer).result is None


def test_shell_without_check_gives_its_exit_code() -> None:
    async def body(ctx: bb.Context) -> Any:
        return await ctx.run(bb.shell(["false"], check=False))

    driven = run(body, lambda _command: succeeded(exit_code=1, stdout={"tail": "x"}))
    assert driven.result["exit_code"] == 1
    assert driven.result["stdout_tail"] == "x"


def test_a_run_does_not_wait_for_an_effect_that_was_taken_back_as_it_ended() -> None:
    async def body(ctx: bb.Context) -> Any:
        left = asyncio.ensure_future(ctx.run(work(), key="late", on_run_end="wait"))
        await asyncio.sleep(0)
        assert not left.done()

    driven = run(body)
    assert [event.type for event in driven.events] == ["RUN_CREATED", "RUN_COMPLETED"]


def test_a_cancel_reaches_what_a_closing_run_waits_for_and_nothing_else() -> None:
    async def body(ctx: bb.Context) -> Any:
        ctx.start(work(), key="waited", on_run_end="wait")
        left = asyncio.ensure_future(ctx.run(work(), key="late", on_run_end="wait"))
        await asyncio.sleep(0)
        assert not left.done()

    driven = run(body, never, [CANCEL_RUN])
    assert cancels(driven) == [("waited", "RUN_CANCELLED")]
    assert driven.end is not None
    assert driven.end.type == "RUN_COMPLETED"
