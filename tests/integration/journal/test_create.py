"""create_runs_v1: one run a key, whoever asks and however often."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.journal_items import Scene, new_id, run_item, scene_at


def test_new_run_is_one_row_everywhere(scene: Scene) -> None:
    run_id = scene.run(labels={"team": "a"})
    assert scene.types(run_id) == ["RUN_CREATED"]
    head = scene.head(run_id)
    assert (head["seq"], head["epoch"], head["iteration"], head["open"]) == (1, 0, 0, True)
    shard = scene.one("SELECT backburner.shard_of(%s) AS shard", run_id)["shard"]
    assert head["shard"] == shard == int(run_id[-2:], 16) % 16


@pytest.mark.invariant("I14")
def test_repeat_finds_the_run(scene: Scene) -> None:
    item = run_item(key="k")
    [first] = scene.call("create_runs_v1", [item])
    [again] = scene.call("create_runs_v1", [item])
    other = item | {"run_id": new_id()}
    [same_key] = scene.call("create_runs_v1", [other])
    assert (first["outcome"], first["created"]) == ("ok", True)
    for row in (again, same_key):
        assert (row["outcome"], row["created"], row["run_id"]) == ("ok", False, first["run_id"])
    assert scene.rows_written() == 1


def test_same_key_with_another_input_is_a_conflict(scene: Scene) -> None:
    scene.run(key="k")
    [row] = scene.call("create_runs_v1", [run_item(key="k", input_digest="d2")])
    assert (row["outcome"], row["detail"]) == ("key_conflict", {"recorded_digest": "d1"})
    assert scene.rows_written() == 1


def test_keys_belong_to_a_namespace(scene: Scene) -> None:
    assert scene.run(key="k") != scene.run(key="k", namespace="other")


def test_each_item_of_a_batch_has_its_own_outcome(scene: Scene) -> None:
    scene.run(key="taken")
    items = [run_item(key="x"), run_item(key="taken", input_digest="d2"), run_item(), run_item(key="x")]
    rows = scene.call("create_runs_v1", items)
    assert [(row["ord"], row["outcome"], row["created"]) for row in rows] == [
        (0, "ok", rows[0]["created"]), (1, "key_conflict", False), (2, "ok", True), (3, "ok", not rows[0]["created"]),
    ]  # fmt: skip


def test_epoch_is_the_owners_only_while_its_lease_holds(scene: Scene) -> None:
    scene.query("SELECT * FROM backburner.claim_shards_v1('s1', '', '', 60, 16)")
    [mine] = scene.call("create_runs_v1", [run_item(owner={"scheduler_id": "s1"})])
    [foreign] = scene.call("create_runs_v1", [run_item(owner={"scheduler_id": "s2"})])
    scene.query("UPDATE backburner.shards SET expires_at = clock_timestamp()")
    [late] = scene.call("create_runs_v1", [run_item(owner={"scheduler_id": "s1"})])
    assert (mine["epoch"], foreign["epoch"], late["epoch"]) == (1, 0, 0)


@pytest.mark.invariant("I5")
def test_a_shard_is_not_taken_over_between_the_look_at_its_epoch_and_the_commit(scene: Scene) -> None:
    """Or the new owner would adopt the shard's runs without the one that is about to appear in it."""
    run_id = new_id()
    scene.query("SELECT * FROM backburner.claim_shards_v1('s1', '', '', 60, 16)")
    with scene_at(scene.dsn) as other, scene.connection.transaction():
        [row] = scene.call("create_runs_v1", [run_item(run_id, owner={"scheduler_id": "s1"})])
        other.query("SET lock_timeout = '100ms'")
        taken = other.query("SELECT shard FROM backburner.shards FOR UPDATE SKIP LOCKED")
    assert row["epoch"] == 1
    assert int(run_id[-2:], 16) % 16 not in {free["shard"] for free in taken}


@pytest.mark.invariant("I14")
def test_one_of_many_that_race_for_a_key_creates(scene: Scene) -> None:
    keys = [f"k{n}" for n in range(20)]

    def create(worker: int) -> list[tuple[str, bool, str]]:
        order = keys if worker % 2 else keys[::-1]
        with scene_at(scene.dsn) as mine:
            rows = mine.call("create_runs_v1", [run_item(key=key) for key in order])
        return [(order[row["ord"]], row["created"], str(row["run_id"])) for row in rows]

    with ThreadPoolExecutor(8) as pool:
        answers = [answer for part in pool.map(create, range(8)) for answer in part]
    assert sorted(key for key, created, _ in answers if created) == sorted(keys)
    assert len({(key, run_id) for key, _, run_id in answers}) == len(keys)
