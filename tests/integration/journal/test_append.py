"""append_v1: the owner's rows, fenced by epoch and iteration, and what follows from them in the same commit."""

from typing import Any

import pytest

from tests.support.journal_items import (
    Scene,
    Session,
    cancel_row,
    external_row,
    new_id,
    plain_row,
    request_row,
    resolve_row,
    scene_at,
)


def test_rows_take_the_next_seqs_in_the_order_sent(scene: Scene) -> None:
    run_id = scene.run()
    answer = scene.append(run_id, plain_row("PROCESS_LOG", message="a"), request_row("a"), request_row("b"))
    assert (answer["outcome"], answer["first_seq"], answer["head_seq"]) == ("ok", 2, 4)
    assert scene.types(run_id) == ["RUN_CREATED", "PROCESS_LOG", "EFFECT_REQUESTED", "EFFECT_REQUESTED"]
    assert scene.head(run_id)["open_effects"] == 2


@pytest.mark.invariant("I14")
def test_repeated_iteration_writes_nothing(scene: Scene) -> None:
    run_id = scene.run()
    item = scene.append_item(run_id, [request_row("a")])
    [first] = scene.call("append_v1", [item])
    [again] = scene.call("append_v1", [item])
    assert (first["outcome"], again["outcome"], again["head_seq"]) == ("ok", "already", 2)
    assert scene.rows_written() == 2


@pytest.mark.invariant("I5")
@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({"epoch": 1}, "stale_epoch"),
        ({"epoch": -1}, "stale_epoch"),
        ({"epoch": None}, "stale_epoch"),
        ({"iteration": 3}, "stale_iteration"),
        ({"iteration": None}, "stale_iteration"),
        ({"run_id": new_id()}, "not_found"),
    ],
)
def test_fences(scene: Scene, change: dict[str, Any], outcome: str) -> None:
    run_id = scene.run()
    scene.append(run_id, request_row("a"))
    [row] = scene.call("append_v1", [scene.append_item(run_id, [request_row("b")]) | change])
    assert row["outcome"] == outcome
    assert scene.rows_written() == 2


def test_closed_run_takes_no_rows_of_its_process(scene: Scene) -> None:
    run_id = scene.run()
    scene.append(run_id, plain_row("RUN_COMPLETED", result=1))
    assert scene.append(run_id, request_row("a"))["outcome"] == "run_closed"
    run = scene.one("SELECT state, end_seq FROM backburner.runs WHERE run_id = %s", run_id)
    assert run == {"state": "COMPLETED", "end_seq": 2}


def test_closed_run_still_takes_the_timeout_of_a_detached_effect(scene: Scene) -> None:
    run_id = scene.run()
    effect_id = scene.request(run_id, "a", on_run_end="DETACH")
    scene.append(run_id, plain_row("RUN_COMPLETED"))
    assert scene.append(run_id, resolve_row(effect_id, "a"))["outcome"] == "ok"
    assert scene.effect(effect_id)["state"] == "TIMED_OUT"
    assert scene.head(run_id)["open_effects"] == 0


def test_busy_head_is_handed_back_and_the_others_pass(scene: Scene) -> None:
    held, free = scene.run(), scene.run()
    items = [scene.append_item(run_id, [request_row("a")]) for run_id in (held, free)]
    with scene_at(scene.dsn) as other, other.connection.transaction():
        other.query("SELECT 1 FROM backburner.run_heads WHERE run_id = %s FOR UPDATE", held)
        rows = scene.call("append_v1", items)
    assert [row["outcome"] for row in rows] == ["busy", "ok"]
    assert [row["outcome"] for row in scene.call("append_v1", items)] == ["ok", "already"]


def test_history_limit_lets_only_the_end_through(scene: Scene) -> None:
    run_id = scene.run()
    scene.query("UPDATE backburner.run_heads SET seq = backburner.history_max() WHERE run_id = %s", run_id)
    assert scene.append(run_id, request_row("a"))["outcome"] == "history_limit"
    scene.iterations[run_id] -= 1
    assert scene.append(run_id, plain_row("RUN_FAILED", error={"kind": "HISTORY_LIMIT"}))["outcome"] == "ok"


def test_queued_effect_has_a_queue_row_and_waits_for_its_time(scene: Scene) -> None:
    run_id = scene.run()
    effect_id = scene.request(
        run_id, "a", priority=2, not_before="2999-01-01T00:00:00Z", queue_timeout_s=5.0, total_timeout_s=60.0
    )
    row = scene.one(
        "SELECT *, enqueued_at - rank AS lead FROM backburner.dispatch_queue WHERE effect_id = %s", effect_id
    )
    effect = scene.effect(effect_id)
    assert (row["not_before"].year, row["lead"].total_seconds()) == (2999, 60.0)
    assert (effect["state"], effect["attempt"], effect["requested_seq"]) == ("QUEUED", 0, 2)
    assert (effect["queue_deadline"] - effect["requested_at"]).total_seconds() == 5.0
    assert (effect["total_deadline"] - effect["requested_at"]).total_seconds() == 60.0


@pytest.mark.parametrize("kind", ["EXTERNAL", "TIMER"])
def test_effects_without_executor_wait_outside_the_queue(scene: Scene, executor: Session, kind: str) -> None:
    run_id = scene.run()
    _, attempt = scene.fast(executor, run_id, "a", kind=kind, capabilities=[])
    effect = scene.effect(attempt.effect_id)
    assert (effect["state"], effect["attempt"], effect["token_hash"]) == ("WAITING", 0, None)
    assert scene.queued() == set()


def test_fast_path_dispatches_in_the_requests_commit(scene: Scene, executor: Session) -> None:
    run_id = scene.run()
    answer, attempt = scene.fast(executor, run_id, "a")
    [extra] = answer["extra"]
    assert (extra["seq"], extra["type"], extra["attempt"]) == (3, "EFFECT_DISPATCHED", 1)
    assert (answer["first_seq"], answer["head_seq"]) == (2, 3)
    assert scene.effect(attempt.effect_id)["state"] == "DISPATCHED"
    assert scene.queued() == set()
    assert scene.settle(attempt)["outcome"] == "ok"


@pytest.mark.invariant("I13")
@pytest.mark.parametrize("why", ["newer session", "other incarnation", "gone", "draining", "later", "no token"])
def test_fast_path_is_refused_and_the_effect_queued(scene: Scene, executor: Session, why: str) -> None:
    run_id = scene.run()
    session, x = executor, {}
    if why == "newer session":
        scene.hello()
    elif why == "other incarnation":
        session = Session("e1", "i0", 1)
    elif why == "gone":
        scene.query("SELECT backburner.executor_gone_v1('e1', 1)")
    elif why == "draining":
        session = scene.hello(draining=True)
    elif why == "later":
        x = {"not_before": "2999-01-01T00:00:00Z"}
    if why == "no token":
        row = request_row("a", dispatch={"executor_id": "e1", "incarnation": "i1", "session_no": 1, "harness": "shell"})
        answer = scene.append(run_id, row)
        effect_id = row["effect_id"]
    else:
        answer, attempt = scene.fast(session, run_id, "a", **x)
        effect_id = attempt.effect_id
    assert (answer["outcome"], answer["extra"]) == ("ok", [])
    assert scene.effect(effect_id)["state"] == "QUEUED"
    assert scene.queued() == {effect_id}


def test_fast_path_counts_the_group_with_the_rows_of_its_own_append(scene: Scene, executor: Session) -> None:
    run_id = scene.run()
    dispatch = {"executor_id": "e1", "incarnation": "i1", "session_no": 1, "harness": "shell", "token_hash": "00"}
    rows = [request_row(f"g{n}", group_id="g", group_max=2, dispatch=dispatch) for n in range(4)]
    answer = scene.append(run_id, *rows)
    assert [extra["effect_key"] for extra in answer["extra"]] == ["g0", "g1"]
    assert len(scene.queued()) == 2
    more = scene.append(run_id, request_row("g9", group_id="g", group_max=2, dispatch=dispatch))
    assert more["extra"] == []


def test_group_without_a_number_is_one_at_a_time(scene: Scene, executor: Session) -> None:
    run_id = scene.run()
    scene.append(run_id, *[request_row(f"g{n}", group_id="g") for n in range(3)])
    assert len(scene.claim(executor)) == 1
    assert len(scene.queued()) == 2


def test_owner_cannot_append_to_a_parked_run(scene: Scene, executor: Session) -> None:
    run_id = scene.run()
    scene.append(run_id, plain_row("RUN_HALTED", reason="ask"))
    answer, _ = scene.fast(executor, run_id, "a")
    assert (answer["outcome"], answer["head_seq"], answer["extra"]) == ("parked", 2, [])


def test_effect_that_is_asked_for_and_cancelled_in_one_step(scene: Scene) -> None:
    run_id, effect_id = scene.run(), new_id()
    answer = scene.append(run_id, request_row("a", effect_id), cancel_row(effect_id, "a"))
    assert scene.types(run_id)[1:] == ["EFFECT_REQUESTED", "EFFECT_CANCEL_REQUESTED", "EFFECT_CANCELLED"]
    assert [extra["seq"] for extra in answer["extra"]] == [4]
    assert (scene.effect(effect_id)["state"], scene.queued()) == ("CANCELLED", set())
    assert scene.head(run_id)["open_effects"] == 0


def test_cancel_of_a_fast_dispatch_in_the_same_step_reaches_the_executor(scene: Scene, executor: Session) -> None:
    run_id, effect_id = scene.run(), new_id()
    dispatch = {"executor_id": "e1", "incarnation": "i1", "session_no": 1, "harness": "shell", "token_hash": "00"}
    answer = scene.append(run_id, request_row("a", effect_id, dispatch=dispatch), cancel_row(effect_id, "a"))
    assert [extra["type"] for extra in answer["extra"]] == ["EFFECT_DISPATCHED"]
    assert [(c["effect_id"], c["attempt"]) for c in answer["detail"]["cancels"]] == [(effect_id, 1)]
    assert scene.effect(effect_id)["state"] == "CANCELLING"


def test_owner_settles_what_nobody_runs(scene: Scene) -> None:
    run_id = scene.run()
    effect_id = scene.request(run_id, "a")
    assert scene.append(run_id, resolve_row(effect_id, "a"))["detail"] == {"cancels": []}
    effect = scene.effect(effect_id)
    assert (effect["state"], effect["settled_seq"], effect["reason"]) == ("TIMED_OUT", 3, "TIMEOUT_TOTAL")
    assert scene.queued() == set()


@pytest.mark.invariant("I2")
@pytest.mark.parametrize(("settled", "cause"), [(False, "live_attempt"), (True, "settled")])
def test_owner_cannot_settle_what_an_executor_has(
    scene: Scene, executor: Session, *, settled: bool, cause: str
) -> None:
    run_id = scene.run()
    attempt = scene.dispatched(executor, run_id)
    if settled:
        scene.settle(attempt)
    answer = scene.append(run_id, resolve_row(attempt.effect_id, "a"))
    assert (answer["outcome"], answer["detail"]["refused"]) == ("ok", [0])
    evidence = scene.journal(run_id)[-1]
    assert (evidence["type"], evidence["data"]["cause"]) == ("EFFECT_SUPERSEDED", cause)
    assert scene.effect(attempt.effect_id)["state"] == ("SUCCEEDED" if settled else "DISPATCHED")
    assert scene.head(run_id)["open_effects"] == (0 if settled else 1)


def test_rows_about_effects_of_other_runs_change_nothing(scene: Scene) -> None:
    mine, other = scene.run(), scene.run()
    effect_id = scene.request(other, "a")
    answer = scene.append(mine, resolve_row(effect_id, "a"), cancel_row(effect_id, "a"))
    assert answer["outcome"] == "ok"
    assert scene.journal(mine)[-1]["data"]["no_op"] is True
    assert scene.effect(effect_id)["state"] == "QUEUED"
    assert (scene.head(mine)["open_effects"], scene.head(other)["open_effects"]) == (0, 1)


def test_timers_are_projected(scene: Scene) -> None:
    run_id = scene.run()
    at = "2999-01-01T00:00:00Z"
    scene.append(run_id, *[plain_row("TIMER_SET", ordinal=n, fire_at=at) for n in (1, 2)])
    scene.append(run_id, plain_row("TIMER_FIRED", ordinal=1))
    assert [row["ordinal"] for row in scene.query("SELECT ordinal FROM backburner.timers")] == [2]
    scene.append(run_id, plain_row("RUN_FAILED", error={"kind": "X"}))
    assert scene.query("SELECT * FROM backburner.timers") == []


@pytest.mark.parametrize(
    ("rows", "state", "is_open"),
    [
        (["RUN_CLOSING"], "CLOSING", True),
        (["RUN_CLOSING", "RUN_COMPLETED"], "COMPLETED", False),
        (["RUN_HALTED"], "HALTED", True),
        (["PROCESS_RUNTIME_ERROR"], "PROCESS_ERROR", True),
        (["RUN_CANCELLED"], "CANCELLED", False),
        (["RUN_FAILED"], "FAILED", False),
        (["RUN_REPORTED"], "RUNNING", True),
    ],
)
def test_state_of_the_run_follows_its_rows(scene: Scene, rows: list[str], state: str, *, is_open: bool) -> None:
    run_id = scene.run()
    scene.append(run_id, *[plain_row(row, note="x") for row in rows])
    head = scene.head(run_id)
    run = scene.one("SELECT * FROM backburner.runs WHERE run_id = %s", run_id)
    assert (head["state"], head["open"], run["state"], run["ended_at"] is None) == (state, is_open, state, is_open)


def test_resumed_run_remembers_that_its_cancel_was_asked_for(scene: Scene) -> None:
    run_id = scene.run()
    scene.append(run_id, plain_row("RUN_HALTED"))
    scene.cancel(run_id)
    scene.resume(run_id)
    assert scene.head(run_id)["state"] == "CANCELLING"


def test_external_effects_are_open_effects(scene: Scene) -> None:
    run_id = scene.run()
    scene.append(run_id, external_row("ask"))
    assert scene.head(run_id)["open_effects"] == 1
