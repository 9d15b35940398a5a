"""attempt_usage: each attempt that has ended counts once, whoever says so; what retention removes is kept by days."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.journal_items import Attempt, Row, Scene, scene_at, settle_item

USAGE = {"input_tokens": 100, "output_tokens": 10, "cost_usd": 0.5, "turns": 2, "model": "m1"}


@pytest.fixture
def at(database_url: str) -> Iterator[Scene]:
    with scene_at(database_url) as scene:
        yield scene


def counted(at: Scene, run_id: str) -> list[Row]:
    return at.query("SELECT * FROM backburner.attempt_usage WHERE run_id = %s ORDER BY effect_id, attempt", run_id)


def tokens(at: Scene, run_id: str) -> float:
    return float(sum(row["input_tokens"] + row["output_tokens"] for row in counted(at, run_id)))


def report(at: Scene, attempt: Attempt, ordinal: int, usage: Row) -> None:
    values = {"ordinal": ordinal, "progress": {"percent": ordinal}, "usage": usage, "durable": True}
    at.call("attempts_progress_v1", [attempt.identity | values])


def again(at: Scene, attempt: Attempt) -> Attempt:
    """The next attempt of the effect."""
    session = at.hello()
    [found] = [a for a in at.claim(session) if a.effect_id == attempt.effect_id]
    return found


def test_usage_of_an_effect_is_that_of_all_its_attempts(at: Scene) -> None:
    run_id = at.run(labels={"team": "a"})
    first = at.dispatched(at.hello(), run_id, labels={"kind": "review"})
    at.settle(first, "failed", result={"usage": USAGE})
    second = again(at, first)
    assert at.effect(first.effect_id)["usage"] is None, "the second one has not said anything"
    at.settle(second, "failed", result={"usage": {"input_tokens": 7}})
    third = again(at, second)
    at.settle(third, result={"usage": USAGE | {"model": "m2"}})
    rows = counted(at, run_id)
    assert [(r["attempt"], r["input_tokens"], r["cost_usd"], r["cost_unknown"]) for r in rows] == [
        (1, 100, 0.5, False), (2, 7, None, True), (3, 100, 0.5, False),
    ]  # fmt: skip
    assert rows[0]["labels"] == {"team": "a", "kind": "review"}
    assert rows[0]["wall_s"] == 1.5
    effect = at.effect(first.effect_id)
    [row] = at.query(
        "SELECT backburner.add_usage(%s::text::jsonb, %s::text::jsonb) AS sum",
        *(_json(effect[name]) for name in ("usage_before", "usage")),
    )
    assert (row["sum"]["input_tokens"], row["sum"]["turns"], row["sum"]["cost_usd"]) == (207, 4, 1.0)
    assert (row["sum"]["costs_unknown"], row["sum"]["model"]) == (1, "m2")


@pytest.mark.invariant("I14")
def test_settlement_that_is_repeated_counts_once(at: Scene) -> None:
    run_id = at.run()
    attempt = at.dispatched(at.hello(), run_id)
    for _ in range(3):
        at.settle(attempt, "failed", result={"usage": USAGE})
    item = settle_item(again(at, attempt), result={"usage": USAGE})
    for _ in range(3):
        at.call("attempts_settle_v1", [item])
    assert tokens(at, run_id) == 220
    late = Attempt(**{name: getattr(attempt, name) for name in attempt.__dataclass_fields__})
    at.settle(late, result={"usage": USAGE | {"input_tokens": 9_000}})
    assert tokens(at, run_id) == 220, "what comes too late is evidence, and counts nothing"


def test_of_a_lost_attempt_counts_what_was_last_known(at: Scene) -> None:
    run_id = at.run()
    first = at.dispatched(at.hello(), run_id)
    at.started(first)
    report(at, first, 1, {"input_tokens": 40, "cost_usd": 0.1})
    report(at, first, 2, {"input_tokens": 60, "cost_usd": 0.2})
    for _ in range(2):
        at.lost(first)
    assert [(r["input_tokens"], r["cost_usd"]) for r in counted(at, run_id)] == [(60, 0.2)]
    second = again(at, first)
    at.lost(second, never_started=True)
    assert len(counted(at, run_id)) == 1, "what never started consumed nothing"


@pytest.mark.parametrize("ends", ["cancelled", "overdue"])
def test_attempt_that_never_started_counts_nothing_though_it_ends_its_effect(at: Scene, ends: str) -> None:
    run_id = at.run(data={"process": "build", "budget": {"wall_time": "1000s"}})
    attempt = at.dispatched(at.hello(), run_id, total_timeout_s=60.0)
    if ends == "cancelled":
        at.cancel(run_id, attempt.effect_id)
    else:
        at.query("UPDATE backburner.effects SET total_deadline = clock_timestamp()")
    assert len(at.lost(attempt, never_started=True)["extra"]) == 2
    assert at.effect(attempt.effect_id)["settled_seq"] is not None
    assert counted(at, run_id) == []


@pytest.mark.parametrize("outcome", ["cancelled", "SPAWN_FAILED", "INVALID_WORK"])
def test_attempt_of_which_no_child_was_made_counts_nothing(at: Scene, outcome: str) -> None:
    run_id = at.run()
    attempt = at.dispatched(at.hello(), run_id, max_attempts=1)
    why = {} if outcome == "cancelled" else {"reason": f"EFFECT_REASON_{outcome}"}
    error = {"error": why} if why else {}
    at.settle(attempt, "cancelled" if not why else "failed", death=None, **why, **error)
    assert counted(at, run_id) == []


def test_cancelled_attempt_whose_child_ran_counts(at: Scene) -> None:
    run_id = at.run()
    at.settle(at.dispatched(at.hello(), run_id), "cancelled")
    assert [row["wall_s"] for row in counted(at, run_id)] == [1.5]


def test_last_attempt_that_is_lost_counts_once(at: Scene) -> None:
    run_id = at.run()
    attempt = at.dispatched(at.hello(), run_id, max_attempts=1)
    report(at, attempt, 1, {"input_tokens": 60})
    assert len(at.lost(attempt)["extra"]) == 2
    assert tokens(at, run_id) == 60


def test_functions_that_report_nothing_are_left_out(at: Scene) -> None:
    run_id = at.run()
    function = {"kind": "FUNCTION", "harness": "function", "capabilities": ["function/f"]}
    session = at.hello(capabilities=["function/f"])
    silent = at.dispatched(session, run_id, "a", **function)
    at.settle(silent)
    talking = at.dispatched(session, run_id, "b", **function)
    at.settle(talking, result={"usage": {"input_tokens": 5}})
    assert [row["effect_id"] for row in at.query("SELECT effect_id::text FROM backburner.attempt_usage")] == [
        talking.effect_id
    ]


def test_agent_that_ran_and_told_nothing_has_an_unknown_cost(at: Scene) -> None:
    run_id = at.run()
    agent = {"kind": "AGENT", "harness": "codex", "capabilities": ["agent/codex"]}
    session = at.hello(capabilities=["agent/codex"])
    ran = at.dispatched(session, run_id, "a", **agent)
    at.started(ran)
    at.settle(ran)
    never_ran = at.dispatched(session, run_id, "b", **agent)
    at.settle(never_ran, "failed", final=True)
    unknown = {str(row["effect_id"]): row["cost_unknown"] for row in counted(at, run_id)}
    assert unknown == {ran.effect_id: True, never_ran.effect_id: False}


def test_attempt_counts_for_the_harness_that_it_had(at: Scene) -> None:
    chain = ["agent/codex", "agent/pi"]
    session = at.hello(capabilities=chain)
    attempt = at.dispatched(session, at.run(), kind="AGENT", harness="codex", capabilities=chain)
    why = {"reason": "EFFECT_REASON_AUTHENTICATION", "error": {"reason": "EFFECT_REASON_AUTHENTICATION"}}
    at.settle(attempt, "failed", result={"usage": USAGE}, **why)
    assert at.effect(attempt.effect_id)["harness"] == "pi"
    assert [row["harness"] for row in counted(at, attempt.run_id)] == ["codex"]


def test_what_retention_removes_is_kept_by_days(at: Scene) -> None:
    run_ids = [at.run(labels={"team": "a"}) for _ in range(2)]
    session = at.hello()
    for run_id in run_ids:
        for key, usage in (("a", USAGE), ("b", {"input_tokens": 1})):
            at.settle(at.dispatched(session, run_id, key), result={"usage": usage})
        at.append(run_id, {"type": "RUN_COMPLETED", "cause": 1, "data": {}})
    request = {
        "older_than_s": -60, "states": [], "namespace": None, "dry_run": False, "runs_max": 1, "rows_max": 100,
        "reason": "", "actor": "t",
    }  # fmt: skip
    assert [at.call("prune_runs_v1", request)[0]["runs"] for _ in range(2)] == [1, 1]
    assert at.query("SELECT * FROM backburner.attempt_usage") == []
    rows = at.query("SELECT * FROM backburner.usage_daily ORDER BY model DESC")
    assert [(r["attempts"], r["input_tokens"], r["cost_usd"], r["costs_unknown"]) for r in rows] == [
        (2, 200, 1.0, 0), (2, 2, None, 2),
    ]  # fmt: skip


def _json(value: Any) -> str:
    return json.dumps(value)
