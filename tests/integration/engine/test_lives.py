"""A server that was restarted: what was known of it is dropped and read again, and nothing is run twice for it."""

from typing import Any

import grpc
import pytest

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.integration.engine.world import world
from tests.support.eventually import eventually
from tests.support.postgres import DisposablePostgres

pytestmark = [pytest.mark.crash, pytest.mark.slow]


@pytest.mark.invariant("I2", "I5", "I14")
async def test_every_coroutine_lease_and_cursor_is_read_again_after_a_restart(
    postgres_server: DisposablePostgres,
) -> None:
    await postgres_server.migrate()
    async with world(postgres_server.dsn, lease_seconds=60.0) as at:
        executor = at.executor(pools={"functions": (1, 1)})
        await executor.connect()
        run_id = await at.create("steps", count=2)
        first = await executor.start_of("step/0")
        before, epochs = at.engine.loop.runs.get(run_id), dict(at.engine.shards.epochs)
        watch = at.client.WatchRun(pb.WatchRunRequest(run_id=run_id))
        await watch.read()
        postgres_server.stop("immediate")
        postgres_server.start()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await until_it_ends(watch)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        await eventually(lambda: at.engine.loop.runs.get(run_id) not in (None, before), timeout=60)
        assert all(at.engine.shards.epochs[shard] > epoch for shard, epoch in epochs.items())
        await eventually(executor.stream.ended.is_set, timeout=30, message="its session is of the life before")
        again = at.executor(pools={"functions": (1, 1)})
        again.incarnation = executor.incarnation
        await again.connect([first])
        await again.settle(first, value="a")
        await again.settle(await again.start_of("step/1", timeout_s=30), value="b")
        assert await at.value(run_id) == ["a", "b"]
        assert len(await at.rows(run_id, "EFFECT_DISPATCHED")) == 2, "nothing was run twice for it"


async def until_it_ends(watch: Any) -> None:
    """Reads frames until the watch raises."""
    while await watch.read() is not grpc.aio.EOF:
        pass
