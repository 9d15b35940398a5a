"""The writer of starts, progress and output: what is bad, refused or busy harms nothing beside it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from executor_service import reports
from executor_service.line_protocol import Report
from executor_service.outcome import Outcome
from executor_service.outcomes import Outcomes
from executor_service.output import Capture
from executor_service.recording import Busy, Refused
from executor_service.reports import Reports
from tests.support.eventually import eventually
from tests.unit.executor.fakes import Answer, FakeHolder, FakeLane, Item, idle_spool, invocation


@asynccontextmanager
async def running(lane: FakeLane) -> AsyncIterator[Reports]:
    holder = FakeHolder()
    writer = Reports(lane, holder, lambda _: None, Outcomes(lane, holder, lambda _: None, idle_spool(), "executor"))
    task = asyncio.create_task(writer.run())
    try:
        yield writer
        assert not task.done(), "the writer has died, and the executor would stop"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def wrote(lane: FakeLane, kind: str, effects: list[str]) -> bool:
    return lane.effects(kind) == effects


def refuse(*effects: str, kind: str = "", error: Callable[[], Exception] = lambda: Refused("no")) -> Answer:
    def answer(asked: str, item: Item) -> str:
        if asked == (kind or asked) and item["effect_id"] in effects:
            raise error()
        return "ok"

    return answer


async def test_progress_that_cannot_be_encoded_is_left_out_alone() -> None:
    lane = FakeLane()
    async with running(lane) as writer:
        bad, good = invocation("bad"), invocation("good")
        for each in (bad, good):
            each.progress.apply(Report(step="one"))
        bad.progress.step = "\udcff"
        writer.dirty_progress(bad)
        writer.dirty_progress(good)
        await eventually(lambda: lane.effects("progress") == ["good"])


@pytest.mark.parametrize("kind", ["started", "progress"])
async def test_output_waits_for_nothing_that_was_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "OUTPUT_SECONDS", 0.0)  # due in the same turn as what is refused
    lane = FakeLane(refuse("refused", kind=kind))
    async with running(lane) as writer:
        talks, refused = invocation("talks"), invocation("refused")
        capture = Capture(1, 1000)
        capture.write(b"hello")
        talks.captures[1] = capture
        refused.progress.apply(Report(step="one"))
        writer.dirty_output(talks)
        if kind == "started":
            asyncio.get_running_loop().call_later(0.0, writer.started, refused)
        else:
            writer.dirty_progress(refused)
        await eventually(lambda: lane.written["output"] == [{"effect_id": "talks", "data": b"hello"}])
        assert kind in lane.calls


async def test_one_refused_item_drops_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "PROGRESS_SECONDS", 0.0)
    lane = FakeLane(refuse("3"))
    others = ["0", "1", "2", "4", "5", "6"]
    async with running(lane) as writer:
        for n in range(7):
            each = invocation(str(n))
            each.progress.apply(Report(step="one"))
            each.captures[1] = Capture(1, 1000)
            each.captures[1].write(b"x")
            writer.started(each)
            writer.dirty_progress(each)
            writer.dirty_output(each)
        for kind in ("started", "progress", "output"):
            await eventually(partial(wrote, lane, kind, others))


async def test_call_that_is_refused_as_a_whole_is_not_taken_apart() -> None:
    lane = FakeLane(refuse("0", error=lambda: Refused("no rights", whole=True)))
    async with running(lane) as writer:
        for n in range(50):
            writer.started(invocation(str(n)))
        await eventually(lambda: lane.calls)
        last = invocation("last")
        writer.started(last)
        await eventually(lambda: lane.effects("started") == ["last"])
        assert lane.calls == ["started"] * 2


@pytest.mark.parametrize("how", ["an answer", "a lock timeout"])
async def test_busy_reports_are_tried_again(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(reports, "PROGRESS_SECONDS", 0.0)
    busy = {"started": 3, "progress": 3}

    def answer(kind: str, item: Item) -> str:
        if item["effect_id"] != "busy" or busy[kind] == 0:
            return "ok"
        busy[kind] -= 1
        if how == "an answer":
            return "busy"
        raise Busy("locked")

    lane = FakeLane(answer)
    async with running(lane) as writer:
        for effect in ("free", "busy", "free too"):
            each = invocation(effect)
            each.progress.apply(Report(step="one"))
            writer.started(each)
            writer.dirty_progress(each)
        for kind in ("started", "progress"):
            await eventually(partial(wrote, lane, kind, ["free", "free too", "busy"]))
        assert all(item["durable"] for item in lane.written["progress"]), "the row is still due"


async def test_outcome_does_not_wait_for_output_while_postgres_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has to be on disk before this process may die of anything."""
    monkeypatch.setattr(reports, "_LAST_OUTPUT_SECONDS", 600.0)
    lane = FakeLane(refuse("it", kind="output", error=lambda: Busy("away")))
    lane._failures = 1
    ended = invocation("it", Outcome())
    capture = Capture(1, 100)
    capture.write(b"said")
    ended.captures[1] = capture
    async with running(lane) as writer:
        writer.settle(ended)
        waiting = writer._outcomes._waiting
        await eventually(lambda: [settlement.invocation for settlement in waiting] == [ended])
