"""The main job through both services, as processes of their own: journals, timing of settlements, children."""

from pathlib import Path

import grpc
import pytest

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.support.eventually import eventually
from tests.support.journals import SETTLING, alive, check_journal, journal_of, of_type
from tests.support.services import Stack, result_value

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.mark.invariant("I7")
async def test_foreground_effects_settle_while_a_background_effect_runs(stack: Stack, tmp_path: Path) -> None:
    """Each result is in the journal when its own effect ends; the background one holds nothing up."""
    run_id = await stack.create("mixed", folder=str(tmp_path))
    await eventually((tmp_path / "half-way").exists, timeout=60)
    rows = await eventually(lambda: _settled(stack, run_id, "half-way"), timeout=30)
    assert not of_type(rows, *SETTLING, key="slow")
    assert len(of_type(rows, *SETTLING)) == 41  # 20 sums, 20 marks, one half-way
    (tmp_path / "release").touch()
    run = await stack.result(run_id)
    assert run.state == journal_pb2.RUN_STATE_COMPLETED, run
    assert result_value(run) == {
        "total": 190, "pending": True, "stdout": "released\n", "stderr": "done\n", "sums": [2 * i for i in range(10)],
    }  # fmt: skip
    rows = await journal_of(stack.dsn, run_id)
    check_journal(rows)
    assert not of_type(rows, "EFFECT_ATTEMPT_FAILED", "EFFECT_ATTEMPT_LOST", "EFFECT_SUPERSEDED")


async def _settled(stack: Stack, run_id: str, key: str):  # type: ignore[no-untyped-def]
    rows = await journal_of(stack.dsn, run_id)
    return rows if of_type(rows, *SETTLING, key=key) else None


@pytest.mark.invariant("I10")
async def test_the_loser_of_a_race_is_dead_with_all_its_descendants(stack: Stack, tmp_path: Path) -> None:
    run_id = await stack.create("race", folder=str(tmp_path))
    run = await stack.result(run_id)
    assert result_value(run) == {"winner": "quick"}
    rows = await journal_of(stack.dsn, run_id)
    check_journal(rows)
    cancel = of_type(rows, "EFFECT_CANCEL_REQUESTED", key="stubborn")[0]
    assert cancel.data["reason"] == "EFFECT_REASON_RACE_LOST"
    assert cancel.data["winner_key"] == "quick"
    cancelled = of_type(rows, "EFFECT_CANCELLED", key="stubborn")[0]
    assert cancelled.data["reason"] == "EFFECT_REASON_RACE_LOST"
    assert cancelled.data["death"] == "DEATH_PROVEN"
    for name in ("loser", "grandchild"):
        assert not alive(int((tmp_path / name).read_text())), f"the {name} is alive"


async def test_failures_say_what_happened(stack: Stack) -> None:
    run = await stack.result(await stack.create("failing"))
    found = result_value(run)
    assert found["exit"] == ["EXITED_NONZERO", 3, None]
    assert found["signal"][0] == "KILLED_BY_SIGNAL"
    assert found["signal"][2] == 11
    assert found["missing"][0] == "SPAWN_FAILED"
    assert found["late"][0] == "TIMEOUT_START_TO_CLOSE"


async def test_a_run_ends_when_what_it_waits_for_has_settled(stack: Stack, tmp_path: Path) -> None:
    run_id = await stack.create("ends", folder=str(tmp_path))

    async def closing() -> bool:
        rows = await journal_of(stack.dsn, run_id)
        return bool(of_type(rows, "RUN_CLOSING") and of_type(rows, "EFFECT_CANCELLED", key="cancelled"))

    await eventually(closing, timeout=30)
    assert not of_type(await journal_of(stack.dsn, run_id), "RUN_COMPLETED")
    (tmp_path / "release").touch()
    run = await stack.result(run_id)
    assert run.state == journal_pb2.RUN_STATE_COMPLETED
    assert result_value(run) == "returned"
    (tmp_path / "later").touch()
    await eventually(lambda: _settled(stack, run_id, "alone"), timeout=30)
    rows = await journal_of(stack.dsn, run_id)
    check_journal(rows)
    cancelled = of_type(rows, "EFFECT_CANCELLED", key="cancelled")[0]
    assert cancelled.data["reason"] == "EFFECT_REASON_RUN_ENDED"


@pytest.mark.invariant("I6")
async def test_a_cancelled_run_cleans_up(stack: Stack, tmp_path: Path) -> None:
    run_id = await stack.create("cleans-up", folder=str(tmp_path))
    await eventually((tmp_path / "started").exists, timeout=30)
    answer = await stack.client.CancelRun(pb.CancelRunRequest(run_id=run_id, reason="enough"))
    assert answer.run.cancel_requested
    run = await stack.result(run_id, 30)
    assert run.state == journal_pb2.RUN_STATE_CANCELLED
    assert (tmp_path / "cleaned").read_text().count("\n") == 1
    rows = await journal_of(stack.dsn, run_id)
    check_journal(rows)
    assert of_type(rows, "EFFECT_CANCELLED", key="long")[0].data["death"] == "DEATH_PROVEN"


async def test_a_group_never_runs_more_than_its_limit(stack: Stack, tmp_path: Path) -> None:
    run_id = await stack.create("groups", folder=str(tmp_path), count=20, most=3)
    run = await stack.result(run_id)
    assert run.state == journal_pb2.RUN_STATE_COMPLETED, run
    assert 1 <= result_value(run) <= 3
    check_journal(await journal_of(stack.dsn, run_id))


@pytest.mark.invariant("I9")
async def test_a_watcher_sees_every_event_once_in_order(stack: Stack, tmp_path: Path) -> None:
    """Cut at every third event and resumed by seq, as a client behind a bad network would."""
    (tmp_path / "release").touch()
    run_id = await stack.create("mixed", folder=str(tmp_path))
    seen: list[int] = []
    ended = False
    while not ended:
        request = pb.WatchRunRequest(run_id=run_id, after_seq=seen[-1] if seen else 0)
        call = stack.client.WatchRun(request, timeout=60)
        count = 0
        async for frame in call:
            if frame.HasField("event"):
                seen.append(frame.event.seq)
                count += 1
            ended = frame.HasField("end")
            if ended or count == 3:
                break
        call.cancel()
    rows = await journal_of(stack.dsn, run_id)
    assert seen == [row.seq for row in rows]


async def test_the_same_key_is_the_same_run(stack: Stack, tmp_path: Path) -> None:
    first = await stack.create("mixed", key="once", folder=str(tmp_path), foreground=0)
    assert await stack.create("mixed", key="once", folder=str(tmp_path), foreground=0) == first
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stack.create("mixed", key="once", folder=str(tmp_path), foreground=1)
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
    (tmp_path / "release").touch()
    await stack.result(first)
