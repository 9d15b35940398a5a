"""A primary that dies with -9 and a standby that takes its place: the services go on by themselves."""

from collections.abc import Iterator

import pytest

from tests.integration.engine.world import world
from tests.support.eventually import eventually
from tests.support.standby import Pair, primary_and_standby

pytestmark = [pytest.mark.crash, pytest.mark.slow]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with primary_and_standby() as made:
        yield made


@pytest.mark.invariant("I2", "I3", "I5")
async def test_synchronous_failover_loses_nothing_and_runs_nothing_again(pair: Pair) -> None:
    await pair.primary.migrate()
    pair.wait_for_commits_on_both()
    await eventually(pair.is_synchronous, timeout=60)
    async with world(pair.dsn, lease_seconds=60.0) as at:
        executor = at.executor(pools={"functions": (1, 1)})
        await executor.connect()
        run_id = await at.create("steps", count=3)
        await executor.settle(await executor.start_of("step/0"), value="a")
        running = await executor.start_of("step/1", timeout_s=30)
        before = await at.rows(run_id)
        pair.fail_over()
        await eventually(executor.stream.ended.is_set, timeout=60, message="its session is of the life before")
        assert (await at.rows(run_id))[: len(before)] == before, "what was acknowledged is there, as it was"
        again = at.executor(pools={"functions": (1, 1)})
        again.incarnation = executor.incarnation
        await again.connect([running])
        await again.settle(running, value="b")
        await again.settle(await again.start_of("step/2", timeout_s=60), value="c")
        assert await at.value(run_id, timeout_s=60) == ["a", "b", "c"]
        assert len(await at.rows(run_id, "EFFECT_DISPATCHED")) == 3, "nothing was run twice for it"
