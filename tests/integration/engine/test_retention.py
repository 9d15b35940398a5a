"""Retention by order and by the clock: watchers are told, keys do not start over, what goes on is not touched."""

import datetime as dt
import json
import uuid
from typing import Any

import grpc
import psycopg
import pytest

from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.integration.engine import child_processes
from tests.integration.engine.world import World, world
from tests.support.client_program import ClientProgram, external
from tests.support.eventually import eventually


async def prune(at: World) -> op.PruneRunsResponse:
    request = op.PruneRunsRequest(actor="ada")
    request.older_than.FromTimedelta(dt.timedelta())
    return await at.operator.PruneRuns(request)


async def finished(at: World, key: str) -> str:
    program = await ClientProgram.start(at.client, key)
    await program.finish()
    return program.run_id


async def test_a_program_run_again_is_told_and_does_not_start_over(at: World) -> None:
    run_id = await finished(at, "rel/1")
    going_on = await ClientProgram.start(at.client, "rel/2")
    await going_on.request({"a": external()})
    assert (await prune(at)).runs == 1
    for call in (
        at.client.CreateRun(pb.CreateRunRequest(client=pb.ClientDriven(), key="rel/1")),
        at.client.GetRun(pb.GetRunRequest(run_id=run_id)),
        at.client.GetRun(pb.GetRunRequest(key="rel/1")),
        at.client.WatchRun(pb.WatchRunRequest(run_id=run_id)).read(),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="removed by retention") as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert (await at.client.GetRun(pb.GetRunRequest(key="rel/2"))).run.run_id == going_on.run_id


async def test_a_watch_whose_run_is_gone_before_it_has_read_its_end_is_told(at: World) -> None:
    await at.restart(watch_heartbeat_seconds=0.3)
    program = await ClientProgram.start(at.client, "rel/1")
    watch = at.client.WatchRun(pb.WatchRunRequest(run_id=program.run_id))
    first: Any = await watch.read()
    assert first.WhichOneof("frame") == "snapshot"
    ending = {
        "run_id": program.run_id,
        "client_epoch": 1,
        "state": "COMPLETED",
        "data": {},
        "wait": False,
        "actor": "c",
    }
    step = {
        "older_than_s": 0, "states": [], "dry_run": False, "runs_max": 9, "rows_max": 99, "actor": "c", "reason": "",
    }  # fmt: skip
    async with await psycopg.AsyncConnection.connect(at.dsn) as connection:  # in one commit
        await connection.execute("SELECT backburner.finish_runs_v1(%s::jsonb)", [json.dumps([ending])])
        await connection.execute("SELECT backburner.prune_runs_v1(%s::jsonb)", [json.dumps(step)])
    frame: Any = await watch.read()
    while frame.WhichOneof("frame") != "end":
        frame = await watch.read()
    assert frame.end.reason == pb.WatchEnd.REASON_PRUNED


async def test_who_follows_a_chain_that_is_removed_link_by_link_is_told_at_each(database_url: str) -> None:
    """It may go before they have read its end; the link that goes on, and who follows that one, are not touched."""
    async with world(database_url, child_processes.ALL, watch_heartbeat_seconds=0.3) as at:
        link = await at.create("counts", left=2, heard=[])
        for _ in range(3):
            calls = [pb.WatchRunRequest(run_id=link), pb.WatchRunRequest(run_id=link, after_seq=1)]
            watches = [at.client.WatchRun(call) for call in calls]
            for watch in watches:
                await watch.read()
            await at.client.SignalRun(pb.SignalRunRequest(run_id=link, name="tell", request_id=str(uuid.uuid4())))
            run = await at.result(link)
            while (await prune(at)).runs:
                pass
            for watch in watches:
                end = await ending_of(watch)
                assert end.reason in (pb.WatchEnd.REASON_PRUNED, pb.WatchEnd.REASON_RUN_CLOSED), end
            with pytest.raises(grpc.aio.AioRpcError, match="removed by retention"):
                await at.client.WatchRun(pb.WatchRunRequest(run_id=link, after_seq=1)).read()
            link = run.next_run_id
        at.runs.clear()


async def ending_of(watch: Any) -> Any:
    """The last frame of a watch."""
    while (frame := await watch.read()).WhichOneof("frame") != "end":
        pass
    return frame.end


async def test_the_clock_removes_what_ended_long_enough_ago(database_url: str) -> None:
    async with world(database_url, retention_days=0.2 / 86_400) as at:
        run_id = await finished(at, "rel/1")
        live = await at.create("asks", count=1)

        async def gone() -> bool:
            return not await at.query("SELECT 1 FROM backburner.journal WHERE run_id = %s", run_id)

        await eventually(gone, timeout=30)
        assert await at.rows(live, "RUN_CREATED")
        [(actor,)] = await at.query("SELECT DISTINCT actor FROM backburner.operator_audit")
        assert actor.startswith("scheduler/")
