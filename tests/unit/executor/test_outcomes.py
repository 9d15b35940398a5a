"""The writer of outcomes: an attempt whose outcome is refused ends all the same, or stays held and reported."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import orjson
import pytest

from executor_service import outcomes
from executor_service.harness.child import spawn_failed
from executor_service.keepers import SpawnFailed
from executor_service.outcome import Ending, Failure, Outcome, settle_item
from executor_service.outcomes import Outcomes
from executor_service.recording import Busy, Refused
from tests.support.eventually import eventually
from tests.unit.executor.fakes import FakeHolder, FakeLane, Item, idle_spool, invocation

if TYPE_CHECKING:
    from executor_service.harness.base import Attempt


@asynccontextmanager
async def running(lane: FakeLane, holder: FakeHolder) -> AsyncIterator[Outcomes]:
    writer = Outcomes(lane, holder, lambda _: None, idle_spool(), "executor")
    task = asyncio.create_task(writer.run())
    try:
        yield writer
        assert not task.done(), "the writer has died"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.invariant("I2", "I13")
async def test_refused_outcome_fails_with_the_words_of_the_database_and_without_result() -> None:
    def answer(_kind: str, item: Item) -> str:
        if item["outcome"] == "succeeded" and item["effect_id"] == "bad":
            raise Refused("unsupported Unicode escape sequence")
        return "ok"

    lane, holder = FakeLane(answer), FakeHolder()
    async with running(lane, holder) as writer:
        for effect in ("good", "bad", "good too"):
            writer.add(invocation(effect, Outcome(value_json=b"1", usage={"turns": 1}, death_proven=True)))
        await eventually(lambda: len(holder.recorded_) == 3)
    [failed] = [item for item in lane.written["settle"] if item["effect_id"] == "bad"]
    assert (failed["outcome"], failed["reason"]) == ("failed", "EFFECT_REASON_INVALID_RESULT")
    assert "unsupported Unicode escape sequence" in failed["message"]
    assert (failed["result"], failed["death"], failed["final"]) == ({}, "DEATH_PROVEN", True)


@pytest.mark.invariant("I13")
async def test_outcome_that_is_refused_altogether_stays_held_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outcomes, "REFUSED_SECONDS", 0.01)
    refusals = 4

    def answer(_kind: str, _item: Item) -> str:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise Refused("not even this")
        return "ok"

    lane, holder = FakeLane(answer), FakeHolder()
    async with running(lane, holder) as writer:
        writer.add(invocation("bad", Outcome()))
        await eventually(lambda: refusals < 3)
        assert holder.recorded_ == [], "it would vanish from the report while its row is open"
        await eventually(lambda: holder.recorded_ == [("bad", 1)])
    assert "it stays held" in caplog.text


async def test_outcome_that_cannot_be_encoded_fails_as_invalid() -> None:
    lane, holder = FakeLane(), FakeHolder()
    async with running(lane, holder) as writer:
        writer.add(invocation("bad", Outcome(usage={"model": "\udcff"})))
        await eventually(lambda: holder.recorded_ == [("bad", 1)])
    assert lane.written["settle"][0]["reason"] == "EFFECT_REASON_INVALID_RESULT"


async def test_lock_timeout_holds_up_no_other_outcome() -> None:
    locked = True

    def answer(_kind: str, item: Item) -> str:
        if locked and item["effect_id"] == "locked":
            raise Busy("locked")
        return "ok"

    lane, holder = FakeLane(answer), FakeHolder()
    async with running(lane, holder) as writer:
        for effect in ("locked", "free"):
            writer.add(invocation(effect, Outcome()))
        await eventually(lambda: holder.recorded_ == [("free", 1)])
        locked = False
        await eventually(lambda: holder.recorded_ == [("free", 1), ("locked", 1)])


def test_what_a_provider_refused_is_told_whole_and_an_ending_of_ours_takes_it_back() -> None:
    failure = Failure("QUOTA_EXHAUSTED", "spent", retry_after_s=90, untouched=True, account="openai:\ud800" + "x" * 300)
    outcome, assignment = Outcome().fail_as(failure), invocation("it").assignment
    item = orjson.loads(settle_item(assignment, "executor", outcome, 1.0, park_after_s=30))
    assert (item["retry_after_s"], item["park_after_s"], item["untouched"]) == (90, 30, True)
    assert len(item["account"]) == 200
    outcome.ended_by(Ending("cancelled", "CANCELLED_BY_USER", "enough"))
    item = orjson.loads(settle_item(assignment, "executor", outcome, 1.0, park_after_s=30))
    assert {"retry_after_s", "park_after_s", "untouched", "account"}.isdisjoint(item)


@pytest.mark.parametrize("has_started", [False, True])
def test_child_that_cannot_start_leaves_nothing_done_unless_one_ran_before(has_started: bool) -> None:
    attempt = cast("Attempt", SimpleNamespace(has_started=has_started))
    outcome = spawn_failed(SpawnFailed("no such file"), attempt)
    assert (outcome.reason, outcome.message, outcome.untouched) == ("SPAWN_FAILED", "no such file", not has_started)


async def test_workspace_that_is_made_is_no_child_that_has_run() -> None:
    attempt = invocation("a")
    attempt.started(0)
    assert not attempt.has_started
    attempt.started(7)
    attempt.started(0)
    assert attempt.has_started
