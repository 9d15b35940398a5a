"""Outcomes that were recorded lately: kept within bounds, sent first in another life, reported while in doubt."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from executor_service import again
from executor_service.again import Again, Lately
from executor_service.lives import Life, Lives
from executor_service.outcome import Outcome, settle_item
from executor_service.recording import SETTLE, Refused
from tests.support.eventually import eventually
from tests.unit.executor.fakes import Answer, FakeLane, invocation

ONE, TWO, THREE = (Life(n, 7, n, datetime(2026, 1, n, tzinfo=UTC)) for n in (1, 2, 3))


class Lane(FakeLane):
    """Answers as long as the database does."""

    def __init__(self, answer: Answer = lambda _kind, _item: "already") -> None:
        super().__init__(answer)
        self.answers = asyncio.Event()
        self.answers.set()
        self.sent: list[str] = []

    async def call(self, statement: str, parameters: Any) -> list[tuple[Any, ...]]:
        await self.answers.wait()
        if statement != SETTLE:
            return []
        self.sent += [item["effect_id"] for item in orjson.loads(parameters[0])]
        return await super().call(statement, parameters)


def keep(lately: Lately, *effects: str, size: int = 10) -> None:
    for effect in effects:
        assignment = invocation(effect).assignment
        outcome = Outcome(value_json=orjson.dumps("x" * size))
        lately.keep(assignment, settle_item(assignment, "executor", outcome, 1.0))


@asynccontextmanager
async def running(lane: Lane, lives: Lives, lately: Lately) -> AsyncIterator[Again]:
    made = Again(lane, lives, lately)
    task = asyncio.create_task(made.run())
    try:
        yield made
        assert not task.done(), "it has died"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def lives() -> Lives:
    made = Lives()
    made.meet(ONE)
    return made


@pytest.mark.invariant("I2")
async def test_what_was_recorded_lately_goes_first_in_another_life(lives: Lives) -> None:
    lane, lately = Lane(), Lately()
    keep(lately, "a", "b")
    async with running(lane, lives, lately) as made:
        assert await made.look()
        assert lane.sent == [], "the life is the same"
        lives.meet(TWO)
        assert not lives.caught_up.is_set(), "others would write before it"
        await asyncio.wait_for(lives.caught_up.wait(), 30)
        assert lane.sent == ["a", "b"]
        assert await made.look()
        assert lane.sent == ["a", "b"]


async def test_another_life_in_the_midst_of_it_gets_all_too(lives: Lives) -> None:
    lane, lately = Lane(), Lately()
    keep(lately, "a")

    def answer(_kind: str, _item: Any) -> str:
        if lives.current == TWO:
            lives.meet(THREE)
        return "ok"

    lane.answer = answer
    async with running(lane, lives, lately) as made:
        lives.meet(TWO)
        assert await made.look()
        assert lives.caught_up.is_set()
        assert lane.sent == ["a", "a"]


async def test_outcome_that_is_refused_holds_up_no_other(lives: Lives) -> None:
    def answer(_kind: str, item: Any) -> str:
        if item["effect_id"] == "bad":
            raise Refused("not this")
        return "ok"

    lane, lately = Lane(answer), Lately()
    keep(lately, "good", "bad", "good too")
    async with running(lane, lives, lately):
        lives.meet(TWO)
        await asyncio.wait_for(lives.caught_up.wait(), 30)
    assert lane.effects("settle") == ["good", "good too"]


async def test_outcome_of_a_run_that_stays_locked_holds_up_others_for_a_while_only(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(again, "_BUSY_SECONDS_MAX", 0.0)
    locked = True
    lane, lately = Lane(lambda _kind, item: "busy" if item["effect_id"] == "locked" and locked else "ok"), Lately()
    keep(lately, "locked", "free")
    async with running(lane, lives, lately):
        lives.meet(TWO)
        await asyncio.wait_for(lives.caught_up.wait(), 30)
        assert lane.effects("settle") == ["free"]
        locked = False
        await eventually(lambda: lane.effects("settle") == ["free", "locked"], timeout=30)


@pytest.mark.invariant("I3", "I13")
async def test_while_the_database_does_not_answer_reports_name_what_was_recorded(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(again, "LOOK_SECONDS", 0.01)
    lane, lately = Lane(), Lately()
    keep(lately, "a")
    async with running(lane, lives, lately) as made:
        lane.answers.clear()
        assert not await made.look()
        [reported] = made.in_doubt()
        assert (reported.ref.effect_id, reported.state) == ("a", executor_pb.Attempt.STATE_FINISHED)
        lane.answers.set()
        await eventually(lambda: not list(made.in_doubt()), timeout=30)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    lately = Lately()
    keep(lately, "huge", size=again.BYTES_MAX)
    assert len(lately) == 0
    keep(lately, *"abcdefghij", size=again.BYTES_MAX // 8)
    assert len(lately) == 7
    assert sum(map(len, lately.items())) <= again.BYTES_MAX
    monkeypatch.setattr(again, "COUNT_MAX", 2)
    keep(lately, "k", "l", "m")
    assert [orjson.loads(item)["effect_id"] for item in lately.items()] == ["l", "m"]
    monkeypatch.setattr(again, "SECONDS", 0.0)
    assert lately.items() == []
    assert lately.reported() == []
