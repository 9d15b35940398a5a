"""A primary that dies with -9, and a standby in its place that lacks the end of what was acknowledged."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.crash.outages.failover import fail_over_once
from tests.support.eventually import eventually
from tests.support.journals import SETTLING, JournalRow, alive, check_journal, journal_of, of_type
from tests.support.services import Service, Stack, result_value, running_stack
from tests.support.standby import Pair, primary_and_standby

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(300)]

MODULES = "tests.crash.failover_processes"
SCHEDULER = {"BACKBURNER_HEARTBEAT_SECONDS": "0.5"}
ONE = {"BACKBURNER_SLOTS_SHELL": "1", "BACKBURNER_LABELS": "host=one"}
SIGNALS = 20


@pytest.fixture
def pair() -> Iterator[Pair]:
    with primary_and_standby() as made:
        yield made


@asynccontextmanager
async def stack_over(pair: Pair, folder: Path) -> AsyncIterator[Stack]:
    """Services over the pair; the executor has one slot for shell effects."""
    await pair.primary.migrate()
    async with running_stack(pair.dsn, folder, MODULES, scheduler_env=SCHEDULER, executor_env=ONE) as stack:
        yield stack


async def cut_off(pair: Pair) -> None:
    """From now on what is committed will be lost."""
    await eventually(lambda: pair.bytes_behind() == 0, timeout=60, message="the standby has not come so far")
    pair.cut_off()
    await eventually(pair.is_cut_off, timeout=60)


async def began(folder: Path, name: str, times: int = 1) -> list[int]:
    """Process ids of the children of an effect, once so many have begun."""
    path = folder / f"began-{name}"

    def said() -> list[int]:
        found = [int(line) for line in path.read_text().split()] if path.exists() else []
        return found if len(found) >= times else []

    return await eventually(said, timeout=90, message=f"{name} has not begun {times} times")


async def settled(stack: Stack, run_id: str, key: str) -> JournalRow:
    """The row that settled an effect."""

    async def look() -> list[JournalRow]:
        return of_type(await journal_of(stack.dsn, run_id), *SETTLING, key=key)

    return (await eventually(look, timeout=60, message=f"{key} is not settled"))[0]


async def signal(stack: Stack, run_id: str, name: str, value: str = "") -> None:
    """Sends a signal, until it is acknowledged."""
    request = pb.SignalRunRequest(run_id=run_id, name=name, request_id=str(uuid.uuid4()))
    request.value.string_value = value
    await stack.client.SignalRun(request, timeout=60, wait_for_ready=True)


async def refusal_of(stack: Stack, request: pb.WatchRunRequest) -> grpc.StatusCode:
    """How a watch is refused, once the services are back."""
    while True:
        try:
            async for _ in stack.client.WatchRun(request, timeout=60, wait_for_ready=True):
                raise AssertionError("the watch goes on")
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                return error.code()
            await asyncio.sleep(0.05)


def no_bugs(*services: Service) -> None:
    """Nothing that happened was a bug to a service."""
    for service in services:
        assert "Traceback" not in service.log.read_text(), service.tail
        assert not service.ended


@pytest.mark.invariant("I2", "I3", "I4", "I10")
async def test_what_an_asynchronous_standby_lost_is_recorded_again_or_runs_again(pair: Pair, tmp_path: Path) -> None:
    """What is lost: of three in line, the first is settled, the second dispatched and settled, the third dispatched."""
    async with stack_over(pair, tmp_path) as stack:
        run_id = await stack.create("in_line", folder=str(tmp_path), names=["first", "second", "third"])
        await began(tmp_path, "first")
        await eventually(lambda: queued(stack, run_id, 3), timeout=60)
        await cut_off(pair)
        other = stack.new_executor("executor-2", BACKBURNER_LABELS="host=two")
        try:
            other.start()
            lost_run = await stack.create("signalled", key="lost")
            for name in ("first", "second"):
                (tmp_path / f"release-{name}").touch()
                await settled(stack, run_id, name)
            [third] = await began(tmp_path, "third")
            before = await journal_of(stack.dsn, run_id)
            assert pair.bytes_behind() > 0
            pair.fail_over()
            assert len(await journal_of(stack.dsn, run_id)) < len(before), "nothing was lost"
            await began(tmp_path, "third", 2)
            assert not alive(third)
            (tmp_path / "release-third").touch()
            run = await stack.result(run_id, 120)
            assert run.state == journal_pb2.RUN_STATE_COMPLETED, run
            assert result_value(run) == {name: name for name in ("first", "second", "third")}
            rows = await journal_of(stack.dsn, run_id)
            check_journal(rows)
            assert len(await began(tmp_path, "first")) == 1, "its result was not recorded again"
            assert len(await began(tmp_path, "second")) == 2
            assert not (tmp_path / "overlaps").exists(), (tmp_path / "overlaps").read_text()
            assert await code_of(stack, lost_run) is grpc.StatusCode.NOT_FOUND
            again = await stack.create("signalled", key="lost")
            await signal(stack, again, "go", "went")
            assert result_value(await stack.result(again)) == "went"
            known_again = await stack.create("on_two")
            assert result_value(await stack.result(known_again)) == 42, (
                "executor 2 said its first hello in what is lost"
            )
            no_bugs(stack.scheduler, stack.executor, other)
        finally:
            other.kill()


@pytest.mark.invariant("I2", "I3", "I13")
async def test_an_idle_executor_records_again_before_it_says_hello(pair: Pair, tmp_path: Path) -> None:
    """It has nothing to write, and so no reason to find that the database is another one."""
    async with stack_over(pair, tmp_path) as stack:
        run_id = await stack.create("in_line", folder=str(tmp_path), names=["only"])
        await began(tmp_path, "only")
        await cut_off(pair)
        (tmp_path / "release-only").touch()
        await settled(stack, run_id, "only")
        pair.fail_over()
        assert of_type(await journal_of(stack.dsn, run_id), *SETTLING) == [], "nothing was lost"
        assert result_value(await stack.result(run_id)) == {"only": "only"}
        check_journal(await journal_of(stack.dsn, run_id))
        assert len(await began(tmp_path, "only")) == 1
        no_bugs(stack.scheduler, stack.executor)


@pytest.mark.invariant("I2", "I3", "I5")
async def test_a_synchronous_standby_has_all_and_the_run_goes_on(tmp_path: Path) -> None:
    """`make failover` prints how long that takes."""
    assert (await fail_over_once(tmp_path)).violations == ()


async def queued(stack: Stack, run_id: str, count: int) -> bool:
    """True once so many effects were asked for."""
    return len(of_type(await journal_of(stack.dsn, run_id), "EFFECT_REQUESTED")) == count


async def code_of(stack: Stack, run_id: str) -> grpc.StatusCode:
    """How a wait for a run that was lost ends."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stack.client.WaitRun(pb.WaitRunRequest(run_id=run_id), timeout=60)
    return refused.value.code()


@pytest.mark.invariant("I9")
async def test_a_watcher_ahead_of_what_is_left_is_told_so(pair: Pair, tmp_path: Path) -> None:
    async with stack_over(pair, tmp_path) as stack:
        run_id = await stack.create("signalled")
        await cut_off(pair)
        for _ in range(SIGNALS):
            await signal(stack, run_id, "other")
        seen = 0
        async for frame in stack.client.WatchRun(pb.WatchRunRequest(run_id=run_id, after_seq=0), timeout=60):
            seen = max(seen, frame.event.seq)
            if seen > SIGNALS:
                break
        pair.fail_over()
        assert len(await journal_of(stack.dsn, run_id)) < seen
        code = await refusal_of(stack, pb.WatchRunRequest(run_id=run_id, after_seq=seen))
        assert code is grpc.StatusCode.OUT_OF_RANGE
        await signal(stack, run_id, "go", "went")
        assert result_value(await stack.result(run_id)) == "went"
        check_journal(await journal_of(stack.dsn, run_id))
        no_bugs(stack.scheduler, stack.executor)
