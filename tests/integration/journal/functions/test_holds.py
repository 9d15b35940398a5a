"""Holds: once one is acknowledged, nothing that it covers is dispatched, by whichever function and replica."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import errors

from scheduler_service.journal import Hold
from tests.support.journal_items import Row, Scene, Session, new_id, scene_at


def hold_item(**scope: Any) -> Row:
    item: Row = {
        "hold_id": new_id(), "namespace": "", "harness": "", "executor_id": "", "labels": {}, "until": None,
        "reason": "drill", "actor": "ada", "release": False,
    }  # fmt: skip
    return item | scope


def hold(scene: Scene, **scope: Any) -> Row:
    [row] = scene.call("set_holds_v1", [hold_item(**scope)])
    return row


def release(scene: Scene, hold_id: Any) -> Row:
    return hold(scene, hold_id=str(hold_id), release=True)


SCOPES: tuple[tuple[Row, bool], ...] = (
    ({}, True),
    ({"namespace": "default"}, True),
    ({"namespace": "other"}, False),
    ({"harness": "shell"}, True),
    ({"harness": "codex"}, False),
    ({"executor_id": "e1"}, True),
    ({"executor_id": "e2"}, False),
    ({"labels": {"team": "a"}}, True),
    ({"labels": {"team": "b"}}, False),
    ({"labels": {"none": "a"}}, False),
    ({"harness": "shell", "labels": {"team": "a"}, "executor_id": "e1", "namespace": "default"}, True),
    ({"harness": "shell", "labels": {"team": "a"}, "executor_id": "e2"}, False),
)


@pytest.mark.parametrize(("scope", "held"), SCOPES)
@pytest.mark.parametrize("background", [False, True])
def test_what_matches_is_not_dispatched(
    scene: Scene, executor: Session, scope: Row, held: bool, background: bool
) -> None:
    assert hold(scene, **scope)["outcome"] == "ok"
    run_id = scene.run()
    asked: Row = {"labels": {"team": "a", "tier": "1"}, "background": background}
    fast, attempt = scene.fast(executor, run_id, "fast", **asked)
    assert ([row["type"] for row in fast["extra"]] == []) == held
    queued = scene.request(run_id, "queued", **asked)
    claimed = {a.effect_id for a in scene.claim(executor)}
    assert claimed == (set() if held else {queued})
    described: Row = {"hold_id": "h"} | scope
    assert Hold(**described).covers("default", "shell", "e1", asked["labels"]) == held
    if held:
        [set_] = scene.query("SELECT hold_id FROM backburner.dispatch_holds")
        assert release(scene, set_["hold_id"])["outcome"] == "ok"
        assert {a.effect_id for a in scene.claim(executor)} == {queued, attempt.effect_id}


def test_what_is_held_does_not_keep_what_is_behind_it_from_being_seen(scene: Scene, executor: Session) -> None:
    hold(scene, labels={"team": "a"})
    run_id = scene.run()
    for number in range(3):
        scene.request(run_id, f"held/{number}", labels={"team": "a"}, priority=9)
    free = scene.request(run_id, "free")
    assert [a.effect_id for a in scene.claim(executor, foreground=1)] == [free]


def test_an_alternative_that_is_not_held_is_taken(scene: Scene) -> None:
    session = scene.hello(capabilities=["agent/codex", "agent/gemini"])
    hold(scene, harness="codex")
    run_id, agents = scene.run(), {"kind": "AGENT", "pool": "agents", "harness": "codex"}
    both = scene.request(run_id, "both", capabilities=["agent/codex", "agent/gemini"], **agents)
    scene.request(run_id, "one", capabilities=["agent/codex"], **agents)
    hold(scene, harness="gemini", labels={"team": "a"})
    scene.request(run_id, "labelled", capabilities=["agent/codex", "agent/gemini"], labels={"team": "a"}, **agents)
    assert [a.effect_id for a in scene.claim(session, pool="agents")] == [both]
    assert scene.effect(both)["harness"] == "gemini"


def test_a_retry_waits_for_the_hold_and_a_running_attempt_goes_on(scene: Scene, executor: Session) -> None:
    attempt = scene.dispatched(executor, scene.run())
    hold(scene)
    assert scene.started(attempt)["outcome"] == "ok"
    assert scene.settle(attempt, "failed")["type"] == "EFFECT_ATTEMPT_FAILED"
    assert scene.claim(executor) == []
    assert scene.effect(attempt.effect_id)["state"] == "QUEUED"


def test_a_hold_ends_by_the_clock_of_the_database(scene: Scene, executor: Session) -> None:
    scene.request(scene.run(), "a")
    until = scene.one("SELECT (clock_timestamp() + interval '2 s')::text AS at")["at"]
    assert hold(scene, until=until)["outcome"] == "ok"
    assert scene.claim(executor) == []
    deadline = time.monotonic() + 30
    while not scene.claim(executor):
        assert time.monotonic() < deadline
    assert scene.one("SELECT clock_timestamp() > %s::timestamptz AS over", until)["over"]
    assert hold(scene, until=until)["outcome"] == "past"


def test_nothing_is_dispatched_past_an_acknowledged_hold(scene: Scene, executor: Session) -> None:
    """Both orders: a dispatch under way delays the acknowledgement; one that comes later sees the hold."""
    run_id = scene.run()
    with scene_at(scene.dsn) as operator, ThreadPoolExecutor(1) as pool:
        operator.query("SET lock_timeout = '200ms'")
        with scene.connection.transaction():
            answer, _ = scene.fast(executor, run_id, "a")
            assert [row["type"] for row in answer["extra"]] == ["EFFECT_DISPATCHED"]
            with pytest.raises(errors.LockNotAvailable):
                hold(operator)
        scene.request(run_id, "b")
        with operator.connection.transaction():
            set_ = hold(operator)
            later = pool.submit(scene.claim, executor)
            waiting = "SELECT count(*) AS n FROM pg_locks WHERE NOT granted AND mode = 'RowShareLock'"
            deadline = time.monotonic() + 30
            while operator.one(waiting)["n"] == 0:
                assert time.monotonic() < deadline
                assert not later.done()
        assert later.result() == []
        assert release(operator, set_["hold_id"])["outcome"] == "ok"
    assert len(scene.claim(executor)) == 1


def test_a_backup_does_not_delay_the_kill_switch(scene: Scene) -> None:
    with scene_at(scene.dsn) as backup, backup.connection.transaction():
        backup.query("SELECT * FROM backburner.dispatch_holds")
        scene.query("SET lock_timeout = '2s'")
        assert hold(scene)["outcome"] == "ok"


@pytest.mark.invariant("I14")
def test_setting_and_releasing_may_be_repeated(scene: Scene) -> None:
    first = hold(scene, harness="codex", reason="one")
    second = hold(scene, harness="codex", reason="two")
    assert (second["hold_id"], second["reason"]) == (first["hold_id"], "two")
    assert [release(scene, first["hold_id"])["outcome"] for _ in range(3)] == ["ok", "already", "already"]
    assert release(scene, new_id())["outcome"] == "not_found"
    audit = scene.query("SELECT action, subject, actor, reason FROM backburner.operator_audit ORDER BY audit_id")
    assert [(row["action"], row["reason"]) for row in audit] == [
        ("SET_HOLD", "one"), ("SET_HOLD", "two"), ("RELEASE_HOLD", "drill"),
    ]  # fmt: skip
    assert {(row["subject"], row["actor"]) for row in audit} == {(str(first["hold_id"]), "ada")}


@pytest.mark.invariant("I11")
def test_holds_are_bounded(scene: Scene) -> None:
    rows = scene.call("set_holds_v1", [hold_item(harness=f"h{number}") for number in range(1001)])
    assert [row["outcome"] for row in rows] == ["ok"] * 1000 + ["too_many"]


@pytest.mark.parametrize("statement", ["DELETE FROM", "UPDATE", "TRUNCATE"])
def test_the_audit_is_append_only(scene: Scene, statement: str) -> None:
    hold(scene)
    change = " SET reason = ''" if statement == "UPDATE" else ""
    with pytest.raises(psycopg.Error) as refusal:
        scene.query(f"{statement} backburner.operator_audit{change}")
    assert refusal.value.sqlstate == "BB001"


def test_a_hold_by_label_costs_no_calls_for_each_effect_that_it_covers(scene: Scene, executor: Session) -> None:
    """Of those only the ones that are dispatched are asked about singly: what waits behind them is found at once."""
    hold(scene, labels={"team": "a"})
    hold(scene, labels={"team": "b"}, harness="shell")
    run_id = scene.run()
    for n in range(100):
        scene.request(run_id, f"held/{n}", labels={"team": "ab"[n % 2]})
    free = scene.request(run_id, "free", labels={"team": "c"})
    scene.query("SELECT set_config('track_functions', 'all', false)")
    assert {a.effect_id for a in scene.claim(executor)} == {free}
    scene.query("SELECT pg_stat_force_next_flush()")
    calls = scene.query("SELECT funcname, calls FROM pg_stat_user_functions WHERE funcname = 'held_by_label'")
    assert [row["funcname"] for row in calls] == ["held_by_label"], "nothing is counted"
    assert calls[0]["calls"] < 20
