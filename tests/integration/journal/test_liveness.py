"""What cannot go on does not hold up what can: in the queue, in the writers, and when an owner is gone."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import pytest

from scheduler_service.journal import JournalUnavailable, items, open_journal, writer
from tests.support.journal_items import (
    OWNER,
    Scene,
    Session,
    plain_row,
    request_row,
    run_item,
    scene_at,
    settle_item,
)
from tests.support.postgres import DisposablePostgres


@pytest.fixture
def other(scene: Scene) -> Iterator[Scene]:
    with scene_at(scene.dsn) as other:
        yield other


# -- the queue ---------------------------------------------------------------------------------------------------


def test_claim_passes_over_what_a_parked_run_has_queued(scene: Scene, executor: Session) -> None:
    parked, running = scene.run(), scene.run()
    scene.append(parked, *[request_row(f"p{n}") for n in range(20)])
    scene.append(parked, plain_row("RUN_HALTED"))
    scene.append(running, request_row("a"), request_row("b"))
    assert {attempt.key for attempt in scene.claim(executor, 2)} == {"a", "b"}
    scene.resume(parked)
    assert len(scene.claim(executor, 100)) == 20


@pytest.mark.parametrize("background", [False, True])
def test_claim_passes_over_what_a_full_group_has_queued(scene: Scene, executor: Session, *, background: bool) -> None:
    grouped, free = scene.run(), scene.run()
    scene.append(grouped, *[request_row(f"g{n}", group_id="g", group_max=2, background=background) for n in range(20)])
    scene.append(free, *[request_row(f"f{n}", background=background) for n in range(3)])
    first = scene.claim(executor, 4)
    assert sorted(attempt.key for attempt in first) == ["f0", "f1", "g0", "g1"]
    assert [attempt.key for attempt in scene.claim(executor, 4)] == ["f2"]
    scene.call("attempts_settle_v1", [settle_item(attempt) for attempt in first if attempt.key == "g0"])
    assert [attempt.key for attempt in scene.claim(executor, 4)] == ["g2"]


def test_groups_of_different_runs_do_not_share_their_places(scene: Scene, executor: Session) -> None:
    for _ in range(3):
        scene.append(scene.run(), *[request_row(f"g{n}", group_id="g", group_max=1) for n in range(3)])
    taken = scene.claim(executor, 9)
    assert len({attempt.run_id for attempt in taken}) == len(taken) == 3


def test_rows_of_a_run_that_is_over_leave_the_queue(scene: Scene, executor: Session) -> None:
    run_id = scene.run()
    scene.append(run_id, request_row("a"), request_row("b", on_run_end="DETACH"))
    scene.append(run_id, plain_row("RUN_FAILED", error={"kind": "X"}))
    assert [attempt.key for attempt in scene.claim(executor)] == ["b"]
    assert scene.queued() == set()


def test_negative_room_for_background_is_no_error(scene: Scene, executor: Session) -> None:
    scene.append(scene.run(), request_row("a"), request_row("b", background=True))
    assert [attempt.key for attempt in scene.claim(executor, 5, background=-2)] == ["a"]


# -- commits -----------------------------------------------------------------------------------------------------


def synchronous(scene: Scene, function: str, argument: object) -> str:
    """What the commit of one call would wait for."""
    scene.query("SET synchronous_commit = 'on'")
    with scene.connection.transaction():
        if function == "executors_seen_v1":
            scene.query("SELECT backburner.executors_seen_v1('[]')")
        else:
            scene.call(function, argument)
        setting: str = scene.one("SELECT current_setting('synchronous_commit') AS it")["it"]
    return setting


def test_only_what_carries_a_seq_waits_for_the_disk(scene: Scene, executor: Session) -> None:
    """A SET clause of the function would not do: it ends with the call, and the commit comes after."""
    attempt = scene.dispatched(executor, scene.run())
    finer = attempt.identity | {"ordinal": 1, "progress": {}, "durable": False}
    whole = attempt.identity | {"ordinal": 2, "progress": {}, "durable": True}
    assert synchronous(scene, "executors_seen_v1", []) == "off"
    assert synchronous(scene, "attempts_progress_v1", [finer]) == "off"
    assert synchronous(scene, "attempts_progress_v1", [whole]) == "on"
    assert synchronous(scene, "attempts_settle_v1", [settle_item(attempt)]) == "on"
    assert synchronous(scene, "create_runs_v1", [run_item()]) == "on"
    with scene.connection.transaction():
        scene.query("SELECT backburner.output_append_v1('{}', '{}', '{}', '{}', '{}', '{}', '{}')")
        assert scene.one("SELECT current_setting('synchronous_commit') AS it")["it"] == "off"


# -- owners ------------------------------------------------------------------------------------------------------


@pytest.mark.invariant("I13")
def test_new_owner_can_declare_the_loss_of_a_detached_attempt_of_a_run_that_is_over(scene: Scene) -> None:
    session, run_id = scene.hello(), scene.run()
    attempt = scene.dispatched(session, run_id, on_run_end="DETACH", max_attempts=1)
    scene.append(run_id, plain_row("RUN_COMPLETED"))
    shard = scene.head(run_id)["shard"]
    leases = scene.query("SELECT * FROM backburner.claim_shards_v1('s2', '', '', 60, 16)")
    [epoch] = [lease["epoch"] for lease in leases if lease["shard"] == shard]
    assert scene.query("SELECT * FROM backburner.adopt_runs_v1('s2', %s, %s, NULL, 10)", shard, epoch) == []
    assert scene.lost(attempt, epoch=0)["outcome"] == "stale_epoch"
    assert scene.lost(attempt, epoch=epoch)["outcome"] == "ok"
    assert scene.effect(attempt.effect_id)["state"] == "FAILED"
    assert scene.head(run_id)["open_effects"] == 0


# -- writers -----------------------------------------------------------------------------------------------------


def append(run_id: str, key: str, iteration: int = 1) -> items.Append:
    return items.Append(run_id=run_id, epoch=0, iteration=iteration, actor=OWNER, rows=[request_row(key)])


async def test_a_run_that_somebody_holds_does_not_stall_the_others(scene: Scene, other: Scene) -> None:
    held, *free = [scene.run() for _ in range(21)]
    async with open_journal(scene.dsn, scheduler_id="s1") as journal:
        with other.connection.transaction():
            other.query("SELECT 1 FROM backburner.run_heads WHERE run_id = %s FOR UPDATE", held)
            stuck = asyncio.create_task(journal.append(append(held, "a")))
            for iteration in range(1, 6):
                async with asyncio.timeout(30):
                    done = await asyncio.gather(
                        *(journal.append(append(run_id, f"k{iteration}", iteration)) for run_id in free)
                    )
                assert {outcome.outcome for outcome in done} == {"ok"}
            assert not stuck.done()
        assert (await stuck).outcome == "ok"


async def test_a_held_run_does_not_stop_the_leases(scene: Scene, other: Scene) -> None:
    held = scene.run()
    async with open_journal(scene.dsn, scheduler_id="s1") as journal:
        assert len(await journal.leases.claim("s1", address="", version="", ttl_s=60.0)) == 16
        with other.connection.transaction():
            other.query("SELECT 1 FROM backburner.run_heads WHERE run_id = %s FOR UPDATE", held)
            request = items.CancelRequest(
                run_id=held, effect_id=None, reason="EFFECT_REASON_CANCELLED_BY_USER", message="", actor="api/test"
            )
            stuck = asyncio.create_task(journal.request_cancel(request))
            async with asyncio.timeout(30):
                assert len(await journal.leases.renew("s1", address="", version="", ttl_s=60.0)) == 16
            assert not stuck.done()
        assert (await stuck).outcome == "ok"


@pytest.mark.slow
@pytest.mark.crash
async def test_a_server_that_freezes_is_unavailable_in_bounded_time(
    postgres_server: DisposablePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ITEM_SECONDS", 1.0)
    await postgres_server.migrate()
    with scene_at(postgres_server.dsn) as scene:
        run_id = scene.run()
        async with open_journal(postgres_server.dsn, scheduler_id="s1") as journal:
            assert (await journal.append(append(run_id, "a"))).outcome == "ok"
            [backend] = scene.query("SELECT pid FROM pg_stat_activity WHERE application_name LIKE '% append'")
            os.kill(backend["pid"], signal.SIGSTOP)
            begun = time.monotonic()
            try:
                with pytest.raises(JournalUnavailable):
                    await journal.append(append(run_id, "b", 2))
            finally:
                os.kill(backend["pid"], signal.SIGCONT)
            assert time.monotonic() - begun < 60.0
            # Which of the two came first nobody can know; the other one is told.
            assert (await journal.append(append(run_id, "c", 2))).outcome in ("ok", "stale_iteration")
