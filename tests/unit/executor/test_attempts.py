"""Attempts in another life of the database: numbers may be given anew, and what no longer counts ends first."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.assignment import Assignment
from executor_service.attempts import Attempts
from executor_service.harness.base import Attempt
from executor_service.harness.registry import Harnesses
from executor_service.invocation import Invocation
from executor_service.outcome import Ending, Outcome
from executor_service.slots import Pool
from executor_service.spool import Spool
from tests.support.eventually import eventually

NO_SLOT = pb.RejectedAttempt.REASON_NO_SLOT
FIRST = Assignment(
    "run", "effect", "key", 1, "aa" * 16, "shell", "shell", False, "work", "default", 1, None, None, b"{}"
)
#: The same number, given in another life of the database.
ANEW = replace(FIRST, token="bb" * 16)


OVER = Ending("cancelled", "CANCELLED_BY_USER", "enough")


class Stubborn:
    """Work that ends when it is asked to and the test lets it."""

    name, version, pool, end_seconds_max = "shell", "", "shell", 60.0

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.started = 0

    async def run(self, spec: Mapping[str, Any], attempt: Attempt) -> Outcome:
        self.started += 1
        asked = asyncio.Event()
        attempt.on_end(asked.set)
        await asked.wait()
        await self.let_go.wait()
        return Outcome()


class Journal:
    """What was said of attempts; the test answers it."""

    def __init__(self) -> None:
        self.begun: list[Invocation] = []
        self.ended: list[Invocation] = []

    def started(self, invocation: Invocation) -> None:
        self.begun.append(invocation)

    def dirty_progress(self, invocation: Invocation) -> None:
        pass

    def dirty_output(self, invocation: Invocation) -> None:
        pass

    def settle(self, invocation: Invocation) -> None:
        self.ended.append(invocation)


class Desk:
    def __init__(self) -> None:
        self.work, self.journal = Stubborn(), Journal()
        spool = Spool(Path("/nowhere"), bytes_max=1_000_000, entries_max=100)
        self.attempts = Attempts("incarnation", Harnesses([self.work], {}), {"shell": Pool(8, 8)}, spool)
        self.attempts.recorder = self.journal

    async def begin(self, assignment: Assignment) -> None:
        """Starts an attempt that is taken."""
        before = self.work.started
        assert self.attempts.start(assignment) is None
        await eventually(lambda: self.work.started == before + 1)

    async def end(self, row: pb.JournaledEvent | None) -> None:
        """The work ends, and the journal has this row for it."""
        self.work.let_go.set()
        [ended] = await eventually(lambda: self.journal.ended)
        self.journal.ended.clear()
        self.attempts.recorded(ended, row)
        self.work.let_go.clear()

    def another_life(self) -> None:
        self.attempts.other_life()
        self.attempts.before_hello()


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.mark.invariant("I3")
async def test_an_attempt_of_a_lost_life_ends_before_another_of_its_effect_starts(desk: Desk) -> None:
    await desk.begin(FIRST)
    desk.another_life()
    refused = desk.attempts.start(ANEW)
    assert refused is not None, "the start of one was taken for that of another"
    assert refused.reason == NO_SLOT
    later = desk.attempts.start(replace(ANEW, attempt=2))
    assert later is not None, "both would run at the same time"
    assert later.reason == NO_SLOT
    assert desk.attempts.take_accepted() == []
    await desk.end(None)
    await desk.begin(ANEW)


@pytest.mark.invariant("I3")
async def test_what_the_journal_has_forgotten_may_be_started_anew(desk: Desk) -> None:
    await desk.begin(replace(FIRST, attempt=3))
    desk.attempts.end_all(OVER)
    await desk.end(pb.JournaledEvent(seq=9))
    assert desk.attempts.start(ANEW) is not None, "an older number, in the same life"
    desk.another_life()
    await desk.begin(ANEW)
    assert desk.attempts.take_repeated() == []


@pytest.mark.invariant("I3")
async def test_what_the_journal_still_knows_is_started_once(desk: Desk) -> None:
    await desk.begin(FIRST)
    desk.another_life()
    assert desk.attempts.start(FIRST) is None
    assert desk.attempts.take_accepted() == [FIRST.ref]
    desk.attempts.end_all(OVER)
    await desk.end(pb.JournaledEvent(seq=9))
    assert desk.attempts.start(FIRST) is None
    assert [event.seq for event in desk.attempts.take_repeated()] == [9]
    assert desk.work.started == 1


async def test_no_row_of_a_lost_life_is_told_again(desk: Desk) -> None:
    await desk.begin(FIRST)
    desk.attempts.end_all(OVER)
    await desk.end(pb.JournaledEvent(seq=9))
    desk.attempts.other_life()
    refused = desk.attempts.start(FIRST)
    assert desk.attempts.take_repeated() == []
    assert refused is not None, "until the next hello a repeated start is of the life before"


async def test_every_running_attempt_is_asked_for_in_another_life(desk: Desk) -> None:
    await desk.begin(FIRST)
    announcing = asyncio.create_task(desk.attempts.announce(lambda refs: None))
    await eventually(lambda: len(desk.journal.begun) == 1)
    desk.attempts.other_life()
    assert [begun.assignment for begun in desk.journal.begun] == [FIRST, FIRST]
    announcing.cancel()
    await asyncio.gather(announcing, return_exceptions=True)
