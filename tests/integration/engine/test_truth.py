"""The poll is the truth: what is committed is found, whether or not anybody tells of it."""

import asyncio
from collections.abc import Sequence

import grpc
import pytest
from google.protobuf import json_format

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.iteration.runs import Phase
from scheduler_service.journal import (
    AdoptedRun,
    Append,
    AppendOutcome,
    CreateRun,
    CreateRunOutcome,
    JournalUnavailable,
    ResolveRequest,
)
from scheduler_service.journal.items import OpenEffect
from tests.integration.engine.executor import SUCCEEDED
from tests.integration.engine.world import World, world
from tests.support.eventually import eventually


@pytest.mark.invariant("I6", "I7")
async def test_a_result_without_notice_is_found_by_the_poll(at: World) -> None:
    executor = at.executor(notices=False, pools={"functions": (1, 1)})
    await executor.connect()
    run_id = await at.create("steps", count=2)
    await executor.settle(await executor.start_of("step/0"), value="a")
    requested = await at.row(run_id, "EFFECT_REQUESTED", "step/1")
    assert requested.key == "step/1"


@pytest.mark.invariant("I13")
async def test_the_slot_of_an_attempt_whose_notice_was_lost_is_free_again(at: World) -> None:
    """Else every lost notice would make the executor smaller, until it gets no work at all."""
    executor = at.executor(notices=False, pools={"functions": (1, 1)})
    await executor.connect()
    run_id = await at.create("steps", count=2)
    await executor.settle(await executor.start_of("step/0"), value="a")
    await executor.beat()
    second = await executor.start_of("step/1")
    executor.notices = True
    await executor.settle(second, value="b")
    assert await at.value(run_id) == ["a", "b"]


@pytest.mark.invariant("I6")
async def test_a_client_that_goes_away_within_create_run_does_not_lose_the_run(at: World) -> None:
    """Its commit is through and its answer has nobody to go to: the run goes on all the same."""
    committed, go_on = asyncio.Event(), asyncio.Event()
    create_run = at.engine.journal.create_run

    async def slow(run: CreateRun) -> CreateRunOutcome:
        outcome = await create_run(run)
        at.runs.append(outcome.run_id)
        committed.set()
        await go_on.wait()
        return outcome

    at.engine.journal.create_run = slow  # type: ignore[method-assign]
    call = at.client.CreateRun(
        pb.CreateRunRequest(process="sleeper", input=json_format.ParseDict({"seconds": 0}, pb.CreateRunRequest().input))
    )
    await committed.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0)
    go_on.set()
    assert await at.value(at.runs[0]) == "woke"


@pytest.mark.invariant("I6")
async def test_a_run_created_through_a_standby_is_run_by_the_owner(at: World) -> None:
    async with world(at.dsn) as standby:
        assert not standby.engine.shards.epochs
        run_id = await standby.create("sleeper", seconds=0)
        assert await at.value(run_id) == "woke"


@pytest.mark.invariant("I6")
async def test_a_parked_run_hears_a_cancel_through_a_standby(at: World) -> None:
    executor = at.executor()
    executor.answer = lambda start: SUCCEEDED if start.effect_key == "first" else None
    await executor.connect()
    run_id = await at.create("raises")
    await at.row(run_id, "PROCESS_RUNTIME_ERROR")
    async with world(at.dsn) as standby:
        await standby.cancel(run_id)
    cancel = await eventually(lambda: executor.cancels)
    assert cancel[0].ref.effect_id


@pytest.mark.invariant("I4", "I6")
async def test_two_hundred_runs_at_once_all_end(at: World) -> None:
    executor = at.executor()
    executor.answer = lambda start: SUCCEEDED | {"value": start.run_id}
    await executor.connect()
    run_ids = await asyncio.gather(*(at.create("one") for _ in range(200)))
    assert len(set(run_ids)) == 200
    assert list(await asyncio.gather(*(at.value(run_id) for run_id in run_ids))) == run_ids
    assert len(executor.starts) == 200


async def test_a_stream_of_other_work_does_not_keep_the_poll_from_running(at: World) -> None:
    """A row that nothing hints at: queued by a scheduler that is gone, due now, while wakes come all the time."""
    run_id = await at.create("later", seconds=0.5)
    await at.row(run_id, "EFFECT_REQUESTED", "later")
    await at.restart()
    executor = at.executor()
    await executor.connect()
    at.engine.dispatcher.connected(executor_session := next(iter(at.engine.sessions)))
    stop = asyncio.Event()

    async def wakes() -> None:
        while not stop.is_set():
            at.engine.dispatcher._wake.set()
            executor_session.queued.add(("shell", True))
            await asyncio.sleep(0.005)

    task = asyncio.create_task(wakes())
    try:
        await executor.settle(await executor.start_of("later"))
        await at.result(run_id)
    finally:
        stop.set()
        await task


@pytest.mark.invariant("I2", "I6", "I14")
@pytest.mark.parametrize("committed", [True, False])
async def test_an_append_whose_fate_is_unknown_is_neither_lost_nor_repeated(at: World, committed: bool) -> None:
    executor = at.executor(reports=True)
    executor.answer = lambda start: SUCCEEDED | {"value": start.effect_key}
    await executor.connect()
    really, doubts = at.engine.journal.append, 0

    async def in_doubt(append: Append) -> AppendOutcome:
        nonlocal doubts
        if doubts < 4 and any(row["type"] == "EFFECT_REQUESTED" for row in append.rows):
            doubts += 1
            if committed:
                await really(append)
            raise JournalUnavailable("the answer was lost")
        return await really(append)

    at.engine.journal.append = in_doubt  # type: ignore[method-assign]
    run_id = await at.create("steps", count=6)
    # Each attempt that was committed and never sent is found by a report that is younger, and by the reconciler's turn.
    assert await at.value(run_id, timeout_s=50) == [f"step/{i}" for i in range(6)]
    assert doubts == 4
    assert len(await at.rows(run_id, "EFFECT_REQUESTED")) == 6


@pytest.mark.invariant("I6", "I14")
async def test_what_is_asked_for_after_a_doubtful_append_is_not_taken_for_it(at: World) -> None:
    """The doubtful append was committed and answered before the replay, which asks for more at once."""
    journal, doubts = at.engine.journal, 0
    really = journal.append

    async def in_doubt(append: Append) -> AppendOutcome:
        nonlocal doubts
        outcome = await really(append)
        for row in append.rows:
            if row["type"] == "EFFECT_REQUESTED":
                key = row["effect_key"]
                answer = ResolveRequest(
                    run_id=append.run_id, effect_id=row["effect_id"], actor="test", error=None,
                    state="EFFECT_STATE_SUCCEEDED", result={"value": {"value": key}},
                )  # fmt: skip
                await journal.resolve_external(answer)
                if doubts < 2:
                    doubts += 1
                    raise JournalUnavailable("the answer was lost")
        return outcome

    journal.append = in_doubt  # type: ignore[method-assign]
    run_id = await at.create("asks", count=4)
    assert await at.value(run_id) == [f"ask/{i}" for i in range(4)]
    assert doubts == 2


async def test_a_dead_client_is_not_an_error_of_the_server(at: World) -> None:
    call = at.client.WaitRun(pb.WaitRunRequest(run_id=await at.create("sleeper", seconds=0)))
    assert (await call).run.run_id
    with pytest.raises(grpc.aio.AioRpcError):
        await at.client.WaitRun(pb.WaitRunRequest(run_id="no-such-run"))


@pytest.mark.invariant("I6", "I14")
async def test_a_run_of_another_replica_whose_adoption_was_not_answered_is_run(at: World) -> None:
    """The adoption has stamped our epoch: by its epoch nobody finds it again."""
    leases = at.engine.journal.leases
    really, doubts = leases.adopt_created, 0

    async def in_doubt(scheduler_id: str, run_ids: Sequence[str]) -> list[AdoptedRun]:
        nonlocal doubts
        adopted = await really(scheduler_id, run_ids)
        if adopted and not doubts:
            doubts += 1
            raise JournalUnavailable("the answer was lost")
        return adopted

    leases.adopt_created = in_doubt  # type: ignore[method-assign]
    async with world(at.dsn) as standby:
        standby.engine.loop.heads.on_news = lambda run_id, stopped: None
        standby.engine.hints.created = lambda run_id: None  # type: ignore[method-assign]
        # Several: a shard may have come to the other one meanwhile.
        run_ids = [await standby.create("sleeper", seconds=0) for _ in range(4)]
    for run_id in run_ids:
        assert await at.value(run_id) == "woke"
    assert doubts == 1


@pytest.mark.invariant("I6", "I14")
async def test_runs_of_shards_that_were_claimed_anew_without_an_answer_are_run(at: World) -> None:
    """The leases ran out between a renewal and a claim whose answer was lost: the epochs are not those we know."""
    epochs = dict(at.engine.shards.epochs)
    assert epochs
    await at.query("UPDATE backburner.shards SET epoch = epoch + 1 RETURNING shard")
    run_id = await at.create("sleeper", seconds=0)
    assert await at.value(run_id) == "woke"
    assert all(at.engine.shards.epochs[shard] > epoch + 1 for shard, epoch in epochs.items())


@pytest.mark.invariant("I5", "I14")
async def test_the_late_answer_to_an_append_of_an_earlier_epoch_leaves_the_run_alone(at: World) -> None:
    """Its shard was lost and taken again meanwhile: what is known by its id is of the run as it was adopted."""
    run_id = await at.create("rings", seconds=4)
    await at.row(run_id, "EFFECT_REQUESTED")
    journal, loop = at.engine.journal, at.engine.loop
    before = loop.runs.get(run_id)
    assert before is not None
    await eventually(lambda: before.phase is Phase.IDLE)
    really, adopted, late = journal.append, asyncio.Event(), asyncio.Queue[AppendOutcome]()

    async def delayed(append: Append) -> AppendOutcome:
        journal.append = really  # type: ignore[method-assign]
        await adopted.wait()
        outcome = await really(append)
        late.put_nowait(outcome)
        return outcome

    journal.append = delayed  # type: ignore[method-assign]
    loop.begin_append(before, [], {})
    await eventually(lambda: journal.append == really)
    at.engine.shards.forget()
    await eventually(lambda: loop.runs.get(run_id) not in (None, before))
    after = loop.runs.get(run_id)
    assert after is not None
    await eventually(lambda: after.phase is Phase.IDLE and after.execution is not None)
    adopted.set()
    assert (await late.get()).outcome == "stale_epoch"
    assert await at.value(run_id) == "rang"


@pytest.mark.invariant("I6", "I14")
async def test_a_parked_run_that_is_adopted_anew_is_ended_while_its_end_is_still_tried_in_vain(
    at: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The try of before ends with the run of before: it must not stand for that of the run as it was adopted."""
    monkeypatch.setattr("scheduler_service.iteration.closing._RETRY_SECONDS", 3.0)
    executor = at.executor()
    executor.answer = lambda start: SUCCEEDED if start.effect_key == "first" else None
    await executor.connect()
    run_id = await at.create("raises")
    await at.row(run_id, "PROCESS_RUNTIME_ERROR")
    journal, tried = at.engine.journal, asyncio.Event()
    really = journal.open_effects

    async def away(run_id: str) -> list[OpenEffect]:
        journal.open_effects = really  # type: ignore[method-assign]
        tried.set()
        raise JournalUnavailable("Postgres is away")

    journal.open_effects = away  # type: ignore[method-assign]
    await at.cancel(run_id)
    await tried.wait()
    at.engine.shards.forget()
    await at.row(run_id, "RUN_CLOSING", timeout_s=30)
