"""The kill-switch over the wire: set on any replica, obeyed by all, seen by whoever asks why nothing happens."""

import grpc
import pytest

from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.integration.engine.executor import SUCCEEDED
from tests.integration.engine.world import World
from tests.support.eventually import eventually


async def test_held_on_one_replica_is_held_on_the_other_and_goes_on_when_it_is_released(at: World) -> None:
    other = World(at.dsn)
    await other.start()
    try:
        await at.executor(answer=lambda start: SUCCEEDED).connect()
        asked = op.Hold(harness="function", reason="provider is down", actor="ada")
        hold = (await other.operator.SetHold(op.SetHoldRequest(hold=asked))).hold
        runs = [await at.create("one", background=background) for background in (False, True)]
        for run_id in runs:
            await eventually(lambda run_id=run_id: _held(at, run_id))  # type: ignore[misc]
            assert await at.rows(run_id, "EFFECT_DISPATCHED") == []
        assert [h.hold_id for h in (await at.operator.ListHolds(op.ListHoldsRequest())).holds] == [hold.hold_id]
        released = op.SetHoldRequest(hold=op.Hold(hold_id=hold.hold_id, actor="bob", reason="back"), release=True)
        await other.operator.SetHold(released)
        for run_id in runs:
            await at.value(run_id)
        entries = (await at.operator.ListAudit(op.ListAuditRequest(page_size=1))).entries
        assert [(e.action, e.subject, e.actor, e.reason) for e in entries] == [
            ("RELEASE_HOLD", hold.hold_id, "bob", "back")
        ]
    finally:
        await other.close()


async def _held(at: World, run_id: str) -> bool:
    run = (await at.client.GetRun(pb.GetRunRequest(run_id=run_id))).run
    [waiting] = run.waiting_on or [pb.WaitingOn()]
    return waiting.cause == pb.WaitingOn.CAUSE_HOLD and "held by ada: provider is down" in waiting.message


async def test_released_here_it_starts_without_a_poll(at: World) -> None:
    await at.restart(poll_seconds=30.0)
    await at.executor(answer=lambda start: SUCCEEDED).connect()
    hold = (await at.operator.SetHold(op.SetHoldRequest(hold=op.Hold()))).hold
    run_id = await at.create("one")
    await at.row(run_id, "EFFECT_REQUESTED")
    await at.operator.SetHold(op.SetHoldRequest(hold=op.Hold(hold_id=hold.hold_id), release=True))
    assert (await at.result(run_id)).state, "it ended before a poll was due"


async def test_the_audit_is_read_in_pages(at: World) -> None:
    for number in range(5):
        await at.operator.SetHold(op.SetHoldRequest(hold=op.Hold(harness=f"h{number}")))
    seen, token = [], ""
    while True:
        page = await at.operator.ListAudit(op.ListAuditRequest(page_size=2, page_token=token))
        seen += [entry.detail["harness"] for entry in page.entries]
        if not (token := page.next_page_token):
            break
    assert seen == ["h4", "h3", "h2", "h1", "h0"]
    subject = page.entries[0].subject
    only = await at.operator.ListAudit(op.ListAuditRequest(subject=subject))
    assert [entry.detail["harness"] for entry in only.entries] == ["h0"]


async def test_malformed_holds_are_refused_with_their_fields(at: World) -> None:
    hold = op.Hold(namespace="Not OK", label="novalue", hold_id="x")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await at.operator.SetHold(op.SetHoldRequest(hold=hold))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    for field in ("hold.namespace", "hold.label", "hold.hold_id"):
        assert field in str(caught.value.details())
