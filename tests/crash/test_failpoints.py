"""Each service is killed at each of its failpoints, while clients work: every edge of every commit, one by one.

The next life of the service is armed with the next point. In the end everything has ended as it should: see
`tests/crash/chaos/checker.py` for what that means.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import uuid
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import grpc
import psycopg
import pytest

import executor_service.failpoints
import scheduler_service.failpoints
from backburner.scheduler.v1 import operator_service_pb2 as operator_pb
from backburner.scheduler.v1 import operator_service_pb2_grpc as operator_grpc
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from backburner.scheduler.v1 import scheduler_service_pb2_grpc as pb_grpc
from tests.crash.chaos.arena import Arena, arena
from tests.crash.chaos.stirring import stir
from tests.support.eventually import eventually
from tests.support.services import Service

pytestmark = [pytest.mark.crash, pytest.mark.soak, pytest.mark.timeout(3600)]

#: `make failpoints` kills at every point; `pytest -m soak` where something is committed that a run lives by.
ALL = bool(os.environ.get("ALL_FAILPOINTS"))
OF_OPERATORS = (
    "hold", "drain", "expire", "order_settlement", "settle_by_hand", "audit", "prune_runs", "set_budget",
    "reset_breakers",
)  # fmt: skip
#: How long a point may take to be passed.
PASSED_SECONDS = 180.0
#: Writes that a replica does only beside another one.
BESIDE_ANOTHER = ("adopt_created", "report_missing", "take_missing")
#: Where runs are that are removed as soon as they have ended.
_REMOVED = "removed"
Provoke = Callable[[Arena, Service], Awaitable[None]]


async def _nothing(_place: Arena, _service: Service) -> None:
    """The work goes by there of itself."""


async def _terminate(_place: Arena, service: Service) -> None:
    """Only a service that is told to stop goes by there."""
    await eventually(lambda: "listening on" in service.tail, timeout=60, message=lambda: service.tail)
    service.send(signal.SIGTERM)


async def _take_no_results(_place: Arena, service: Service) -> None:
    """Only where results are not taken for a while does a service go by there."""
    rename = "ALTER FUNCTION backburner.{} RENAME TO {}"
    async with await psycopg.AsyncConnection.connect(service.env["DATABASE_URL"], autocommit=True) as connection:
        await connection.execute(rename.format("attempts_settle_v1", "away").encode())
        try:
            await eventually(lambda: service.ended, PASSED_SECONDS, "nothing is written to disk", interval=0.02)
        finally:
            await connection.execute(rename.format("away", "attempts_settle_v1").encode())


async def _remove_runs(_place: Arena, service: Service) -> None:
    """Only where somebody removes ended runs does a service go by there."""
    async with asyncio.timeout(PASSED_SECONDS), grpc.aio.insecure_channel(service.env["BACKBURNER_LISTEN"]) as channel:
        while not service.ended:
            with contextlib.suppress(grpc.aio.AioRpcError):  # it is not up yet, or dead
                await _one_run_less(channel)
            await asyncio.sleep(0.05)


async def _one_run_less(channel: grpc.aio.Channel) -> None:
    runs, operators = pb_grpc.SchedulerServiceStub(channel), operator_grpc.OperatorServiceStub(channel)
    created = await runs.CreateRun(
        pb.CreateRunRequest(namespace=_REMOVED, key=str(uuid.uuid4()), client=pb.ClientDriven()), timeout=60
    )
    await runs.CancelRun(pb.CancelRunRequest(namespace=_REMOVED, run_id=created.run.run_id), timeout=60)
    removal = operator_pb.PruneRunsRequest(namespace=_REMOVED, reason="failpoints", actor="failpoints")
    removal.older_than.FromMilliseconds(1)
    await operators.PruneRuns(removal, timeout=60)


async def _lose_starts(place: Arena, service: Service) -> None:
    """Starts that never arrive: whoever holds the session of their executor learns it, and may not own their runs."""
    async with asyncio.timeout(PASSED_SECONDS):
        while not service.ended:
            place.world.control[0].black_hole()
            await asyncio.sleep(0.3)
            place.world.control[0].cut()
            place.world.control[0].heal()
            await asyncio.sleep(1)


_PROVOKED: dict[str, Provoke] = {
    "scheduler.release_shards.send": _terminate,
    "scheduler.release_shards.committed": _terminate,
    "scheduler.prune_runs.send": _remove_runs,
    "scheduler.prune_runs.committed": _remove_runs,
    "scheduler.report_missing.send": _lose_starts,
    "scheduler.report_missing.committed": _lose_starts,
    "executor.spool.written": _take_no_results,
}


def passed_alone(point: str) -> bool:
    """False for what only happens beside another replica. Every point is killed at, here or there."""
    return point.split(".")[1] not in BESIDE_ANOTHER


def of_runs(point: str) -> bool:
    """True for the points at which something is committed that a run lives by."""
    _, write, moment = point.split(".")
    step = f"{write}.{moment}" in scheduler_service.failpoints.STEPS
    return step or (moment == "committed" and write not in OF_OPERATORS)


async def killed_at(place: Arena, service: Service, points: Iterable[str]) -> None:
    """One life a point, each ended by it; then one that is not killed. Each life has a log of its own: what one of them
    said is not taken for what the next one says.
    """
    unarmed, log = dict(service.env), service.log
    for point in points:
        service.kill()
        service.log = log.with_stem(f"{log.stem}-{point}")
        service.env = {**unarmed, "BACKBURNER_FAILPOINT": f"{point}:kill"}
        service.start()
        await _PROVOKED.get(point, _nothing)(place, service)
        await eventually(lambda: service.ended, PASSED_SECONDS, f"{point} was not passed", interval=0.02)
        assert service.process is not None
        assert service.process.returncode == -signal.SIGKILL, f"{point}: {service.tail}"
    service.env, service.log = unarmed, log.with_stem(f"{log.stem}-last")
    service.kill()
    service.start()


async def survived(place: Arena, service: Service, points: Iterable[str], *, kills_executor: bool) -> None:
    """Kills the service at each of the points while clients work, and asserts that nothing came of it."""
    place.work.start(4)
    enough = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(stir(place, enough, kills_executor=kills_executor))
        await killed_at(place, service, points)
        enough.set()
    found = await place.judged()
    assert not found, "\n".join(found)
    assert place.judge.checked.effects > 20


@pytest.mark.invariant("I2", "I3", "I6", "I13")
async def test_the_scheduler_may_die_at_each_edge_of_its_commits(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    async with arena(seed, tmp_path, schedulers=1, executors=1) as place:
        points = [point for point in scheduler_service.failpoints.POINTS if passed_alone(point)]
        points = [point for point in points if ALL or of_runs(point)]
        await survived(place, place.world.schedulers[0], points, kills_executor=True)


@pytest.mark.invariant("I2", "I3", "I5", "I13")
async def test_a_scheduler_may_die_at_each_edge_of_what_it_commits_beside_another(tmp_path: Path) -> None:
    """Runs and losses that one replica sees, and another one owns."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    async with arena(seed, tmp_path, schedulers=2, executors=1) as place:
        points = [point for point in scheduler_service.failpoints.POINTS if not passed_alone(point)]
        await survived(place, place.world.schedulers[0], points, kills_executor=True)


@pytest.mark.invariant("I2", "I3", "I10", "I13")
async def test_the_executor_may_die_at_each_edge_of_its_commits(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    async with arena(seed, tmp_path, schedulers=1, executors=1) as place:
        points = executor_service.failpoints.POINTS
        await survived(place, place.world.executors[0], points, kills_executor=False)
