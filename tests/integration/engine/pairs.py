"""Two replicas beside each other, and runs that one of them owns."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc

from backburner.scheduler.v1 import dispatch_service_pb2 as dispatch_pb
from scheduler_service.authoring.definitions import AnyProcess
from scheduler_service.journal import shard_of
from tests.integration.engine.executor import ScriptedExecutor
from tests.integration.engine.world import ALL, World, world
from tests.support.eventually import eventually

#: A poll that is not waited for: what happens all the same was told of.
NEVER = 3600.0
#: By whether the replicas hear each other: with hints no poll comes in time, and without them the polls find it all.
HINTED: Mapping[bool, Mapping[str, Any]] = {
    True: {"poll_seconds": NEVER},
    False: {"poll_seconds": 0.1, "advertise": "127.0.0.1:1"},
}


@asynccontextmanager
async def two(dsn: str, known: Mapping[str, AnyProcess] = ALL, **settings: Any) -> AsyncIterator[tuple[World, World]]:
    """Two replicas with eight shards each, that know of each other."""
    async with world(dsn, known, **settings) as first, world(dsn, known, **settings) as second:
        await eventually(
            lambda: [len(one.engine.shards.epochs) for one in (first, second)] == [8, 8],
            timeout=30,
            message="no shares",
        )
        for one in (first, second):
            await one.engine.shards.turn()  # each knows now what the other one owns
        yield first, second


async def run_of(owner: World, through: World, process: str, **given: Any) -> str:
    """A run of one replica that is created through another one."""
    while True:
        run_id = await through.create(process, **given)
        if shard_of(run_id) in owner.engine.shards.epochs:
            return run_id
        try:
            await through.cancel(run_id)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:  # else it has ended already
                raise


async def start_of(executor: ScriptedExecutor, run_id: str, key: str, attempt: int = 1) -> dispatch_pb.StartAttempt:
    """The start of this attempt, once it has come."""

    def look() -> list[dispatch_pb.StartAttempt]:
        wanted = (run_id, key, attempt)
        return [start for start in executor.starts if (start.run_id, start.effect_key, start.attempt) == wanted]

    return (await eventually(look, message=f"no start of {key}"))[0]


async def asked_for_all(at: World, executor_id: str) -> None:
    """Waits until the claim that a new session begins with has brought nothing."""

    def asked() -> bool:
        session = at.engine.sessions.get(executor_id)
        return (
            session is not None
            and session.ready
            and not session.queued
            and not any(pool.claiming for pool in session.pools.values())
        )

    await eventually(asked, message="it has not asked for work")
