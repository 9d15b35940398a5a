"""Budgets at dispatch: what is spent does not start, what is reserved is not given twice, whoever claims."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from scheduler_service.journal.verify import verify
from tests.support.journal_items import Attempt, Row, Scene, Session, new_id, request_row, resolve_row, scene_at

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def at(database_url: str) -> Iterator[Scene]:
    with scene_at(database_url) as scene:
        yield scene


def run_with(at: Scene, **budget: Any) -> str:
    return at.run(data={"process": "build", "budget": budget})


def spend(at: Scene, attempt: Attempt, outcome: str = "succeeded", **usage: float) -> Row:
    return at.settle(attempt, outcome, result={"usage": usage})


def keys(attempts: Sequence[Attempt]) -> list[str]:
    return sorted(attempt.key for attempt in attempts)


def bounds(attempt: Attempt) -> list[Row]:
    return [] if attempt.row["budget"] is None else list(json.loads(attempt.row["budget"]))


def spent(at: Scene) -> list[tuple[str, str, str]]:
    """Effects that their owner has to fail, whose budget it is, and which figure of it."""
    rows = at.query("SELECT * FROM backburner.spent_effects_v1(ARRAY(SELECT generate_series(0, 15)))")
    return sorted((row["effect_key"], row["spent"]["of"].split()[0], row["spent"]["what"]) for row in rows)


def set_budget(at: Scene, **values: Any) -> str:
    item: Row = {
        "run_id": None, "effect_key": None, "namespace": "default", "label": None, "value": None, "per_day": False,
        "budget": {}, "clear": False, "reason": "test", "actor": "t",
    }  # fmt: skip
    return str(at.call("set_budgets_v1", [item | values])[0]["outcome"])


def test_two_that_reserve_more_than_there_is_never_run_at_once(at: Scene) -> None:
    run_id, session = run_with(at, tokens=100), at.hello()
    for key in "ab":
        at.request(run_id, key, budget={"tokens": 60})
    [first] = at.claim(session)
    assert at.claim(session) == [], "60 are reserved, 40 are left"
    left = {bound["of"].split()[0]: bound["left"] for bound in bounds(first)}
    assert left == {"effect": 60, "run": 100}
    spend(at, first, input_tokens=30)
    [second] = at.claim(session)
    assert second.key != first.key
    left = {bound["of"].split()[0]: bound["left"] for bound in bounds(second)}
    assert left == {"effect": 60, "run": 70}


def test_one_that_wants_more_than_is_left_gets_what_there_is_when_nobody_else_runs(at: Scene) -> None:
    run_id, session = run_with(at, tokens=100), at.hello()
    at.request(run_id, "a", budget={"tokens": 60})
    at.request(run_id, "b", budget={"tokens": 60})
    [first] = at.claim(session)
    spend(at, first, input_tokens=60)
    [second] = at.claim(session)
    assert {bound["of"].split()[0]: bound["left"] for bound in bounds(second)} == {"effect": 60, "run": 40}


def test_two_fit_side_by_side_where_both_are_reserved(at: Scene) -> None:
    run_id, session = run_with(at, cost_usd=100), at.hello()
    for key in "abc":
        at.request(run_id, key, budget={"cost_usd": 50})
    assert len(at.claim(session)) == 2
    assert at.claim(session) == []


@pytest.mark.parametrize(
    ("budget", "usage", "what"),
    [
        ({"tokens": 100}, {"input_tokens": 90, "output_tokens": 10}, "TOKENS"),
        ({"cost_usd": 0.5}, {"cost_usd": 0.75}, "COST_USD"),
        ({"turns": 3}, {"turns": 3}, "TURNS"),
        ({"wall_time": "1.5s"}, {}, "WALL_SECONDS"),
    ],
)
def test_spent_budget_of_a_run_stops_its_queue(at: Scene, budget: Row, usage: Row, what: str) -> None:
    run_id, session = run_with(at, **budget), at.hello()
    other = at.run()
    attempt = at.dispatched(session, run_id, "a")
    at.request(run_id, "b")
    at.request(other, "free")
    spend(at, attempt, **usage)
    assert keys(at.claim(session)) == ["free"], "what is blocked does not keep the others from being seen"
    assert spent(at) == [("b", "run", what)]


def test_blocked_run_does_not_hide_what_is_behind_it(at: Scene) -> None:
    run_id, session = run_with(at, tokens=10, on_spent="BUDGET_ACTION_ASK"), at.hello()
    attempt = at.dispatched(session, run_id, "a")
    for n in range(30):
        at.request(run_id, f"b{n}")
    at.request(at.run(), "free")
    spend(at, attempt, input_tokens=10)
    assert keys(at.claim(session, foreground=1)) == ["free"]
    assert spent(at) == [], "a budget that asks fails nobody"


def test_own_budget_holds_over_the_attempts(at: Scene) -> None:
    run_id, session = at.run(), at.hello()
    first = at.dispatched(session, run_id, "a", budget={"tokens": 100})
    spend(at, first, "failed", input_tokens=70)
    [second] = at.claim(session)
    assert [bound["left"] for bound in bounds(second)] == [30]
    spend(at, second, "failed", input_tokens=40)
    assert at.claim(session) == []
    assert spent(at) == [("a", "effect", "TOKENS")]


def test_raised_budget_lets_the_queue_go_on(at: Scene) -> None:
    run_id, session = run_with(at, tokens=10, on_spent="BUDGET_ACTION_ASK"), at.hello()
    attempt = at.dispatched(session, run_id, "a")
    at.request(run_id, "b")
    spend(at, attempt, input_tokens=10)
    assert at.claim(session) == []
    assert set_budget(at, run_id=run_id, budget={"tokens": 50}) == "ok"
    [found] = at.claim(session)
    assert [bound["left"] for bound in bounds(found)] == [40]
    assert set_budget(at, run_id=at.run(), budget={"tokens": 50}) == "not_found"
    audit = at.query("SELECT action, subject FROM backburner.operator_audit")
    assert audit == [{"action": "RAISE_BUDGET", "subject": run_id}]


def test_raised_budget_of_an_effect(at: Scene) -> None:
    run_id, session = at.run(), at.hello()
    first = at.dispatched(session, run_id, "a", budget={"tokens": 10, "on_spent": "BUDGET_ACTION_ASK"})
    spend(at, first, "failed", input_tokens=10)
    assert at.claim(session) == []
    assert set_budget(at, run_id=run_id, effect_key="a", budget={"tokens": 30}) == "ok"
    assert [bound["left"] for bound in bounds(at.claim(session)[0])] == [20]


def test_budget_of_a_label_bounds_all_its_runs(at: Scene) -> None:
    session = at.hello()
    assert set_budget(at, label="team", value="a", budget={"cost_usd": 1}) == "ok"
    mine, other = at.run(labels={"team": "a"}), at.run(labels={"team": "b"})
    first = at.dispatched(session, mine, "a")
    for run_id in (mine, other):
        at.request(run_id, f"b of {run_id}")
    by_effect = at.request(other, "labelled", labels={"team": "a"})
    spend(at, first, cost_usd=1.25)
    assert keys(at.claim(session)) == [f"b of {other}"]
    assert {key for key, of, _ in spent(at) if of == "label"} == {f"b of {mine}", "labelled"}
    assert set_budget(at, label="team", value="a", budget={"cost_usd": 2}) == "ok"
    assert {attempt.effect_id for attempt in at.claim(session)} >= {by_effect}
    assert set_budget(at, label="team", value="a", clear=True) == "ok"
    assert set_budget(at, label="team", value="a", clear=True) == "not_found"


def test_budget_of_a_label_by_day_begins_anew(at: Scene) -> None:
    session = at.hello()
    run_id = at.run(labels={"team": "a"})
    spend(at, at.dispatched(session, run_id, "before"), cost_usd=3)
    set_budget(at, label="team", value="a", per_day=True, budget={"cost_usd": 2})
    at.request(run_id, "b")
    assert at.claim(session) == [], "what the day has seen before counts"
    at.query("UPDATE backburner.label_budgets SET day = day - 1")
    [attempt] = at.claim(session)
    spend(at, attempt, cost_usd=0.5)
    [row] = at.query("SELECT used[2] AS used FROM backburner.label_budgets")
    assert row["used"] == 0.5


def test_fast_path_does_not_go_around_a_budget(at: Scene) -> None:
    session = at.hello()
    run_id = run_with(at, tokens=10)
    answer, _ = at.fast(session, run_id, "a")
    assert answer["extra"] == []
    assert at.fast(session, at.run(), "b", budget={"tokens": 5})[0]["extra"] == []
    assert at.fast(session, at.run(), "c")[0]["extra"] != []


def test_run_that_another_one_goes_on_as_hands_its_budget_on(at: Scene) -> None:
    run_id, session = run_with(at, tokens=100), at.hello()
    spend(at, at.dispatched(session, run_id, "a"), input_tokens=70)
    fresh = new_id()
    row = {"type": "RUN_CONTINUED", "cause": 1, "data": {"new_run_id": fresh, "input": {}, "signal_seqs": []}}
    assert at.append(run_id, row)["outcome"] == "ok"
    attempt = at.dispatched(Session("e1", "i1", session.session_no), fresh, "b")
    assert [bound["left"] for bound in bounds(attempt)] == [30]


def test_unknown_costs_are_counted_and_not_guessed(at: Scene) -> None:
    run_id, session = run_with(at, cost_usd=1), at.hello()
    spend(at, at.dispatched(session, run_id, "a"), input_tokens=1e6)
    [row] = at.query("SELECT used, costs_unknown FROM backburner.run_budgets")
    assert (row["used"][1], row["costs_unknown"]) == (0, 1)
    at.request(run_id, "b")
    assert len(at.claim(session)) == 1


ASKS: Row = {"on_spent": "BUDGET_ACTION_ASK"}
AGENT: Row = {"kind": "AGENT", "harness": "codex", "capabilities": ["agent/codex"], "max_attempts": 1}


def ask(at: Scene, attempt: Attempt, **usage: float) -> Row:
    """A budget that asks ends the attempt."""
    item = {"reason": "EFFECT_REASON_BUDGET", "error": {"reason": "EFFECT_REASON_BUDGET"}, "asks": True}
    return at.settle(attempt, "failed", result={"usage": usage}, **item)


def asked_beside_another(at: Scene, session: Session, run_id: str) -> None:
    """`b`, which may start once, is parked for what `a` has reserved; then `a` ends, and there is room again."""
    at.request(run_id, "a", budget={"tokens": 500}, max_attempts=1)
    [first] = at.claim(session)
    at.request(run_id, "b", max_attempts=1)
    [second] = at.claim(session)
    assert ask(at, second, input_tokens=500)["type"] == "EFFECT_PARKED"
    spend(at, first, input_tokens=100)


@pytest.mark.invariant("I3")
@pytest.mark.parametrize("label", [False, True])
def test_what_may_start_once_starts_again_only_when_somebody_raises(at: Scene, label: bool) -> None:
    session = at.hello()
    run_id = at.run(labels={"team": "a"}) if label else run_with(at, tokens=1000, **ASKS)
    scope: Row = {"label": "team", "value": "a"} if label else {"run_id": run_id}
    if label:
        set_budget(at, **scope, budget={"tokens": 1000, **ASKS})
    asked_beside_another(at, session, run_id)
    assert at.claim(session) == []
    [waiting] = at.query("SELECT effect_id::text, asks FROM backburner.effects WHERE state = 'PARKED'")
    awaited = at.one("SELECT backburner.budget_awaited_v1(%s) AS of", waiting["effect_id"])
    assert (waiting["asks"], awaited["of"]) == (True, {"verdict": "raise"})
    set_budget(at, label="team", value="another", budget={"tokens": 1})
    assert at.claim(session) == [], "that is not its label"
    assert set_budget(at, **scope, budget={"tokens": 2000}) == "ok"
    [again] = at.claim(session)
    assert (again.key, again.attempt) == ("b", 2)
    assert at.settle(again, "failed")["type"] == "EFFECT_RESOLVED", "once more, not as often as one likes"
    assert [violation for run in asyncio.run(checked(at.dsn)) for violation in run.violations] == []


async def checked(dsn: str) -> list[Any]:
    return [run async for run in verify(dsn)]


def test_raise_gives_the_executor_of_the_session_its_time_again(at: Scene) -> None:
    run_id, session = at.run(), at.hello()
    first = at.dispatched(session, run_id, "a", budget={"tokens": 10, **ASKS})
    ask(at, first, input_tokens=10)
    for table in ("effects", "dispatch_queue"):
        at.query(f"UPDATE backburner.{table} SET not_before = not_before - interval '1 h'")
    assert set_budget(at, run_id=run_id, effect_key="a", budget={"tokens": 30}) == "ok"
    for table in ("effects", "dispatch_queue"):
        assert at.one(f"SELECT now() - not_before < interval '30 min' AS lately FROM backburner.{table}")["lately"]


def test_own_budget_that_a_harness_has_spent_does_not_start_the_next(at: Scene) -> None:
    """Fail-over counts starts anew; what was used stays used, and is no matter of others alike."""
    chain = ["agent/codex", "agent/pi"]
    run_id, session = at.run(), at.hello(capabilities=chain)
    first = at.dispatched(session, run_id, **AGENT | {"max_attempts": 2, "capabilities": chain}, budget={"tokens": 100})
    quota = {"reason": "EFFECT_REASON_QUOTA_EXHAUSTED", "error": {"reason": "EFFECT_REASON_QUOTA_EXHAUSTED"}}
    at.settle(first, "failed", result={"usage": {"input_tokens": 120}}, **quota)
    at.query("DELETE FROM backburner.provider_breakers")
    assert at.effect(first.effect_id)["starts"] == 0
    assert spent(at) == [("a", "effect", "TOKENS")]
    at.request(run_id, "b", **AGENT | {"capabilities": chain}, budget={"tokens": 100})
    assert keys(at.claim(session)) == ["b"]


def test_those_of_others_hide_none_that_are_spent(at: Scene) -> None:
    """Many of a halted run come first, and nobody may fail them now."""
    halted, session = run_with(at, tokens=10), at.hello()
    first = at.dispatched(session, halted, "a")
    at.append(halted, *[request_row(f"b{n}") for n in range(600)])
    spend(at, first, input_tokens=10)
    at.query("UPDATE backburner.run_heads SET state = 'HALTED' WHERE run_id = %s", halted)
    run_id = run_with(at, tokens=10)
    attempt = at.dispatched(session, run_id, "a")
    at.request(run_id, "c")
    spend(at, attempt, input_tokens=10)
    assert spent(at) == [("c", "run", "TOKENS")]


@pytest.mark.parametrize("held", "ab")
def test_budgets_of_labels_are_locked_by_name(at: Scene, held: str) -> None:
    """As who sets several in a call does: a claim that waits for the first has none yet, whatever their ids are."""
    for label in "ab":
        set_budget(at, label=label, value="x", budget={"tokens": 1})
    ids = ["f" * 8 + "-0000-4000-8000-000000000000", "00000000-0000-4000-8000-000000000000"]
    at.query("UPDATE backburner.label_budgets SET budget_id = (%s::uuid[])[CASE label WHEN 'a' THEN 1 ELSE 2 END]", ids)
    session = at.hello()
    at.query("BEGIN")
    at.query("SELECT 1 FROM backburner.label_budgets WHERE label = %s FOR UPDATE", held)
    with scene_at(at.dsn) as other, scene_at(at.dsn) as third, ThreadPoolExecutor(1) as pool:
        claim = pool.submit(other.claim, session)
        while not third.query(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ):
            assert not claim.done()
        free = third.query("SELECT 1 FROM backburner.label_budgets WHERE label <> %s FOR UPDATE SKIP LOCKED", held)
        at.query("COMMIT")
        assert claim.result() == []
    assert len(free) == (held == "a")


def spent_row(effect_id: str, key: str) -> Row:
    """The owner's settlement of an effect whose budget it has found spent."""
    row = resolve_row(effect_id, key, "FAILED")
    row["data"]["error"]["reason"] = "EFFECT_REASON_BUDGET"
    return row


def spent_and_queued(at: Scene, session: Session, of: str) -> tuple[str, str, Row]:
    """A run, its queued effect `b` whose budget is spent, and what raises that budget."""
    run_id = at.run(labels={"team": "a"}) if of == "label" else run_with(at, tokens=10) if of == "run" else at.run()
    if of == "label":
        set_budget(at, label="team", value="a", budget={"tokens": 10})
    own: Row = {"budget": {"tokens": 10}} if of == "effect" else {}
    first = at.dispatched(session, run_id, "b" if own else "a", **own)
    effect_id = first.effect_id if own else at.request(run_id, "b")
    spend(at, first, "failed" if own else "succeeded", input_tokens=10)
    assert spent(at) == [("b", of, "TOKENS")]
    raised: Row = {"label": "team", "value": "a"} if of == "label" else {"run_id": run_id}
    return run_id, effect_id, raised | ({"effect_key": "b"} if own else {}) | {"budget": {"tokens": 50}}


@pytest.mark.parametrize("of", ["run", "effect", "label"])
def test_raise_between_the_look_of_the_owner_and_its_settlement_counts(at: Scene, of: str) -> None:
    session = at.hello()
    run_id, effect_id, raised = spent_and_queued(at, session, of)
    assert set_budget(at, **raised) == "ok"
    answer = at.append(run_id, spent_row(effect_id, "b"))
    assert (answer["outcome"], answer["detail"]["refused"]) == ("ok", [0])
    [row] = [row for row in at.journal(run_id) if row["seq"] == answer["head_seq"]]
    assert (row["type"], row["data"]["cause"]) == ("EFFECT_SUPERSEDED", "budget_raised")
    assert keys(at.claim(session)) == ["b"]
    assert [violation for run in asyncio.run(checked(at.dsn)) for violation in run.violations] == []


@pytest.mark.parametrize("of", ["run", "effect"])
def test_settlement_that_waits_for_a_raise_is_judged_after_it(at: Scene, of: str) -> None:
    session = at.hello()
    run_id, effect_id, raised = spent_and_queued(at, session, of)
    at.query("BEGIN")
    assert set_budget(at, **raised) == "ok"
    with scene_at(at.dsn) as owner, scene_at(at.dsn) as third, ThreadPoolExecutor(1) as pool:
        owner.iterations.update(at.iterations)
        settling = pool.submit(owner.append, run_id, spent_row(effect_id, "b"))
        while not third.query(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ):
            assert not settling.done()
        at.query("COMMIT")
        assert settling.result()["detail"]["refused"] == [0]
    assert at.effect(effect_id)["state"] == "QUEUED"


def test_settlement_for_a_budget_that_is_spent_stands(at: Scene) -> None:
    run_id, effect_id, _ = spent_and_queued(at, at.hello(), "run")
    answer = at.append(run_id, spent_row(effect_id, "b"))
    assert "refused" not in answer["detail"]
    assert (at.effect(effect_id)["state"], at.effect(effect_id)["reason"]) == ("FAILED", "BUDGET")
