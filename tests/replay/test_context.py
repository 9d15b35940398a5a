"""The Context beyond effects: time, randomness, signals, reports, halts, continuing; progress and status of handles."""

import asyncio
from typing import Any

import pytest

import scheduler_service.authoring as bb
from scheduler_service.replay.events import Event
from scheduler_service.replay.execution import Execution
from scheduler_service.replay.harness import RUN_ID, START, Driven, Reply, check_prefixes, drive, never, succeeded


def driven(body: Any, answer: Any = None, outside: list[Reply] | None = None) -> Driven:
    result = drive(bb.ProcessDefinition("body", body), {}, answer or (lambda _c: succeeded()), outside=outside or [])
    check_prefixes(result)
    return result


def signal(after: float, value: Any, name: str = "go") -> Reply:
    return Reply("SIGNAL_RECEIVED", {"name": name, "value": {"value": value}}, after)


@pytest.mark.invariant("I12")
def test_time_is_that_of_the_event_fed() -> None:
    async def body(ctx: bb.Context) -> Any:
        before = ctx.now()
        await asyncio.sleep(90)
        return [(before - START).total_seconds(), (ctx.now() - START).total_seconds(), asyncio.get_event_loop().time()]

    assert driven(body).result == [0, 90, 90]


def test_sleeps_are_rounded_up_to_milliseconds_and_never_now() -> None:
    async def body(ctx: bb.Context) -> Any:
        await asyncio.sleep(0.0000001)
        await asyncio.sleep(0.0014)
        await asyncio.sleep(0)
        await asyncio.sleep(-1)

    rows = driven(body).rows("TIMER_SET")
    assert [row.data["fire_at"] for row in rows] == ["2026-01-01T00:00:00.001Z", "2026-01-01T00:00:00.003Z"]


def test_randomness_is_of_the_run_and_streams_do_not_disturb_each_other() -> None:
    async def body(ctx: bb.Context) -> Any:
        return [ctx.random.random(), str(ctx.uuid4())]

    async def more(ctx: bb.Context) -> Any:
        ctx.random.random()
        with ctx.scope("other"):
            ctx.uuid4()
        return [ctx.random.random(), str(ctx.uuid4())]

    first, second = driven(body).result, driven(more).result
    assert first == driven(body).result
    assert first[0] != second[0]
    assert first[1] == second[1]  # one more random() shifts no uuid
    other = "0190b3a0-0000-7000-8000-000000000002"
    assert drive(bb.ProcessDefinition("body", body), {}, run_id=other).result != first


def test_signals_are_buffered_and_taken_once() -> None:
    async def body(ctx: bb.Context) -> Any:
        await asyncio.sleep(5)
        seen = [await ctx.signal("go")]
        async for value in ctx.signals("go"):
            seen.append(value)
            if value == "end":
                break
        return seen

    outside = [signal(1, 1.0), signal(2, {"b": 1, "a": 2}), signal(3, 0, "other"), signal(9, "end")]
    assert driven(body, None, outside).result == [1, {"a": 2, "b": 1}, "end"]


def test_a_signal_is_not_lost_with_a_wait_that_is_cancelled_as_it_comes() -> None:
    async def body(ctx: bb.Context) -> Any:
        task = asyncio.create_task(ctx.signal("go"))
        other = asyncio.create_task(ctx.signal("stop"))
        await asyncio.wait([other])
        task.cancel()
        return await ctx.signal("go")

    assert driven(body, None, [signal(1, "s", "stop"), signal(2, "kept")]).result == "kept"


def test_reports_and_logs_become_rows() -> None:
    async def body(ctx: bb.Context) -> Any:
        ctx.report(50, "half", {"files": 3})
        ctx.log.warning("%s of %d", "one", 2, path="a.py")
        ctx.log.info("x" * 9000)

    rows = driven(body).rows("RUN_REPORTED", "PROCESS_LOG")
    assert rows[0].data == {"percent": 50, "label": "half", "data": {"files": 3}}
    assert rows[1].data == {"level": "WARNING", "message": "one of 2", "fields": {"path": "a.py"}}
    assert len(rows[2].data["message"]) == 8192


def test_halt_waits_for_the_resume() -> None:
    async def body(ctx: bb.Context) -> Any:
        await ctx.halt("look at it")
        return (ctx.now() - START).total_seconds()

    result = driven(body)
    assert result.result == 1
    assert result.rows("RUN_HALTED")[0].data == {"reason": "look at it"}


def test_continue_as_new_ends_the_run_with_the_next_input() -> None:
    async def body(ctx: bb.Context, count: int = 0, *, name: str = "x") -> Any:
        task = asyncio.create_task(ctx.run(bb.function("f"), key="f"))
        await asyncio.sleep(0)
        with pytest.raises(bb.OptionError, match="foreground"):
            await ctx.continue_as_new(1)
        await task
        await ctx.continue_as_new(count + 1, name="y")

    result = driven(body)
    assert result.events[-1].type == "RUN_CONTINUED"
    assert result.events[-1].data == {"input": {"count": 1, "name": "y"}}


def test_a_cancelled_run_does_not_go_on_as_a_new_one() -> None:
    """Else the new one would begin with the cancel, and its cleanup go on as the next, without an end."""

    async def body(ctx: bb.Context, count: int = 0) -> Any:
        try:
            await ctx.signal("never")
        finally:
            await ctx.run(bb.function("clean"), key="clean")
            await ctx.continue_as_new(count + 1)

    result = driven(body, None, [Reply("RUN_CANCEL_REQUESTED", {"reason": "enough"}, 1)])
    assert result.events[-1].type == "RUN_CANCELLED"
    assert [row.effect_key for row in result.rows("EFFECT_REQUESTED")] == ["clean"]


def test_continue_as_new_goes_through_a_task_group() -> None:
    async def body(ctx: bb.Context, count: int = 0) -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(100))
            await ctx.continue_as_new(count + 1)

    assert driven(body).events[-1].type == "RUN_CONTINUED"


def test_status_progress_and_updates_follow_the_events() -> None:
    progress = {"progress": {"percent": 40, "step": "compile", "eta": "1.500s", "ordinal": 1}}

    def answer(_command: Any) -> list[Reply]:
        return [
            Reply("EFFECT_DISPATCHED", {}, 1), Reply("EFFECT_STARTED", {}, 2), Reply("EFFECT_PROGRESS", progress, 3),
            Reply("EFFECT_PROGRESS", {"progress": {"percent": 41}}, 3.5), Reply("EFFECT_ATTEMPT_FAILED", {}, 5),
            Reply("EFFECT_PROGRESS", {"progress": {"percent": 90}}, 6, attempt=2), *succeeded(after=8),
        ]  # fmt: skip

    async def body(ctx: bb.Context) -> Any:
        handle = ctx.start(bb.agent("codex", prompt="p"), key="k")
        seen = [handle.status]
        for _ in range(6):
            await asyncio.sleep(1)
            seen.append(handle.status)
        assert (handle.progress.percent, handle.progress.eta_seconds) == (90, None)
        return seen

    async def updates(ctx: bb.Context) -> Any:
        handle = ctx.start(bb.agent("codex", prompt="p"), key="k")
        return [(p.percent, p.step, p.eta_seconds) async for p in handle.updates(every=2)]

    statuses = driven(body, answer).rows("RUN_CLOSING")[0].data["result"]["value"]
    assert statuses == ["QUEUED", "DISPATCHED", "RUNNING", "RUNNING", "RUNNING", "QUEUED", "RUNNING"]
    result = driven(updates, answer)
    assert result.result == [[40, "compile", 1.5], [90, "", None]]
    assert result.rows("TIMER_SET") == []


SESSION = {"harness": "codex", "session_id": "s-1", "executor_id": "x", "workspace": "/src"}


@pytest.mark.parametrize(
    ("settled", "continued"),
    [
        (succeeded("text", session=SESSION), SESSION),
        ([Reply("EFFECT_RESOLVED", {"state": "EFFECT_STATE_FAILED", "result": {"session": SESSION}})], SESSION),
        ([Reply("EFFECT_CANCELLED", {"partial": {"session": SESSION}})], SESSION),
        ([Reply("EFFECT_CANCELLED", {})], None),
    ],
)
def test_the_session_of_a_handle_is_continued_however_it_settled(settled: list[Reply], continued: Any) -> None:
    async def body(ctx: bb.Context) -> Any:
        first = ctx.start(bb.agent("codex", prompt="p"), key="first")
        with pytest.raises(bb.OptionError, match="has not settled; await it first"):
            ctx.start(bb.agent("codex", prompt="q"), key="early", continue_from=first)
        assert first.session is None
        await asyncio.wait([first.future()])
        await ctx.run(bb.agent("codex", prompt="q"), key="second", continue_from=first)
        return first.session

    done = driven(body, lambda command: settled if command.effect_key == "first" else succeeded())
    spec = done.rows("EFFECT_REQUESTED")[1].data["spec"]
    effect_id = done.rows("EFFECT_REQUESTED")[0].effect_id
    assert (spec["continue_from"], spec.get("continue_session")) == (effect_id, continued)
    assert done.result == (None if continued is None else {**SESSION, "effect_id": effect_id})


def test_a_child_run_and_an_approval_wait_outside() -> None:
    async def body(ctx: bb.Context) -> Any:
        ask = ctx.start(bb.approval("Deploy?", assignees=["ops"]), key="ask")
        child = ctx.start(bb.run("worker", name="n"), key="child")
        assert (ask.status, child.status) == ("WAITING", "WAITING")
        answer = await ask
        return answer.choice, answer.by, await child

    def answer(command: Any) -> list[Reply]:
        data = {"state": "EFFECT_STATE_SUCCEEDED", "result": {"choice": "yes"}, "resolved_by": "ann"}
        if command.effect_key == "ask":
            return [Reply("EFFECT_RESOLVED", data)]
        return [Reply("CHILD_RUN_STARTED", {"child_run_id": "x"}), *succeeded(7.0)]

    assert driven(body, answer).result == ["yes", "ann", 7]


def test_future_of_a_handle_is_shielded() -> None:
    async def body(ctx: bb.Context) -> Any:
        handle = ctx.start(bb.function("f"), key="k")
        future = handle.future()
        future.cancel()
        return await handle.future()

    assert driven(body, lambda _c: succeeded("v")).result == "v"


def test_bad_input_parks_with_the_field() -> None:
    async def body(ctx: bb.Context, files: list[int]) -> None: ...

    execution = Execution(bb.ProcessDefinition("body", body), RUN_ID)
    (command,) = execution.feed(Event(1, "RUN_CREATED", START, data={"input": {"files": [1, "x"]}}))
    assert command.data["error"]["kind"] == "INVALID_INPUT"
    assert "input.files[1]" in command.data["error"]["message"]


def test_a_blocked_step_is_given_up_between_callbacks() -> None:
    async def body(ctx: bb.Context) -> Any:
        execution.block("File x, line 1")  # as a watchdog would, from its thread
        while True:  # noqa: ASYNC110 - spins on purpose
            await asyncio.sleep(0)

    execution = Execution(bb.ProcessDefinition("body", body), RUN_ID)
    (command,) = execution.feed(Event(1, "RUN_CREATED", START))
    assert command.data["error"]["kind"] == "BLOCKED"
    assert execution.parked


def test_an_effect_that_is_never_answered_leaves_the_run_waiting() -> None:
    async def body(ctx: bb.Context) -> Any:
        await ctx.run(bb.function("f"))

    result = drive(bb.ProcessDefinition("body", body), {}, never)
    assert result.end is None
    assert list(result.execution.open_effects) == ["f#1"]


def test_a_group_is_declared_alike_by_all_who_name_it() -> None:
    async def body(ctx: bb.Context) -> Any:
        ctx.start(bb.shell("x"), key="a", group=bb.group("g", 8))
        ctx.start(bb.shell("x"), key="b", group=bb.group("h", 8, "adaptive"))
        ctx.start(bb.shell("x"), key="c", group=bb.group("g", 8))
        for other in (bb.group("g", 4), bb.group("g", 8, "sequential"), bb.group("h", 8), bb.group("g")):
            with pytest.raises(bb.GroupConflict, match="was declared as"):
                ctx.start(bb.shell("x"), key="d", group=other)
        return "kept"

    done = driven(body)
    assert done.result == "kept"
    assert [row.effect_key for row in done.rows("EFFECT_REQUESTED")] == ["a", "b", "c"]
