"""What ends an attempt, and what no longer does: work that is over, work that follows, work that cannot be ended."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from executor_service.harness.base import Attempt
from executor_service.harness.registry import Harnesses
from executor_service.invocation import TOTAL, Invocation
from executor_service.outcome import Ending, Outcome
from tests.support.eventually import eventually
from tests.unit.executor.fakes import FakeHolder, invocation

SPENT = Ending("failed", "BUDGET", "spent")


def agent(harness: str = "a") -> Invocation:
    made = invocation("e")
    return Invocation(replace(made.assignment, harness=harness, pool="agents"), "incarnation", FakeHolder())


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (Outcome(), "failed"),
        (Outcome(value_json=b'"half"', death_proven=True), "failed"),
        (Outcome(answered=True, death_proven=False), "failed"),
        (Outcome(answered=True, death_proven=True), "succeeded"),
        (Outcome(answered=True), "succeeded"),
    ],
)
def test_only_an_answer_outlives_the_end_of_its_budget(outcome: Outcome, kind: str) -> None:
    attempt = agent()
    attempt.end(SPENT)
    attempt._finish(outcome)
    assert attempt.outcome is not None
    assert attempt.outcome.kind == kind


async def test_what_came_when_a_child_was_over_ends_the_next() -> None:
    attempt, ended = agent(), list[str]()
    attempt.on_end(lambda: ended.append("first"), over=lambda: True)
    attempt.end(TOTAL)
    assert attempt.may_end
    assert not attempt.may_go_on
    attempt.on_end(lambda: ended.append("second"), over=lambda: False)
    assert ended == ["second"]
    assert attempt._ending is TOTAL


async def test_a_look_at_what_is_over_is_not_ended_by_it() -> None:
    attempt, ended = agent(), list[str]()
    for _ in range(2):
        attempt.on_end(lambda: ended.append("it"), over=lambda: True)
        attempt.end(TOTAL)
    assert ended == []
    assert attempt.may_end


async def test_the_silence_of_one_child_is_not_that_of_the_next() -> None:
    attempt = agent()
    attempt.on_end(lambda: None, over=lambda: True)
    attempt.last_activity -= 100
    attempt._check_silence(60, attempt.last_activity)
    assert attempt.may_go_on
    assert not attempt._timers["silence"].cancelled(), "nobody looks at the next one"
    attempt.started(7)
    attempt.on_end(lambda: None, over=lambda: False)
    attempt._check_silence(60)
    assert attempt.may_end
    attempt._stop_timers()


class Blocked:
    """Work that waits for something before anybody can end it."""

    name, version, pool, end_seconds_max = "a", "", "agents", 0.0

    def __init__(self) -> None:
        self.reached = False

    async def run(self, spec: Mapping[str, Any], attempt: Attempt) -> Outcome:
        self.reached = True
        return await asyncio.Future()


async def test_what_nothing_can_end_is_given_up() -> None:
    attempt, blocked = agent(), Blocked()
    running = asyncio.create_task(attempt.run(Harnesses([blocked], {})))
    await eventually(lambda: blocked.reached)
    attempt.end(Ending("cancelled", "CANCELLED_BY_USER", "enough"))
    outcome = await eventually(lambda: attempt.outcome)
    assert outcome is not None
    assert (outcome.kind, outcome.death_proven) == ("cancelled", False)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
