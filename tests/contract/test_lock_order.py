"""Heads in id order, then effects, then queue rows: callers in any order block each other, but never for ever."""

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg

from tests.support.journal_items import (
    Attempt,
    Row,
    Scene,
    lost_item,
    new_id,
    request_row,
    run_item,
    scene_at,
    settle_item,
)

SECONDS = 2.0


def hammer(dsn: str, callers: list[Callable[[Scene, random.Random], Any]]) -> Counter[str]:
    """Runs the callers side by side for a while, each on a connection of its own; how often each error came."""

    def run(number: int) -> Counter[str]:
        states: Counter[str] = Counter()
        chance = random.Random(number)
        deadline = time.monotonic() + SECONDS
        with scene_at(dsn) as scene:
            scene.query("SET deadlock_timeout = '50ms'")
            while time.monotonic() < deadline:
                try:
                    callers[number](scene, chance)
                    states["calls"] += 1
                except psycopg.Error as error:
                    states[f"{error.sqlstate} {error}"] += 1
        return states

    with ThreadPoolExecutor(len(callers)) as pool:
        return sum(pool.map(run, range(len(callers))), Counter())


def test_two_connections_in_opposite_orders(database_url: str) -> None:
    with scene_at(database_url) as scene:
        session = scene.hello()
        runs = [scene.run() for _ in range(4)]
        for run_id in runs:
            scene.append(run_id, *[request_row(f"k{n}") for n in range(4)])
        attempts = scene.claim(session)
    readopted = [
        {
            "run_id": a.run_id, "effect_id": a.effect_id, "attempt": a.attempt, "executor_id": "e1",
            "incarnation": "i1", "session_no": 1,
        }
        for a in attempts
    ]  # fmt: skip

    def progress(scene: Scene, order: list[Attempt]) -> None:
        ordinal = time.monotonic_ns() // 1000 % 2**31
        values = {"ordinal": ordinal, "progress": {}, "durable": False}
        scene.call("attempts_progress_v1", [a.identity | values for a in order])

    states = hammer(
        database_url,
        [
            lambda scene, _: progress(scene, attempts),
            lambda scene, _: progress(scene, attempts[::-1]),
            lambda scene, _: scene.call("readopt_v1", readopted),
            lambda scene, chance: scene.call("readopt_v1", chance.sample(readopted, len(readopted))),
            lambda scene, _: scene.call("attempts_started_v1", [a.identity for a in attempts[::-1]]),
        ],
    )
    assert set(states) == {"calls"}, states


def test_claims_cancels_losses_and_outcomes_side_by_side(database_url: str) -> None:
    with scene_at(database_url) as scene:
        session = scene.hello()
        runs = [scene.run() for _ in range(6)]
    taken: list[Attempt] = []

    def ask(scene: Scene, chance: random.Random) -> None:
        order = chance.sample(runs, len(runs))
        heads = scene.query("SELECT run_id, iteration FROM backburner.run_heads")
        scene.iterations.update({str(row["run_id"]): row["iteration"] for row in heads})
        scene.call("append_v1", [scene.append_item(run_id, [request_row(new_id())]) for run_id in order])

    def claim(scene: Scene, _: random.Random) -> None:
        taken.extend(scene.claim(session, 5))

    def settle(scene: Scene, chance: random.Random) -> None:
        some = chance.sample(taken, min(4, len(taken)))
        scene.call("attempts_settle_v1", [settle_item(a, chance.choice(["succeeded", "failed"])) for a in some])

    def lose(scene: Scene, chance: random.Random) -> None:
        some = chance.sample(taken, min(3, len(taken)))
        scene.call("attempts_lost_v1", [lost_item(a) for a in some])

    def cancel(scene: Scene, chance: random.Random) -> None:
        rows = scene.query("SELECT run_id, effect_id FROM backburner.effects WHERE settled_seq IS NULL LIMIT 20")
        some = chance.sample(rows, min(4, len(rows)))
        scene.call("request_cancels_v1", [cancel_item(row) for row in some])

    states = hammer(database_url, [ask, claim, settle, lose, cancel, claim, settle])
    assert set(states) == {"calls"}, states
    assert states["calls"] > 50


def test_calls_of_clients_beside_all_others(database_url: str) -> None:
    with scene_at(database_url) as scene:
        session = scene.hello()
        fields = {"client_driven": True, "process": "", "start_id": "s", "idle_timeout_s": 0.01}
        runs = sorted(scene.run(**fields) for _ in range(6))
    taken: list[Attempt] = []

    def some(chance: random.Random) -> list[str]:
        return chance.sample(runs, 3)

    def epochs(scene: Scene) -> dict[str, int]:
        return {
            str(row["run_id"]): row["epoch"] for row in scene.query("SELECT run_id, epoch FROM backburner.client_runs")
        }

    def ask(scene: Scene, chance: random.Random) -> None:
        known = epochs(scene)
        rows = [request_row(new_id()) | {"use_recorded": True} for _ in range(3)]
        asked = [{"run_id": run, "client_epoch": known[run], "actor": "c", "rows": rows} for run in some(chance)]
        # ids of effects are a run's own
        scene.call("client_requests_v1", [a | {"rows": [r | {"effect_id": new_id()} for r in rows]} for a in asked])

    def start(scene: Scene, chance: random.Random) -> None:
        items = [{"run_id": run, "start_id": new_id(), "idle_timeout_s": 0.01, "actor": "c"} for run in some(chance)]
        scene.call("open_clients_v1", items)

    def finish(scene: Scene, chance: random.Random) -> None:
        known = epochs(scene)
        end = {"state": "COMPLETED", "data": {"result": {"value": 1}}, "wait": False, "actor": "c"}
        scene.call("finish_runs_v1", [{"run_id": run, "client_epoch": known[run]} | end for run in some(chance)])

    def seen(scene: Scene, chance: random.Random) -> None:
        scene.query("SELECT * FROM backburner.clients_seen_v1(%s::uuid[])", some(chance))

    def halt(scene: Scene, chance: random.Random) -> None:
        heads = scene.query(
            "SELECT run_id, epoch FROM backburner.run_heads WHERE run_id = ANY (%s::uuid[])", some(chance)
        )
        idle = [{"run_id": str(row["run_id"]), "epoch": row["epoch"], "actor": "scheduler/s1"} for row in heads]
        scene.call("halt_idle_v1", idle)

    def claim(scene: Scene, _: random.Random) -> None:
        taken.extend(scene.claim(session, 5))

    def settle(scene: Scene, chance: random.Random) -> None:
        attempts = chance.sample(taken, min(4, len(taken)))
        scene.call("attempts_settle_v1", [settle_item(a, chance.choice(["succeeded", "failed"])) for a in attempts])

    states = hammer(database_url, [ask, ask, start, finish, seen, halt, claim, settle])
    assert set(states) == {"calls"}, states
    assert states["calls"] > 50


def cancel_item(row: Row) -> Row:
    ids = {"run_id": str(row["run_id"]), "effect_id": str(row["effect_id"])}
    return ids | {"reason": "EFFECT_REASON_CANCELLED_BY_USER", "message": "", "actor": "api/test"}


def test_leases_and_new_runs_side_by_side(database_url: str) -> None:
    """New runs lock the rows of their shards, renewals lock all of an owner's."""
    states = hammer(
        database_url,
        [
            lambda scene, _: scene.query("SELECT * FROM backburner.claim_shards_v1('s1', '', '', 0.05, 8)"),
            lambda scene, _: scene.query("SELECT * FROM backburner.claim_shards_v1('s2', '', '', 0.05, 8)"),
            lambda scene, _: scene.query("SELECT * FROM backburner.renew_shards_v3('s1', '', '', 0.05, false, '{}')"),
            lambda scene, _: scene.query("SELECT * FROM backburner.release_shards_v2('s2', NULL)"),
            lambda scene, _: scene.query("SELECT * FROM backburner.release_shards_v2('s1', '{1,3,5}')"),
            lambda scene, _: scene.call(
                "create_runs_v1", [run_item(owner={"scheduler_id": f"s{n % 2}"}) for n in range(8)]
            ),
        ],
    )
    assert set(states) == {"calls"}, states


def test_breakers_are_opened_tried_and_reset_beside_claims(database_url: str) -> None:
    """The last in the order: outcomes that open and close breakers hold heads, as do claims that give back a try; who
    logs in holds the row of an executor.
    """
    with scene_at(database_url) as scene:
        session = scene.hello()
        runs = [scene.run() for _ in range(6)]
    taken: list[Attempt] = []
    agents = replace(session, capabilities=("agent/codex",))
    columns: dict[str, Any] = {
        "kind": "AGENT",
        "harness": "codex",
        "capabilities": ["agent/codex"],
        "max_attempts": 1000,
    }

    def ask(scene: Scene, chance: random.Random) -> None:
        order = chance.sample(runs, len(runs))
        heads = scene.query("SELECT run_id, iteration FROM backburner.run_heads")
        scene.iterations.update({str(row["run_id"]): row["iteration"] for row in heads})
        scene.call("append_v1", [scene.append_item(run_id, [request_row(new_id(), **columns)]) for run_id in order])

    def claim(scene: Scene, _: random.Random) -> None:
        taken.extend(scene.claim(agents, 5))

    def settle(scene: Scene, chance: random.Random) -> None:
        some = chance.sample(taken, min(4, len(taken)))
        items = [settle_item(a, chance.choice(["succeeded", "failed"])) for a in some]
        refused = {"reason": "EFFECT_REASON_AUTHENTICATION", "error": {"reason": "EFFECT_REASON_AUTHENTICATION"}}
        accounts = [{"account": chance.choice("abc")} for _ in items]
        scene.call("attempts_settle_v1", [
            item | (refused | account if item["outcome"] == "failed" else {})
            for item, account in zip(items, accounts, strict=True)
        ])  # fmt: skip

    def expire(scene: Scene, _: random.Random) -> None:
        scene.query("UPDATE backburner.provider_breakers SET until = now(), probe_until = NULL RETURNING 1")

    def reset(scene: Scene, chance: random.Random) -> None:
        scope = {"namespace": "", "harness": "", "account": chance.choice("abc"), "executor_id": ""}
        scene.call("reset_breakers_v1", [scope | {"reason": "", "actor": "t"}])

    def log_in(scene: Scene, chance: random.Random) -> None:
        said = {"name": "codex", "account": chance.choice("abc"), "login_id": new_id()}
        found = {"executor_id": "e1", "session_no": session.session_no, "capabilities": ["agent/codex"]}
        scene.call("executor_found_v1", found | {"harness_checks": [said]})
        scene.call("executors_seen_v1", [{"executor_id": "e1", "session_no": session.session_no, "state": "CONNECTED"}])

    states = hammer(database_url, [ask, claim, settle, expire, claim, settle, reset, log_in])
    assert set(states) == {"calls"}, states
    assert states["calls"] > 50
