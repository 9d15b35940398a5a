"""CreateRun with a request id: the same call again is the same run."""

import asyncio
import uuid

import grpc
import pytest

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.integration.api.scene import Scene


@pytest.mark.invariant("I14")
async def test_a_request_id_creates_one_run_however_often_it_is_sent(at: Scene) -> None:
    request = pb.CreateRunRequest(process="p", request_id=str(uuid.uuid4()))
    answers = await asyncio.gather(*(at.client.CreateRun(request) for _ in range(10)))
    assert len({answer.run.run_id for answer in answers}) == 1
    assert sum(answer.created for answer in answers) == 1


async def test_a_request_id_of_another_request_is_refused(at: Scene) -> None:
    request_id = str(uuid.uuid4())
    await at.client.CreateRun(pb.CreateRunRequest(process="p", request_id=request_id))
    other = pb.CreateRunRequest(process="p", request_id=request_id)
    other.input["depth"] = 2
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await at.client.CreateRun(other)
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
