"""The judge of agents under chaos finds what is wrong: records that are fine, each made wrong in one way."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.crash.chaos.agent_checks import SPENT_SECONDS, wrong
from tests.crash.chaos.agent_records import Attempt, Effect, Records
from tests.crash.chaos.agents import AGENT

ROW = {"run_id": "r", "harness": AGENT}


def row(seq: int, kind: str, number: int, **data: Any) -> dict[str, Any]:
    writer = "scheduler/s" if kind in ("EFFECT_DISPATCHED", "EFFECT_ATTEMPT_LOST") else "executor/e"
    return {"run_id": "r", "seq": seq, "type": kind, "attempt": number, "writer": writer, "data": data}


def told(*tokens: int) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = [{"at": 0.0, "start": "s", "mends": False, "resumed": False}]
    for number, count in enumerate(tokens):
        entries += [{"at": float(number), "begun": [count, 0]}, {"at": float(number), "done": [count, 0]}]
    return entries


def line(**event: Any) -> bytes:
    return json.dumps(event).encode() + b"\n"


def fine() -> Records:
    """An agent that was lost once and then succeeded, beside one whose quota was spent; both of one run."""
    lost = Attempt(1, row(2, "EFFECT_DISPATCHED", 1), row(5, "EFFECT_ATTEMPT_LOST", 1), 300, told(300, 200))
    result = {"value": {"value": "yes"}}
    settled = row(9, "EFFECT_RESOLVED", 2, state="EFFECT_STATE_SUCCEEDED", result=result)
    again = Attempt(2, row(6, "EFFECT_DISPATCHED", 2), settled, 150, [*told(100, 50), said("yes")])
    again.transcript = [
        (0, line(t=0, type="prompt", text="p") + b'{"t": 1, "ty'),
        (900, b'pe"}\n' + line(t=1, type="turn")),
    ]
    parked = Attempt(1, row(3, "EFFECT_DISPATCHED", 1), row(4, "EFFECT_PARKED", 1), 100, told(100))
    effects = {
        "a": Effect({**ROW, "key": "a", "effect_id": "a", "state": "SUCCEEDED", "budget": {"tokens": 500}}),
        "b": Effect({**ROW, "key": "b", "effect_id": "b", "state": "PARKED", "budget": {"tokens": 400}}),
    }
    effects["a"].attempts = {1: lost, 2: again}
    effects["b"].attempts = {1: parked}
    usage = [{"run_id": "r", "input_tokens": count, "output_tokens": 0} for count in (300, 150, 100)]
    return Records(effects, [{"run_id": "r", "tokens": 900, "used": 550}], usage)


def said(answer: Any, *, misfit: bool = False) -> dict[str, Any]:
    return {"at": 9.0, "answer": answer, "misfit": misfit}


def test_what_is_fine_is_found_so() -> None:
    assert list(wrong(fine())) == []


def _counted(effect: str, number: int, count: int) -> Callable[[Records], None]:
    def change(records: Records) -> None:
        records.effects[effect].attempts[number].counted = count

    return change


def _entry(number: int, **entry: Any) -> Callable[[Records], None]:
    def change(records: Records) -> None:
        attempt = records.effects["a"].attempts[number]
        attempt.ledger = [*attempt.ledger, {"at": 0.0, **entry}]

    return change


def _line(event: bytes) -> Callable[[Records], None]:
    return lambda records: records.effects["a"].attempts[1].transcript.append((0, event))


def _limit(most: int) -> Callable[[Records], None]:
    return lambda records: records.budgets[0].update(tokens=most)  # type: ignore[attr-defined]


def _unlike_the_answer(records: Records) -> None:
    records.effects["a"].attempts[2].ledger = [*told(100, 50), said("no")]


def _not_dispatched(records: Records) -> None:
    records.effects["a"].attempts[2].dispatched = None


def _mended_in_secret(records: Records) -> None:
    attempt = records.effects["a"].attempts[2]
    attempt.ledger = [*told(100, 50), said("maybe", misfit=True), said("yes")]


def _used(records: Records) -> None:
    records.budgets[0].update(used=700)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_counted("a", 2, 300), "300 tokens are counted, it told 150 to 150"),
        (_counted("a", 2, 100), "100 tokens are counted, it told 150 to 150"),
        (_counted("a", 1, 501), "501 tokens are counted, it told 500 to 500"),
        (_counted("b", 1, 0), "0 tokens are counted, it told 100 to 100"),
        (_entry(2, start="t", mends=False, resumed=True), "started 2 times"),
        (_not_dispatched, "started and never dispatched"),
        (_entry(2, shared="/place", with_="another"), "shares /place with another"),
        (_unlike_the_answer, "succeeded with 'yes'"),
        (_mended_in_secret, "0 turns are told to have mended"),
        (_counted("a", 1, 500), "attempt 2 started with 500 used of 500"),
        (_limit(400), "was dispatched with 400 used of 400"),
        (_limit(800), "reserved 400 beside [500], of 800"),
        (_used, "budget of run r has counted 700, its attempts used 550"),
        (_line(line(t=1, type="turn", number=1)), "an event of another schema (['number'])"),
        (_line(line(t=1, type="step")), "an event of another schema"),
        (_line(b"Traceback\n"), "its transcript has the line b'Traceback'"),
    ],
)
def test_what_is_wrong_is_found(change: Callable[[Records], None], problem: str) -> None:
    records = fine()
    change(records)
    assert any(problem in found for found in wrong(records)), list(wrong(records))


def test_who_goes_on_when_the_budget_is_spent_is_found() -> None:
    records = fine()
    attempt = records.effects["a"].attempts[2]
    attempt.ledger = [*told(400), {"at": SPENT_SECONDS + 1, "begun": [1, 0]}, said("yes")]
    assert any("when its budget was spent" in found for found in wrong(records))
