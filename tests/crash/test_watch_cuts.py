"""Watchers behind a network that breaks, and in front of schedulers that die: nothing twice, nothing missing."""

import asyncio
import random
import secrets
from collections.abc import Sequence
from pathlib import Path

import pytest

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.crash.watchers import EffectWatcher, OutputReader, RunWatcher, Watcher, cut, proxies
from tests.support.eventually import eventually
from tests.support.journals import JournalRow, check_journal, journal_of, of_type
from tests.support.postgres import DisposablePostgres
from tests.support.services import Stack, running_stack

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]  # four times a hundred cuts, about one a second

MODULES = "tests.crash.talkers"
NAMES = ["fails", "steady"]
#: Head and tail are each larger than what the talkers write, so that every byte is kept.
ENV = {"BACKBURNER_OUTPUT_BYTES": str(8 << 20)}


async def begun(stack: Stack, folder: Path) -> str:
    """A run whose talkers talk, the one that fails for the second time."""
    run_id = await stack.create("talkers", folder=str(folder), names=NAMES)
    await eventually((folder / "steady.1.1").exists, timeout=60, message=lambda: stack.scheduler.tail)
    return run_id


async def effect_ids(stack: Stack, run_id: str) -> dict[str, str]:
    """Ids of the talkers by name."""
    answer = await stack.client.ListEffects(pb.ListEffectsRequest(run_id=run_id, page_size=1000))
    return {e.key.removeprefix("talk/"): e.effect_id for e in answer.effects if e.key.startswith("talk/")}


def written(folder: Path, name: str, number: int, stream: int) -> bytes:
    """What a talker wrote when it was started for the first, the second time."""
    return (folder / f"{name}.{number}.{stream}").read_bytes()


def begun_attempts(rows: list[JournalRow], name: str) -> list[int]:
    """The attempts of a talker that have begun: one whose start a killed scheduler never sent has written nothing."""
    lost = of_type(rows, "EFFECT_ATTEMPT_LOST", key=f"talk/{name}")
    unsent = {row.attempt for row in lost if row.data.get("never_started")}
    dispatched = of_type(rows, "EFFECT_DISPATCHED", key=f"talk/{name}")
    return [row.attempt for row in dispatched if row.attempt not in unsent]


async def check(stack: Stack, run_id: str, folder: Path, watchers: Sequence[Watcher]) -> None:
    """Each watcher has what the journal has and what the talkers wrote."""
    rows = await journal_of(stack.dsn, run_id)
    check_journal(rows)
    ids = await effect_ids(stack, run_id)
    begun = {name: begun_attempts(rows, name) for name in NAMES}
    assert {name: len(attempts) for name, attempts in begun.items()} == {"fails": 2, "steady": 1}
    for watcher in watchers:
        if isinstance(watcher, RunWatcher):
            assert watcher.seqs == [row.seq for row in rows]
            wanted = ["fails", "steady"]
        elif isinstance(watcher, EffectWatcher):
            assert watcher.seqs == [row.seq for row in rows if row.key == watcher.key]
            wanted = ["fails"]
        else:
            wanted = []
        for name in wanted:
            for number, attempt in enumerate(begun[name], start=1):
                for stream in (1, 2):
                    seen = bytes(watcher.outputs[ids[name], attempt, stream])
                    assert seen == written(folder, name, number, stream), (
                        f"{name}.{attempt}.{stream}: {len(seen)} bytes"
                    )
        if isinstance(watcher, OutputReader):
            key, attempt, stream = watcher.stream
            assert bytes(watcher.outputs[watcher.stream]) == written(folder, key.removeprefix("talk/"), attempt, stream)


@pytest.mark.invariant("I9")
async def test_watchers_cut_a_hundred_times_miss_nothing_and_see_nothing_twice(
    postgres_server: DisposablePostgres, tmp_path: Path
) -> None:
    await postgres_server.migrate()
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    async with running_stack(postgres_server.dsn, tmp_path, MODULES, executor_env=ENV) as stack:
        run_id = await begun(stack, tmp_path)
        async with proxies(stack.address, 4) as networks:
            watchers: list[Watcher] = [
                RunWatcher(networks[0].address, run_id),
                EffectWatcher(networks[1].address, run_id, "talk/fails"),
                OutputReader(networks[2].address, run_id, "talk/steady", 1, 1),
                OutputReader(networks[3].address, run_id, "talk/steady", 1, 2),
            ]
            async with asyncio.TaskGroup() as group:
                for watcher in watchers:
                    group.create_task(watcher.follow())
                async with asyncio.TaskGroup() as cutters:
                    for number, (network, watcher) in enumerate(zip(networks, watchers, strict=True)):
                        cutters.create_task(cut(network, watcher, 100, random.Random(seed + number)))
                (tmp_path / "release").touch()
            assert all(watcher.broken >= 100 for watcher in watchers)
        await check(stack, run_id, tmp_path, watchers)


@pytest.mark.invariant("I9")
async def test_watchers_outlive_schedulers_that_leave_and_schedulers_that_are_killed(
    postgres_server: DisposablePostgres, tmp_path: Path
) -> None:
    """Told to move, cut by a kill, sent away when a stream has lived: each time they go on where they were."""
    await postgres_server.migrate()
    lifetime = {"BACKBURNER_WATCH_LIFETIME_SECONDS": "1.5"}
    async with running_stack(postgres_server.dsn, tmp_path, MODULES, executor_env=ENV, scheduler_env=lifetime) as stack:
        run_id = await begun(stack, tmp_path)
        watchers: list[Watcher] = [
            RunWatcher(stack.address, run_id),
            EffectWatcher(stack.address, run_id, "talk/fails"),
            OutputReader(stack.address, run_id, "talk/steady", 1, 1),
        ]
        async with asyncio.TaskGroup() as group:
            for watcher in watchers:
                group.create_task(watcher.follow())
            await grown(watchers)
            assert await asyncio.to_thread(stack.scheduler.stop) == 0
            stack.scheduler.start()
            await grown(watchers)
            stack.scheduler.kill()
            stack.scheduler.start()
            await grown(watchers)
            await eventually(lambda: all(w.ends["LIFETIME"] for w in watchers))
            (tmp_path / "release").touch()
        for watcher in watchers:
            assert watcher.ends["MOVED"] >= 1, watcher.ends
            assert watcher.broken >= 1
        await check(stack, run_id, tmp_path, watchers)


async def grown(watchers: Sequence[Watcher]) -> None:
    """Waits until each has seen more output than now."""
    before = [watcher.bytes_seen for watcher in watchers]
    await eventually(
        lambda: all(w.bytes_seen > seen + 20_000 for w, seen in zip(watchers, before, strict=True)), timeout=60
    )
