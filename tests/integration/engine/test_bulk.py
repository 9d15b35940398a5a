"""BulkAction: all runs that match, in steps, each once; counted first, journaled and audited."""

import grpc
import pytest

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.integration.engine.world import STATE, World

CANCEL, HALT, RESUME = (
    op.BulkActionRequest.ACTION_CANCEL, op.BulkActionRequest.ACTION_HALT, op.BulkActionRequest.ACTION_RESUME,
)  # fmt: skip


async def create(at: World, process: str, **labels: str) -> str:
    request = pb.CreateRunRequest(process=process, labels=labels)
    request.input.update({"count": 1} if process == "asks" else {})
    run_id = (await at.client.CreateRun(request)).run.run_id
    at.runs.append(run_id)
    return run_id


async def steps(at: World, request: op.BulkActionRequest) -> list[op.BulkActionResponse]:
    answers = []
    while True:
        answers.append(await at.operator.BulkAction(request))
        request.page_token = answers[-1].next_page_token
        if not request.page_token:
            return answers


async def test_runs_are_cancelled_in_steps_and_nothing_else_is(at: World) -> None:
    mine = [await create(at, "asks", team="a") for _ in range(5)]
    others = [await create(at, "asks", team="b"), await create(at, "raises", team="a")]
    request = op.BulkActionRequest(
        action=CANCEL,
        labels={"team": "a"},
        processes=["asks"],
        reason="wrong branch",
        actor="ada",
        limit=2,
        dry_run=True,
    )
    assert (await at.operator.BulkAction(request)).applied == 5
    assert all([await at.rows(run_id, "RUN_CANCEL_REQUESTED") == [] for run_id in mine])
    request.dry_run = False
    first = await at.operator.BulkAction(request)
    assert (first.applied, first.remaining) == (2, 3)
    # a client that forgot its token begins anew: what is done already does not match any more
    assert [(step.applied, step.remaining) for step in await steps(at, request)] == [(2, 1), (1, 0)]
    for run_id in mine:
        assert (await at.result(run_id)).state == STATE.RUN_STATE_CANCELLED
        [row] = await at.rows(run_id, "RUN_CANCEL_REQUESTED")
        assert (row.writer, row.data["reason"]) == ("operator/ada", "wrong branch")
    for run_id in others:
        assert await at.rows(run_id, "RUN_CANCEL_REQUESTED") == []
    entries = (await at.operator.ListAudit(op.ListAuditRequest(subject="default"))).entries
    assert [(e.action, e.actor, e.detail["runs"]) for e in entries] == [
        ("CANCEL_RUNS", "ada", 1), ("CANCEL_RUNS", "ada", 2), ("CANCEL_RUNS", "ada", 2),
    ]  # fmt: skip


async def test_runs_are_halted_and_resumed_and_one_that_parks_again_is_taken_once(at: World) -> None:
    await at.executor(answer=lambda start: {"outcome": "succeeded"}).connect()
    asking, broken = await create(at, "asks"), await create(at, "raises")
    assert (await at.result(broken)).state == STATE.RUN_STATE_PROCESS_ERROR
    halted = await at.operator.BulkAction(op.BulkActionRequest(action=HALT))
    assert halted.applied == 1, "the parked one stays what it is"
    assert (await at.result(asking)).state == STATE.RUN_STATE_HALTED
    answers = await steps(at, op.BulkActionRequest(action=RESUME, limit=1))
    assert sum(answer.applied for answer in answers) == 2
    assert (await at.result(broken)).state == STATE.RUN_STATE_PROCESS_ERROR
    only = op.BulkActionRequest(action=RESUME, states=[journal_pb2.RUN_STATE_HALTED])
    assert (await at.operator.BulkAction(only)).applied == 0


async def test_what_cannot_be_meant_is_refused(at: World) -> None:
    for request, field in (
        (op.BulkActionRequest(), "action"),
        (op.BulkActionRequest(action=HALT, states=[journal_pb2.RUN_STATE_HALTED]), "states"),
        (op.BulkActionRequest(action=HALT, page_token="x"), "page_token"),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match=field) as caught:
            await at.operator.BulkAction(request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
