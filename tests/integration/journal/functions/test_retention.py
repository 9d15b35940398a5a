"""prune_runs_v1: whole ended runs go, in one commit each step, and nothing else can be deleted by anybody."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.support.journal_items import Attempt, Row, Scene, Session, new_id, plain_row, run_item, scene_at

TABLES = ("journal", "runs", "run_heads", "effects", "effect_output", "blobs", "timers", "client_runs", "run_groups")


def prune(scene: Scene, **changes: Any) -> Row:
    step: Row = {
        "older_than_s": 0.0, "states": [], "namespace": None, "dry_run": False, "runs_max": 200, "rows_max": 20_000,
        "reason": "space", "actor": "ada",
    }  # fmt: skip
    [row] = scene.call("prune_runs_v1", step | changes)
    return row


def end(scene: Scene, run_id: str) -> None:
    assert scene.append(run_id, plain_row("RUN_COMPLETED", result={"value": 1}))["outcome"] == "ok"


def ended(scene: Scene, **changes: Any) -> str:
    run_id = scene.run(**changes)
    end(scene, run_id)
    return run_id


def there(scene: Scene) -> set[str]:
    return {str(row["run_id"]) for row in scene.query("SELECT run_id FROM backburner.run_heads")}


def left_of(scene: Scene, run_id: str) -> set[str]:
    return {
        table for table in TABLES if scene.query(f"SELECT 1 FROM backburner.{table} WHERE run_id = %s LIMIT 1", run_id)
    }


@pytest.mark.invariant("I4")
def test_a_whole_run_goes_and_leaves_its_tombstone(scene: Scene, executor: Session) -> None:
    run_id, live = scene.run(key="rel/1", namespace="default"), scene.run()
    attempt = scene.dispatched(executor, run_id, group_id="g", group_max=2)
    scene.query(
        "SELECT backburner.output_append_v1(ARRAY[%s]::uuid[], ARRAY[%s]::uuid[], ARRAY[1], ARRAY[%s]::bytea[],"
        " ARRAY[1]::smallint[], ARRAY[0]::bigint[], ARRAY['x']::bytea[])",
        run_id, attempt.effect_id, bytes.fromhex(attempt.token),
    )  # fmt: skip
    scene.settle(attempt, blob_text='"' + "x" * 70_000 + '"', result={})
    end(scene, run_id)
    rows = len(scene.journal(run_id))
    assert left_of(scene, run_id) >= {"journal", "effects", "effect_output", "blobs", "run_groups"}
    assert (prune(scene, dry_run=True)["runs"], there(scene)) == (1, {run_id, live})
    step = prune(scene)
    assert (step["outcome"], step["runs"], step["journal_rows"], step["more"]) == ("ok", 1, rows, False)
    assert (left_of(scene, run_id), there(scene)) == (set(), {live})
    tombstone = scene.one("SELECT key, state FROM backburner.pruned_runs WHERE run_id = %s", run_id)
    assert (tombstone["key"], tombstone["state"]) == ("rel/1", "COMPLETED")
    audit = scene.one("SELECT action, actor, reason, detail FROM backburner.operator_audit")
    assert (audit["action"], audit["actor"], audit["detail"]["runs"]) == ("PRUNE_RUNS", "ada", 1)
    assert scene.settle(attempt)["outcome"] == "not_found"


def test_what_somebody_needs_is_left(scene: Scene, executor: Session) -> None:
    parent = scene.run()
    child = ended(scene, parent_run_id=parent, parent_effect_id=new_id())
    reused = ended(scene)
    user = scene.run(reuse_from=reused)
    detached = scene.run()
    attempt = scene.dispatched(executor, detached, on_run_end="DETACH")
    end(scene, detached)
    halted = scene.run()
    scene.append(halted, plain_row("RUN_HALTED", reason="look"))
    needed = {parent, child, reused, user, detached, halted}
    assert (prune(scene)["runs"], there(scene)) == (0, needed)
    scene.settle(attempt)
    for run_id in (parent, user):
        end(scene, run_id)
    assert (prune(scene)["runs"], there(scene)) == (5, {halted})


def test_by_age_state_and_namespace(scene: Scene) -> None:
    completed, failed = ended(scene), scene.run()
    scene.append(failed, plain_row("RUN_FAILED", error={"message": "no"}))
    elsewhere = ended(scene, namespace="other")
    assert prune(scene, older_than_s=3600)["runs"] == 0
    assert (prune(scene, states=["FAILED"])["runs"], there(scene)) == (1, {completed, elsewhere})
    assert (prune(scene, namespace="other")["runs"], there(scene)) == (1, {completed})


@pytest.mark.invariant("I11")
def test_steps_are_bounded_by_runs_and_by_rows_and_oldest_first(scene: Scene) -> None:
    runs = [ended(scene) for _ in range(5)]
    step = prune(scene, runs_max=2)
    assert (step["runs"], step["more"], there(scene)) == (2, True, set(runs[2:]))
    step = prune(scene, rows_max=1)
    assert (step["runs"], step["more"]) == (1, True)
    assert [prune(scene)["runs"], prune(scene)["runs"]] == [2, 0]


@pytest.mark.invariant("I14")
def test_a_key_or_request_of_a_removed_run_does_not_start_over(scene: Scene) -> None:
    request_id = new_id()
    keyed, asked = ended(scene, key="rel/1"), ended(scene, request_id=request_id)
    prune(scene)
    for changes, was in (({"key": "rel/1"}, keyed), ({"request_id": request_id}, asked)):
        [row] = scene.call("create_runs_v1", [run_item(**changes)])
        assert (row["outcome"], str(row["run_id"]), row["created"]) == ("pruned", was, False)
    assert there(scene) == set()
    assert scene.query("SELECT 1 FROM backburner.runs") == []
    scene.run(key="rel/1", namespace="other")


def test_a_creation_that_waits_for_a_removal_does_not_start_over(scene: Scene) -> None:
    ended(scene, key="rel/1")
    with scene_at(scene.dsn) as other, ThreadPoolExecutor(1) as pool:
        with scene.connection.transaction():
            assert prune(scene)["runs"] == 1
            created = pool.submit(other.call, "create_runs_v1", [run_item(key="rel/1")])
            while not scene.query("SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"):
                assert not created.done()
        assert created.result()[0]["outcome"] == "pruned"


def test_one_prunes_at_a_time_and_what_is_in_use_is_left_for_later(scene: Scene) -> None:
    run_id, used = ended(scene), ended(scene)
    with scene_at(scene.dsn) as other:
        with scene.connection.transaction():
            scene.query("SELECT 1 FROM backburner.run_heads WHERE run_id = %s FOR UPDATE", used)
            assert prune(other)["runs"] == 1
        assert there(scene) == {used}
        with scene.connection.transaction():
            assert prune(scene)["runs"] == 1
            assert prune(other)["outcome"] == "busy"
    assert run_id not in there(scene)


TOMBSTONE = (
    "INSERT INTO backburner.pruned_runs SELECT run_id, namespace, key, process, state, now(), now()"
    " FROM backburner.runs WHERE run_id = %s"
)


@pytest.mark.invariant("I4")
@pytest.mark.parametrize("rows", ["true", "seq = 1"])
@pytest.mark.parametrize("marked", [False, True])
def test_nobody_deletes_less_than_a_run_nor_one_without_tombstone(scene: Scene, rows: str, marked: bool) -> None:
    run_id, other = ended(scene), ended(scene)
    scene.query("BEGIN")
    if marked:  # of this run alone: the other one, or the rest of it, is left behind
        scene.query(TOMBSTONE, run_id)
    with pytest.raises(psycopg.Error) as refusal:
        scene.query(f"DELETE FROM backburner.journal WHERE {rows}")
    scene.query("ROLLBACK")
    assert refusal.value.sqlstate == "BB001"
    assert (len(scene.journal(run_id)), len(scene.journal(other))) == (2, 2)


@pytest.mark.invariant("I4")
def test_an_old_tombstone_opens_nothing(scene: Scene) -> None:
    run_id = ended(scene)
    scene.query(TOMBSTONE, run_id)
    with pytest.raises(psycopg.Error) as refusal:
        scene.query("DELETE FROM backburner.journal WHERE run_id = %s", run_id)
    assert refusal.value.sqlstate == "BB001"


def late_output(scene: Scene, attempt: Attempt) -> int:
    """The last output of an attempt, however late it comes; how much of it is kept."""
    row = scene.one(
        "SELECT backburner.output_append_v1(ARRAY[%s]::uuid[], ARRAY[%s]::uuid[], ARRAY[1], ARRAY[%s]::bytea[],"
        " ARRAY[1]::smallint[], ARRAY[0]::bigint[], ARRAY['x']::bytea[]) AS kept",
        attempt.run_id, attempt.effect_id, bytes.fromhex(attempt.token),
    )  # fmt: skip
    return int(row["kept"])


@pytest.mark.invariant("I4")
def test_output_that_comes_while_its_run_is_removed_is_not_left_behind(scene: Scene, executor: Session) -> None:
    run_id = scene.run()
    attempt = scene.dispatched(executor, run_id)
    scene.settle(attempt)
    end(scene, run_id)
    with scene_at(scene.dsn) as other, ThreadPoolExecutor(1) as pool:
        with scene.connection.transaction():
            assert prune(scene)["runs"] == 1
            late = pool.submit(late_output, other, attempt)
            while not scene.query("SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"):
                if late.done():
                    break
        assert late.result() == 0
    assert left_of(scene, run_id) == set()


class Chains:
    """Runs that go on as others, with effects that outlive them, and an executor that says twice how they ended."""

    def __init__(self, dsn: str, session: Session, seed: int) -> None:
        self._dsn = dsn
        self._session = session
        self._chance = random.Random(seed)
        #: What a settlement was answered that came again, and when all was over.
        self.answers: Counter[str] = Counter()
        self.attempts: list[Attempt] = []
        self.runs: list[str] = []

    def work(self) -> None:
        """Three chains, link by link."""
        with scene_at(self._dsn) as scene:
            for n in range(3):
                self._chain(scene, f"{self._session.executor_id}/{n}")

    def _chain(self, scene: Scene, key: str) -> None:
        run_id = scene.run(key=key)
        for link in range(4):
            self.runs.append(run_id)
            attempts = [scene.fast(self._session, run_id, f"k{n}", on_run_end="DETACH")[1] for n in range(3)]
            settled = attempts[: self._chance.randrange(4)]
            for attempt in settled:
                scene.settle(attempt, blob_text='"' + "x" * 70_000 + '"', result={})
            fresh = new_id()
            ends = plain_row("RUN_CONTINUED", new_run_id=fresh, input={}, signal_seqs=[])
            scene.append(run_id, ends if link < 3 else plain_row("RUN_COMPLETED", result={"value": 1}))
            for attempt in attempts:  # again, or late: the run may be gone
                self.answers[str(scene.settle(attempt)["outcome"])] += 1
                late_output(scene, attempt)
            self.attempts += attempts
            run_id = fresh


#: What is left behind of a run that is gone, or missing of one that is there: in one snapshot.
HALVES = """
SELECT 'left' AS what, h.run_id FROM (
    SELECT run_id FROM backburner.journal UNION SELECT run_id FROM backburner.run_heads
    UNION SELECT run_id FROM backburner.effects UNION SELECT run_id FROM backburner.effect_output
    UNION SELECT run_id FROM backburner.blobs UNION SELECT run_id FROM backburner.attempt_usage
    UNION SELECT run_id FROM backburner.dispatch_queue) h
WHERE NOT EXISTS (SELECT FROM backburner.runs r WHERE r.run_id = h.run_id)
UNION ALL
SELECT 'torn', r.run_id FROM backburner.runs r JOIN backburner.run_heads h USING (run_id)
WHERE h.seq <> (SELECT count(*) FROM backburner.journal j WHERE j.run_id = r.run_id)
UNION ALL
SELECT 'both', r.run_id FROM backburner.runs r JOIN backburner.pruned_runs p USING (run_id)
UNION ALL
SELECT 'lost', r.previous_run_id FROM backburner.runs r WHERE r.previous_run_id IS NOT NULL
    AND NOT EXISTS (SELECT FROM backburner.runs o WHERE o.run_id = r.previous_run_id)
    AND NOT EXISTS (SELECT FROM backburner.pruned_runs o WHERE o.run_id = r.previous_run_id)
"""


@pytest.mark.invariant("I2", "I4")
def test_removal_beside_chains_of_runs_and_late_settlements_leaves_no_half(scene: Scene) -> None:
    chains = [Chains(scene.dsn, scene.hello(f"e{n}", f"i{n}"), n) for n in range(3)]
    with ThreadPoolExecutor(len(chains)) as pool:
        working = [pool.submit(each.work) for each in chains]
        while not all(done.done() for done in working) or there(scene):
            prune(scene, runs_max=3)
            assert scene.query(HALVES) == []
        for done in working:
            done.result()
    runs = {run_id for each in chains for run_id in each.runs}
    assert {str(row["run_id"]) for row in scene.query("SELECT run_id FROM backburner.pruned_runs")} == runs
    assert set().union(*(each.answers for each in chains)) <= {"ok", "already", "not_found"}
    for attempt in (attempt for each in chains for attempt in each.attempts):
        assert scene.settle(attempt)["outcome"] == "not_found"
        assert (late_output(scene, attempt), left_of(scene, attempt.run_id)) == (0, set())
    assert scene.query(HALVES) == []
