"""A replica that is asked to go hands its runs over: long before its leases would have run out."""

import asyncio
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from backburner.scheduler.v1 import scheduler_service_pb2_grpc as pb_grpc
from tests.support.eventually import eventually
from tests.support.journals import check_journal, journal_of
from tests.support.postgres import DisposablePostgres
from tests.support.services import Stack, result_value

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

MODULES = "tests.crash.executor_processes"
#: Longer than the test may take: who waits for a lease to run out comes too late.
LONG_LEASE = {"BACKBURNER_LEASE_SECONDS": "150", "BACKBURNER_GRACE_SECONDS": "600"}
RUNS = 20
ASKED = 5


@pytest.mark.invariant("I2", "I3", "I5", "I9")
async def test_a_replica_that_stops_hands_its_runs_executors_and_watches_over(
    postgres_server: DisposablePostgres, tmp_path: Path
) -> None:
    await postgres_server.migrate()
    (tmp_path / "other").mkdir()
    stack = Stack(postgres_server.dsn, tmp_path, MODULES, scheduler_env=LONG_LEASE)
    other = Stack(postgres_server.dsn, tmp_path / "other", MODULES, scheduler_env=LONG_LEASE)
    both = f"ipv4:{stack.address},{other.address}"
    stack.executor = stack.new_executor("executor-1", BACKBURNER_SCHEDULER=both, BACKBURNER_SLOTS_SHELL="64")
    channel = grpc.aio.insecure_channel(both)
    client = pb_grpc.SchedulerServiceStub(channel)
    try:
        await stack.start()
        other.scheduler.start()
        await asyncio.wait_for(other.channel.channel_ready(), 60)
        run_ids = [await stack.create("holds", folder=str(tmp_path)) for _ in range(RUNS)]
        await eventually(lambda: _began(tmp_path) == RUNS, timeout=60, message=lambda: stack.executor.tail)
        frames = aiter(stack.client.WatchRun(pb.WatchRunRequest(run_id=run_ids[0])))
        assert (await anext(frames)).snapshot.run.run_id == run_ids[0]
        gone = asyncio.Event()
        asking = asyncio.create_task(_ask(client, tmp_path, gone))
        assert await asyncio.to_thread(stack.scheduler.stop) == 0, stack.scheduler.tail
        gone.set()
        assert [frame async for frame in frames][-1].end.reason == pb.WatchEnd.REASON_MOVED
        asked = await asking
        (tmp_path / "release").touch()
        runs = [await other.result(run_id, 60) for run_id in (*run_ids, *asked)]
    finally:
        await channel.close()
        await other.close()
        await stack.close()
    assert all(run.state == journal_pb2.RUN_STATE_COMPLETED for run in runs)
    assert {result_value(run) for run in runs} == {"released\n"}
    assert _began(tmp_path) == RUNS + len(asked), "something was started twice"
    for run_id in run_ids:
        check_journal(await journal_of(stack.dsn, run_id))


def _began(folder: Path) -> int:
    began = folder / "began"
    return len(began.read_text().split()) if began.exists() else 0


async def _ask(client: pb_grpc.SchedulerServiceStub, folder: Path, gone: asyncio.Event) -> set[str]:
    """Creates the same few runs again and again, until each was answered by who stays.

    What fails is unavailable; gRPC's server ends calls that come as it closes with CANCELLED, before they are heard.
    """
    run_ids: set[str] = set()
    after = 0
    while after < ASKED:
        request = pb.CreateRunRequest(process="holds", key=f"asked/{after}")
        json_format.ParseDict({"folder": str(folder)}, request.input)
        stays = gone.is_set()
        try:
            answer = await client.CreateRun(request, timeout=60)
        except grpc.aio.AioRpcError as error:
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED), error  # noqa: PT017
        else:
            run_ids.add(answer.run.run_id)
            after += stays
    return run_ids
