"""Without a database every call says so, and how long to wait; with it back, everything goes on."""

import grpc
import pytest

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.integration.api.scene import refused, scene
from tests.support.postgres import DisposablePostgres


@pytest.mark.crash
@pytest.mark.slow
async def test_calls_and_watches_are_unavailable_while_the_database_is_away(
    postgres_server: DisposablePostgres,
) -> None:
    await postgres_server.migrate()
    async with scene(postgres_server.dsn) as at:
        run_id = await at.create()
        watch = at.client.WatchRun(pb.WatchRunRequest(run_id=run_id))
        await watch.read()
        postgres_server.stop("immediate")
        for call in (
            watch.read(),
            at.client.GetRun(pb.GetRunRequest(run_id=run_id)),
            at.client.WatchRun(pb.WatchRunRequest(run_id=run_id)).read(),
        ):
            await refused(call, grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        postgres_server.start()
        resumed = at.client.WatchRun(pb.WatchRunRequest(run_id=run_id, after_seq=0))
        frame = await resumed.read()
        assert isinstance(frame, pb.WatchRunResponse)
        assert frame.event.seq == 1
        resumed.cancel()
