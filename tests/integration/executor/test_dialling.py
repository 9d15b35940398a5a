"""Several schedulers: the executor finds one that serves, whichever of them do not, and finds another when it goes."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from executor_service import dialling
from executor_service.server import ExecutorServer
from tests.integration.executor.conftest import StartExecutor
from tests.support.eventually import eventually
from tests.support.fake_scheduler import FakeScheduler, fake_scheduler
from tests.support.services import free_port

SLEEP: dict[str, Any] = {"shell": {"argv": ["sleep", "60"]}}


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[FakeScheduler]:
    async with fake_scheduler(database_url) as started:
        yield started


@pytest.fixture
def black_hole() -> Iterator[str]:
    """Takes connections, and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture(autouse=True)
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses without trouble are tried in the order in which they are given; patience is for slow machines."""
    monkeypatch.setattr(random, "shuffle", lambda addresses: None)


async def test_addresses_that_refuse_or_say_nothing_keep_nobody_from_the_one_that_answers(
    scheduler: FakeScheduler, start_executor: StartExecutor, black_hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all the time in the world for each try: nothing waits for one to be over."""
    monkeypatch.setattr(dialling, "CONNECT_SECONDS", 3600.0)
    monkeypatch.setattr(dialling, "_OPTIONS", (("grpc.min_reconnect_backoff_ms", 3_600_000),))
    await start_executor(scheduler=f"{black_hole},127.0.0.1:{free_port()},{scheduler.address}")
    await scheduler.session()


@pytest.mark.invariant("I3")
async def test_when_the_scheduler_dies_what_runs_is_reported_to_the_other_one(
    scheduler: FakeScheduler, other: FakeScheduler, start_executor: StartExecutor, black_hole: str
) -> None:
    await start_executor(scheduler=f"{scheduler.address},{black_hole},{other.address}")
    dispatch = await scheduler.one(**SLEEP)
    await eventually(lambda: scheduler.sessions[-1].accepted)
    await scheduler.stop()
    session = await other.session()
    assert [held.ref for held in session.hello.attempts] == [dispatch.ref]
    await other.stop()
    await scheduler.start()
    assert [held.ref for held in (await scheduler.session(after=1)).hello.attempts] == [dispatch.ref]


@pytest.mark.parametrize("refusal", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
async def test_a_scheduler_that_is_up_and_cannot_serve_is_left(
    scheduler: FakeScheduler, other: FakeScheduler, start_executor: StartExecutor, refusal: grpc.StatusCode
) -> None:
    scheduler.refuse_with = refusal
    await start_executor(scheduler=f"{scheduler.address},{other.address}")
    await other.session()


async def test_a_scheduler_that_is_told_of_by_name_is_found_where_the_name_points_now(
    scheduler: FakeScheduler, other: FakeScheduler, start_executor: StartExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As replicas behind a headless service are, which come back under new addresses."""
    pointing = scheduler

    async def resolve(_host: str, _port: int, **_kind: Any) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    monkeypatch.setattr("executor_service.targets._dial", lambda _host, _port: f"ipv4:{pointing.address}")
    await start_executor(scheduler="schedulers.prod.svc:7233")
    await scheduler.session()
    pointing = other
    await scheduler.stop()
    await other.session()


async def test_an_executor_waits_for_a_scheduler_that_comes_later(
    scheduler: FakeScheduler, start_executor: StartExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    await scheduler.stop()
    executor: ExecutorServer = await start_executor(scheduler=scheduler.address)
    await eventually(lambda: "no scheduler answers" in caplog.text, timeout=30)
    await scheduler.start()
    await scheduler.session()
    assert executor.executor_id == "executor-under-test"
