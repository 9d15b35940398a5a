"""What is done to the world. Each fault undoes itself: when it returns, what it broke works again or starts to.

Not among them: reordered frames on one stream. TCP and HTTP/2 exclude them; that the machines stand them is shown by
simulation.
"""

import asyncio
import contextlib
import datetime as dt
import os
import random
import signal
from collections.abc import Awaitable, Callable, Mapping
from types import ModuleType
from typing import Final, LiteralString

import grpc
import psutil
import psycopg

import executor_service.failpoints
import scheduler_service.failpoints
from backburner.scheduler.v1 import operator_service_pb2 as operator_pb
from backburner.scheduler.v1 import operator_service_pb2_grpc as operator_grpc
from tests.crash.chaos.checker import children
from tests.crash.chaos.world import GRACE_SECONDS, LEASE_SECONDS, World
from tests.support.services import Service

Draw = random.Random
Fault = Callable[[World, Draw], Awaitable[None]]

_TERMINATE: Final = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
_LOCK_HEADS: Final = """
    SELECT 1 FROM backburner.run_heads WHERE open ORDER BY random() LIMIT 3 FOR UPDATE SKIP LOCKED
"""


async def kill_scheduler(world: World, draw: Draw) -> None:
    """kill -9, and a new one after a while."""
    await _kill(draw.choice(world.schedulers), draw.choice((0.0, draw.uniform(0, LEASE_SECONDS * 1.5))))


async def kill_both_schedulers(world: World, draw: Draw) -> None:
    """Nobody owns anything for a while."""
    away = draw.choice((0.0, LEASE_SECONDS * 1.5))
    await asyncio.gather(*(_kill(scheduler, away) for scheduler in world.schedulers))


async def stop_scheduler(world: World, draw: Draw) -> None:
    """SIGTERM: it drains, and a new one comes."""
    await _stop(draw.choice(world.schedulers))


async def freeze_scheduler(world: World, draw: Draw) -> None:
    """SIGSTOP past the lease, then SIGCONT: a zombie with an old epoch."""
    await _freeze(draw.choice(world.schedulers), LEASE_SECONDS * draw.uniform(0.5, 2.5))


async def jump_clock(world: World, draw: Draw) -> None:
    """Somebody sets the wall clock of a service, which stays wrong until the next jump."""
    service = draw.choice(world.services)
    clock = service.log.with_suffix(".clock")
    unseen = clock.with_suffix(".new")
    unseen.write_text(f"{draw.choice((0.0, draw.uniform(-5, 5), draw.uniform(-7200, 7200)))}")
    unseen.replace(clock)


async def kill_executor(world: World, draw: Draw) -> None:
    """kill -9 and a restart, within the grace or after it."""
    away = draw.choice((0.0, draw.uniform(0, 1), GRACE_SECONDS + 2))
    await _kill(draw.choice(world.executors), away)


async def stop_executor(world: World, draw: Draw) -> None:
    """SIGTERM: it drains, hands back, and a new one comes."""
    await _stop(draw.choice(world.executors))


async def freeze_executor(world: World, draw: Draw) -> None:
    """SIGSTOP within the grace or past it, then SIGCONT: its attempts may have been given to others."""
    await _freeze(draw.choice(world.executors), draw.choice((0.5, GRACE_SECONDS * 0.5, GRACE_SECONDS + 2.5)))


async def cut_control(world: World, draw: Draw) -> None:
    """Control streams are cut again and again, and lead to another scheduler."""
    for _ in range(draw.randint(1, 8)):
        number = draw.randrange(len(world.control))
        world.redirect(number, draw)
        world.control[number].cut()
        await asyncio.sleep(draw.uniform(0.02, 0.6))


async def half_open_control(world: World, draw: Draw) -> None:
    """A control stream on which nothing goes through any more, and nobody is told."""
    proxy = draw.choice(world.control)
    proxy.black_hole()
    await asyncio.sleep(draw.choice((0.7, 2.5, GRACE_SECONDS + 2)))
    proxy.heal()
    if draw.random() < 0.5:
        proxy.cut()


async def slow_control(world: World, draw: Draw) -> None:
    """Frames of an executor come late, both ways."""
    proxy = draw.choice(world.control)
    proxy.latency_s = draw.uniform(0.02, 0.4)
    await asyncio.sleep(draw.uniform(0.5, 3))
    proxy.latency_s = 0.0


async def cut_clients(world: World, draw: Draw) -> None:
    """Answers to clients are lost."""
    for _ in range(draw.randint(1, 20)):
        draw.choice(world.clients).cut()
        await asyncio.sleep(draw.uniform(0.01, 0.2))


async def half_open_clients(world: World, draw: Draw) -> None:
    """Nothing goes through to one scheduler."""
    proxy = draw.choice(world.clients)
    proxy.black_hole()
    await asyncio.sleep(draw.uniform(0.5, 4))
    proxy.heal()
    proxy.cut()


async def stop_postgres(world: World, draw: Draw) -> None:
    """Stopped in order or at once, and started again."""
    await asyncio.to_thread(world.postgres.stop, draw.choice(("fast", "immediate", "immediate")))
    await asyncio.sleep(draw.choice((0.0, draw.uniform(0, 3))))
    await asyncio.to_thread(world.postgres.start)


async def kill_postgres(world: World, draw: Draw) -> None:
    """kill -9 of all its processes."""
    await asyncio.to_thread(world.postgres.kill)
    await asyncio.sleep(draw.choice((0.0, draw.uniform(0, 1))))
    await asyncio.to_thread(world.postgres.start)


async def terminate_connections(world: World, draw: Draw) -> None:
    """A storm: every commit may be in doubt."""
    for _ in range(draw.randint(1, 20)):
        with contextlib.suppress(psycopg.Error):
            async with await psycopg.AsyncConnection.connect(world.dsn, autocommit=True) as connection:
                await connection.execute(_TERMINATE)
        await asyncio.sleep(draw.uniform(0.01, 0.2))


async def hold_locks(world: World, draw: Draw) -> None:
    """Somebody holds the heads of some runs for a while."""
    with contextlib.suppress(psycopg.Error):
        async with await psycopg.AsyncConnection.connect(world.dsn) as connection:
            await connection.execute(_LOCK_HEADS)
            await asyncio.sleep(draw.uniform(0.1, 2))


async def freeze_postgres(world: World, draw: Draw) -> None:
    """Nothing answers and no connection breaks."""
    server = psutil.Process(world.postgres.pid)
    frozen = [server, *server.children(recursive=True)]
    for process in frozen:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    await asyncio.sleep(draw.uniform(0.3, 4))
    for process in frozen:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


async def read_only_postgres(world: World, draw: Draw) -> None:
    """A phase as of a failover: everything can be read and nothing written."""
    await _configure(world, "ALTER SYSTEM SET default_transaction_read_only = on")
    await asyncio.sleep(draw.uniform(0.2, 3))
    await _configure(world, "ALTER SYSTEM RESET default_transaction_read_only")


async def _configure(world: World, statement: LiteralString) -> None:
    """Changes a setting of the server, however often the connection is terminated."""
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(world.dsn, autocommit=True) as connection:
                await connection.execute(statement)
                await connection.execute("SELECT pg_reload_conf()")
                return
        except psycopg.OperationalError:
            await asyncio.sleep(0.1)


async def kill_children(world: World, draw: Draw) -> None:
    """kill -9 of what attempts have started. Others on this machine may have attempts too: those are let alone."""
    for _ in range(draw.randint(1, 5)):
        ours = {path.name.partition("~")[0] for path in (world.folder / "marks").iterdir()}
        for pid, run_id in children():
            if run_id in ours and draw.random() < 0.5:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(draw.uniform(0.05, 0.4))


async def hold_dispatch(world: World, draw: Draw) -> None:
    """An operator stops all dispatch for a while."""
    until = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=draw.uniform(1, 3))
    hold = operator_pb.Hold(reason="chaos", actor="chaos")
    hold.until.FromDatetime(until)
    async with grpc.aio.insecure_channel(draw.choice(world.addresses)) as channel:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await operator_grpc.OperatorServiceStub(channel).SetHold(operator_pb.SetHoldRequest(hold=hold), timeout=3)
    await asyncio.sleep(1)


async def failpoint_scheduler(world: World, draw: Draw) -> None:
    """It dies, freezes, stalls or fails at the edge of a commit."""
    await _failpoint(draw.choice(world.schedulers), scheduler_service.failpoints, draw)


async def failpoint_executor(world: World, draw: Draw) -> None:
    """It dies, freezes, stalls or fails at the edge of a commit."""
    await _failpoint(draw.choice(world.executors), executor_service.failpoints, draw)


#: Faults by name.
FAULTS: Final[Mapping[str, Fault]] = {
    fault.__name__: fault
    for fault in (
        kill_scheduler, kill_both_schedulers, stop_scheduler, freeze_scheduler, kill_executor, stop_executor,
        freeze_executor, cut_control, half_open_control, slow_control, cut_clients, half_open_clients, stop_postgres,
        kill_postgres, freeze_postgres, read_only_postgres, terminate_connections, hold_locks, kill_children,
        hold_dispatch, jump_clock, failpoint_scheduler, failpoint_executor,
    )
}  # fmt: skip


#: Faults that would get in each other's way: one of each kind at a time.
_PART: Final[Mapping[str, str]] = {
    name: part for name in FAULTS for part in ("scheduler", "executor", "postgres") if part in name
}


def chosen(draw: Draw) -> list[str]:
    """Faults of one round: one to three, at most one to each part."""
    names: list[str] = []
    for name in draw.sample(list(FAULTS), draw.randint(1, 3)):
        if _PART.get(name, name) not in {_PART.get(other, other) for other in names}:
            names.append(name)
    return names


async def _kill(service: Service, away_s: float) -> None:
    service.kill()
    await asyncio.sleep(away_s)
    service.start()


async def _failpoint(service: Service, module: ModuleType, draw: Draw) -> None:
    point = draw.choice(list(module.POINTS))
    actions = ["kill", "kill", "stop", f"stall={draw.uniform(0.3, 4):.2f}"]
    if point.split(".")[1] in module.WRITES:
        actions.append("error")
    asked = f"{point}:{draw.choice(actions)}@{draw.choice((1, 1, 2, 5))}"
    unarmed = service.env
    service.env = {**unarmed, "BACKBURNER_FAILPOINT": asked}
    service.kill()
    service.start()
    service.env = unarmed
    deadline = asyncio.get_running_loop().time() + draw.uniform(2, 6)
    while not service.ended and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - looks at a process
        await asyncio.sleep(0.05)
    if not service.ended:
        service.send(signal.SIGCONT)
        await asyncio.sleep(draw.uniform(0, 1))
    service.kill()
    service.start()


async def _stop(service: Service) -> None:
    if service.process is not None:
        await asyncio.to_thread(service.stop, 60.0)
    service.start()


async def _freeze(service: Service, seconds: float) -> None:
    service.send(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        service.send(signal.SIGCONT)
