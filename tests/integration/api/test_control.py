"""HaltRun, ResumeRun and SignalRun over the wire: what they answer, and what they refuse."""

import uuid
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.integration.api.scene import NOWHERE, Scene, refused

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def signal(run_id: str, value: Any = None, **fields: Any) -> pb.SignalRunRequest:
    request = pb.SignalRunRequest(**({"run_id": run_id, "name": "go", "request_id": str(uuid.uuid4())} | fields))
    json_format.ParseDict(value, request.value)
    return request


@pytest.mark.invariant("I14")
async def test_halting_again_answers_with_the_run_as_it_is(at: Scene) -> None:
    run_id = await at.create()
    for _ in range(3):
        run = (await at.client.HaltRun(pb.HaltRunRequest(run_id=run_id, reason="disk full"))).run
        assert (run.state, run.head_seq) == (journal_pb2.RUN_STATE_HALTED, 2)
        assert run.waiting_on[0].cause == pb.WaitingOn.CAUSE_HALTED
        assert "disk full" in run.waiting_on[0].message
    event = (await at.client.ReadJournal(pb.ReadJournalRequest(run_id=run_id, after_seq=1))).events[0]
    assert (event.run_halted.reason, event.actor, event.cause) == ("disk full", "client", 0)


async def test_a_halted_run_is_resumed_as_what_it_was(at: Scene) -> None:
    run_id = await at.create()
    await at.client.CancelRun(pb.CancelRunRequest(run_id=run_id))
    await at.client.HaltRun(pb.HaltRunRequest(run_id=run_id))
    run = (await at.client.ResumeRun(pb.ResumeRunRequest(run_id=run_id, reason="mended"))).run
    assert run.state == journal_pb2.RUN_STATE_CANCELLING
    event = (await at.client.ReadJournal(pb.ReadJournalRequest(run_id=run_id, after_seq=3))).events[0]
    assert (event.run_resumed.reason, event.run_resumed.state) == ("mended", journal_pb2.RUN_STATE_CANCELLING)
    info = await refused(at.client.ResumeRun(pb.ResumeRunRequest(run_id=run_id)), PRECONDITION, "NOT_PARKED")
    assert info.metadata["state"] == "CANCELLING"


async def test_an_ended_run_is_neither_halted_nor_resumed_nor_told(at: Scene) -> None:
    run_id = await at.create()
    await at.end(run_id)
    await refused(at.client.HaltRun(pb.HaltRunRequest(run_id=run_id)), PRECONDITION, "RUN_CLOSED")
    await refused(at.client.ResumeRun(pb.ResumeRunRequest(run_id=run_id)), PRECONDITION, "NOT_PARKED")
    await refused(at.client.SignalRun(signal(run_id)), PRECONDITION, "RUN_CLOSED")


async def test_runs_that_are_not_there_are_not_found(at: Scene) -> None:
    elsewhere = await at.create(namespace="one")
    for run_id in (NOWHERE, elsewhere):
        for call in (
            at.client.HaltRun(pb.HaltRunRequest(run_id=run_id)),
            at.client.ResumeRun(pb.ResumeRunRequest(run_id=run_id)),
            at.client.SignalRun(signal(run_id)),
        ):
            await refused(call, grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")


@pytest.mark.invariant("I14")
async def test_a_signal_sent_again_answers_with_its_place(at: Scene) -> None:
    run_id, other = await at.create(), await at.create()
    request = signal(run_id, {"a": [1, None]})
    assert [(await at.client.SignalRun(request)).seq for _ in range(3)] == [2, 2, 2]
    event = (await at.client.ReadJournal(pb.ReadJournalRequest(run_id=run_id, after_seq=1))).events[0]
    assert event.signal_received.name == "go"
    assert event.signal_received.value.value == request.value
    for changed in (pb.SignalRunRequest(name="stop"), pb.SignalRunRequest(run_id=other)):
        again = pb.SignalRunRequest()
        again.CopyFrom(request)
        again.MergeFrom(changed)
        await refused(at.client.SignalRun(again), grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_a_signal_is_refused_with_all_that_is_wrong_with_it(at: Scene) -> None:
    run_id = await at.create()
    bad = signal(run_id, float("nan"), name="white space", request_id="1")
    info = await refused(at.client.SignalRun(bad), INVALID, "INVALID_REQUEST")
    assert info.metadata["violations"] == "3"
    await refused(at.client.SignalRun(signal(run_id, request_id="")), INVALID, "INVALID_REQUEST")
    await refused(at.client.HaltRun(pb.HaltRunRequest(run_id=run_id, reason="x" * 1025)), INVALID, "INVALID_REQUEST")


async def test_the_largest_signal_and_one_byte_more(at: Scene) -> None:
    run_id = await at.create()
    most = 64 * 1024 - 2  # quotes
    await at.client.SignalRun(signal(run_id, "x" * most))
    await refused(at.client.SignalRun(signal(run_id, "x" * (most + 1))), INVALID, "PAYLOAD_TOO_LARGE")
