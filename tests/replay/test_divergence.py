"""I8: a history replays to the same commands, or the difference is reported with seq, recorded and asked."""

import asyncio
import dataclasses
from typing import Any

import pytest

import scheduler_service.authoring as bb
from scheduler_service.replay.events import Event
from scheduler_service.replay.execution import replay
from scheduler_service.replay.failures import parked_error
from scheduler_service.replay.harness import RUN_ID, START, Driven, Reply, check_prefixes, drive
from scheduler_service.replay.recorded import Divergence
from tests.replay.answers import by_key


def lint(path: str) -> bb.Effect[Any]:
    return bb.function("lint", path)


async def original(ctx: bb.Context) -> Any:
    first = await ctx.run(lint("a.py"))
    await asyncio.sleep(2)
    handle = ctx.start(lint("b.py"))
    ctx.log.info("started")
    async with asyncio.timeout(60):
        return [first, await handle]


def definition(body: Any) -> Any:
    return bb.ProcessDefinition("body", body)


@pytest.fixture
def history() -> Driven:
    driven = drive(definition(original), {}, by_key())
    assert driven.end is not None
    assert driven.end.type == "RUN_COMPLETED"
    return driven


@pytest.mark.invariant("I8")
def test_changed_arguments_are_reported_with_both_sides(history: Driven) -> None:
    async def changed(ctx: bb.Context) -> Any:
        await ctx.run(lint("other.py"))

    with pytest.raises(Divergence) as caught:
        replay(definition(changed), RUN_ID, history.events)
    error = caught.value
    assert error.seq == 1
    assert error.recorded == ['EFFECT_REQUESTED lint#1 {"function":{"args":["a.py"],"function":"lint"}} (seq 2)']
    assert error.asked == ['EFFECT_REQUESTED lint#1 {"function":{"args":["other.py"],"function":"lint"}}']
    assert "diverged at seq 1 (RUN_CREATED)" in str(error)
    assert parked_error(error)["kind"] == "DIVERGENCE"
    details = parked_error(error)["data"]
    assert details == {"seq": 1, "recorded": error.recorded, "asked": error.asked, "lines": error.lines}
    assert error.lines == [f"{__file__}:{changed.__code__.co_firstlineno + 1}"]


@pytest.mark.invariant("I8")
def test_what_is_not_asked_any_more_and_what_is_asked_too_early_are_reported(history: Driven) -> None:
    async def without_sleep(ctx: bb.Context) -> Any:
        await ctx.run(lint("a.py"))
        await ctx.start(lint("b.py"))

    with pytest.raises(Divergence) as caught:
        replay(definition(without_sleep), RUN_ID, history.events)
    assert caught.value.recorded == ["TIMER_SET 1 (seq 4)"]
    assert [text.split(" {")[0] for text in caught.value.asked] == ["EFFECT_REQUESTED lint#2"]

    async def ends(ctx: bb.Context) -> Any:
        await ctx.run(lint("a.py"))
        await asyncio.Event().wait()

    with pytest.raises(Divergence) as caught:
        replay(definition(ends), RUN_ID, history.events)
    assert (caught.value.seq, caught.value.asked) == (3, [])


def test_a_refused_replay_leaves_nothing_behind(history: Driven) -> None:
    seen: list[str] = []

    async def changed(ctx: bb.Context) -> Any:
        try:
            await ctx.run(lint("other.py"))
        finally:
            seen.append("finally")
            await asyncio.sleep(1)
            seen.append("slept")

    with pytest.raises(Divergence):
        replay(definition(changed), RUN_ID, history.events)
    assert seen == ["finally"]


def test_log_lines_and_scheduling_options_may_change(history: Driven) -> None:
    async def reworded(ctx: bb.Context) -> Any:
        ctx.log.info("new line")
        first = await ctx.run(lint("a.py"), timeout=5, priority=3)
        await asyncio.sleep(1)  # another length: the recorded due time holds
        handle = ctx.start(lint("b.py"), retry=3)
        async with asyncio.timeout(50):
            return [first, await handle]

    execution, pending = replay(definition(reworded), RUN_ID, history.events)
    assert pending == []
    assert execution.closed


def test_the_recorded_due_time_holds(history: Driven) -> None:
    async def sleeps_longer(ctx: bb.Context) -> Any:
        await ctx.run(lint("a.py"))
        await asyncio.sleep(500)

    execution, _ = replay(definition(sleeps_longer), RUN_ID, history.events[:4])
    assert (execution.timers[1] - START).total_seconds() == pytest.approx(2.01)
    assert list(execution.timers) == [1]
    assert 2 not in execution.timers


@pytest.mark.invariant("I8")
def test_results_that_came_between_feed_and_append_do_not_flip_a_race() -> None:
    """Own rows may stand far behind their cause: `cause`, not position, says when they were asked for."""

    async def race(ctx: bb.Context) -> Any:
        handles = [ctx.start(lint(n), key=n) for n in ("a", "b", "c")]
        won = await bb.first_success(handles)
        return won.key

    def resolved(seq: int, key: str) -> Event:
        data = {"state": "EFFECT_STATE_SUCCEEDED", "result": {"value": {"value": key}}}
        return Event(seq, "EFFECT_RESOLVED", START, effect_key=key, data=data)

    driven = drive(definition(race), {}, lambda _command: [])
    events = [*driven.events, resolved(5, "b"), resolved(6, "a"), resolved(7, "c")]
    execution, pending = replay(definition(race), RUN_ID, events)
    assert [(c.cause, c.type, c.effect_key) for c in pending] == [
        (5, "EFFECT_CANCEL_REQUESTED", "a"),
        (5, "EFFECT_CANCEL_REQUESTED", "c"),
        (5, "RUN_CLOSING", ""),
        (7, "RUN_COMPLETED", ""),
    ]
    assert pending[-1].data["result"] == {"value": "b"}
    rows = [
        Event(8 + n, c.type, START, c.cause, c.effect_id, c.effect_key, data=c.data) for n, c in enumerate(pending[:3])
    ]
    again, still = replay(definition(race), RUN_ID, [*events, *rows])
    assert [(c.cause, c.type) for c in still] == [(7, "RUN_COMPLETED")]
    assert again.closed
    assert execution.closed


def test_patched_is_true_for_new_runs_and_false_for_old_histories(history: Driven) -> None:
    async def patched(ctx: bb.Context) -> Any:
        if ctx.patched("twice"):
            await ctx.run(lint("new.py"), key="new")
        return await original(ctx)

    _execution, pending = replay(definition(patched), RUN_ID, history.events)
    assert pending == []
    new = drive(definition(patched), {}, by_key())
    assert [event.type for event in new.events[:3]] == ["RUN_CREATED", "PATCH_MARKED", "EFFECT_REQUESTED"]
    check_prefixes(new)
    with pytest.raises(Divergence, match="PATCH_MARKED twice"):
        replay(definition(original), RUN_ID, new.events)


def test_an_error_row_does_not_bind_the_fixed_code() -> None:
    async def buggy(ctx: bb.Context) -> Any:
        await ctx.run(lint("a.py"))
        raise KeyError("bug")

    driven = drive(definition(buggy), {}, by_key())
    assert driven.events[-1].type == "PROCESS_RUNTIME_ERROR"
    resumed = [*driven.events, Event(len(driven.events) + 1, "RUN_RESUMED", driven.events[-1].recorded_at)]
    execution, pending = replay(definition(original), RUN_ID, resumed)
    assert [(command.cause, command.type) for command in pending] == [(3, "TIMER_SET")]
    assert not execution.parked
    execution.evict()


def test_an_error_past_the_history_is_asked_again_and_ends_the_replay() -> None:
    async def buggy(ctx: bb.Context) -> Any:
        await ctx.run(lint("a.py"))
        raise KeyError("bug")

    driven = drive(definition(buggy), {}, by_key())
    execution, pending = replay(definition(buggy), RUN_ID, driven.events)
    assert [command.type for command in pending] == ["PROCESS_RUNTIME_ERROR"]
    assert execution.parked


def test_operators_rows_are_not_the_process() -> None:
    """Halts, resumes and cancels from outside have no cause and are no divergence."""
    outside = [Reply("RUN_HALTED", {"reason": "op"}, 0.5), Reply("RUN_RESUMED", {}, 0.6)]
    driven = drive(definition(original), {}, by_key(), outside=outside)
    assert driven.end is not None
    assert driven.end.type == "RUN_COMPLETED"
    check_prefixes(driven)


def test_events_must_come_in_order(history: Driven) -> None:
    execution, _ = replay(definition(original), RUN_ID, history.events[:2])
    with pytest.raises(ValueError, match="fed seq 2 after 2"):
        execution.feed(history.events[1])
    with pytest.raises(ValueError, match="fed seq 5 after 2"):
        execution.feed(history.events[4])
    execution.evict()


def test_time_moves_with_events_and_never_back(history: Driven) -> None:
    events = [dataclasses.replace(history.events[0]), dataclasses.replace(history.events[1])]
    execution, _ = replay(definition(original), RUN_ID, events)
    assert execution.seq == 2
    execution.evict()
