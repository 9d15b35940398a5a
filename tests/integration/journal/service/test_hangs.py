"""Servers and networks that say nothing at all: every call ends, and what comes back is used again."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from executor_service import recording
from executor_service.recording import Lane
from scheduler_service.journal import Journal, JournalUnavailable, connecting, items, open_journal, readers, writer
from tests.support.eventually import eventually
from tests.support.journal_items import OWNER, request_row, scene_at
from tests.support.postgres import DisposablePostgres
from tests.support.tcp_proxy import TcpProxy, tcp_proxy

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.invariant("I11")]

READERS = "application_name LIKE 'backburner%read'"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "CALL_SECONDS", 1.0)
    monkeypatch.setattr(connecting, "CONNECT_SECONDS", 2)
    monkeypatch.setattr("scheduler_service.journal.link.CALL_SECONDS", 1.0)
    monkeypatch.setattr(readers, "READ_SECONDS", 1.0)
    monkeypatch.setattr(readers, "WAIT_SECONDS", 2.0)
    monkeypatch.setattr(writer, "ITEM_SECONDS", 3.0)
    monkeypatch.setattr("scheduler_service.journal.journal.ITEM_SECONDS", 3.0)
    monkeypatch.setattr(recording, "_CALL_SECONDS", 1.0)


async def renew(journal: Journal) -> list[int]:
    leases = await journal.leases.renew("s1", address="", version="", ttl_s=60.0, draining=False)
    return [lease.shard for lease in leases]


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def server(tcp_server: DisposablePostgres) -> DisposablePostgres:
    return tcp_server


async def test_a_read_on_a_frozen_backend_ends_and_the_next_one_has_another(server: DisposablePostgres) -> None:
    with scene_at(server.dsn) as scene:
        run_id = scene.run()
        async with open_journal(server.dsn, scheduler_id="s1") as journal:
            await journal.read_events(run_id, 0, 10)
            pids = [row["pid"] for row in scene.query(f"SELECT pid FROM pg_stat_activity WHERE {READERS}")]
            with frozen(*pids):
                async with asyncio.timeout(30):
                    with pytest.raises(JournalUnavailable):
                        await journal.read_events(run_id, 0, 10)
                    assert len(await journal.read_events(run_id, 0, 10)) == 1


async def test_while_the_whole_server_is_frozen_calls_end_and_afterwards_they_are_answered(
    server: DisposablePostgres,
) -> None:
    """Calls that share a connection do not wait for one another's deadlines either."""
    with scene_at(server.dsn) as scene:
        run_id = scene.run()
        async with open_journal(server.dsn, scheduler_id="s1") as journal:
            await journal.read_events(run_id, 0, 10)
            await renew(journal)
            everything = [row["pid"] for row in scene.query("SELECT pid FROM pg_stat_activity WHERE pid IS NOT NULL")]
            with frozen(server.pid, *everything):
                calls: list[Any] = [journal.read_events(run_id, 0, 10) for _ in range(10)]
                calls += [journal.strike(run_id, 0) for _ in range(10)]
                calls += [renew(journal)]
                async with asyncio.timeout(30):
                    ended = await asyncio.gather(*calls, return_exceptions=True)
                assert {type(error) for error in ended} == {JournalUnavailable}

            async def answers() -> bool:
                try:
                    return len(await journal.read_events(run_id, 0, 10)) == 1
                except JournalUnavailable:
                    return False

            await eventually(answers, timeout=30)
            row = items.Append(run_id=run_id, epoch=0, iteration=1, actor=OWNER, rows=[request_row("a")])
            assert (await journal.append(row)).outcome == "ok"


async def test_closing_does_not_wait_for_a_frozen_server(server: DisposablePostgres) -> None:
    with scene_at(server.dsn) as scene:
        run_id = scene.run()
        journal = Journal(server.dsn, "s1")
        await journal.open()
        row = items.Append(run_id=run_id, epoch=0, iteration=1, actor=OWNER, rows=[request_row("a")])
        await journal.append(row)
        everything = [row["pid"] for row in scene.query("SELECT pid FROM pg_stat_activity WHERE pid IS NOT NULL")]
        with frozen(server.pid, *everything):
            append = asyncio.create_task(journal.append(row))
            await asyncio.sleep(0)
            async with asyncio.timeout(30):
                await journal.close()
            with pytest.raises(JournalUnavailable):
                await append


@pytest.fixture
async def network(server: DisposablePostgres) -> AsyncIterator[tuple[str, TcpProxy]]:
    """The server behind a bad network: its connection string, through a proxy, and the proxy."""
    address = urlsplit(server.tcp_dsn).netloc.rpartition("@")[2]
    async with tcp_proxy(address) as proxy:
        yield server.tcp_dsn.replace(address, proxy.address), proxy


async def test_a_half_open_connection_is_left_for_another(
    server: DisposablePostgres, network: tuple[str, TcpProxy]
) -> None:
    dsn, proxy = network
    with scene_at(server.dsn) as scene:
        run_id = scene.run()
        async with open_journal(dsn, scheduler_id="s1") as journal:
            await journal.read_events(run_id, 0, 10)
            proxy.black_hole()
            row = items.Append(run_id=run_id, epoch=0, iteration=1, actor=OWNER, rows=[request_row("a")])
            async with asyncio.timeout(30):
                for call in (journal.append(row), journal.read_events(run_id, 0, 10)):
                    with pytest.raises(JournalUnavailable):
                        await call
            proxy.heal()
            proxy.cut()
            # Whether the append had gone through nobody could know: it is the same call, and it is told.
            assert (await journal.append(row)).outcome in ("ok", "already", "stale_iteration")
            assert len(await journal.read_events(run_id, 0, 10)) == 2


async def test_a_lane_of_an_executor_leaves_a_half_open_connection_too(network: tuple[str, TcpProxy]) -> None:
    dsn, proxy = network
    lane = Lane(dsn, "lane")
    await lane.check_contract()
    proxy.black_hole()
    call = asyncio.create_task(lane.check_contract())
    await eventually(lambda: not lane.up, timeout=30)
    proxy.heal()
    proxy.cut()
    async with asyncio.timeout(30):
        await call
    await lane.close()


async def test_too_many_connections_are_waited_for(server: DisposablePostgres) -> None:
    others: list[psycopg.AsyncConnection[Any]] = []
    async with open_journal(server.dsn, scheduler_id="s1") as journal:
        try:
            while True:
                others.append(await psycopg.AsyncConnection.connect(server.dsn))
        except psycopg.OperationalError:
            pass
        assert len(others) > 50
        waiting = asyncio.create_task(renew(journal))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        for connection in others:
            await connection.close()
        assert await waiting == []
