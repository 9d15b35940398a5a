"""What a diagnosis finds of a whole Postgres server: WAL that a slot holds, WAL that is not archived."""

import psycopg
import pytest

from backburner.scheduler.v1 import operator_service_pb2 as pb
from scheduler_service.api.diagnosis import diagnose
from scheduler_service.api.findings import WARNING
from scheduler_service.journal.diagnosis import open_reads
from tests.support.eventually import eventually
from tests.support.postgres import DisposablePostgres

#: A segment has 16 MiB; an idle slot may hold 64.
SEGMENTS = 6


@pytest.fixture
async def server(postgres_server: DisposablePostgres) -> DisposablePostgres:
    await postgres_server.migrate()
    return postgres_server


def query(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def write_wal(dsn: str) -> None:
    for _ in range(SEGMENTS):
        query(dsn, "SELECT pg_logical_emit_message(false, '', 'x')", "SELECT pg_switch_wal()")


async def found(dsn: str, code: str) -> pb.Finding | None:
    async with open_reads(dsn) as reads:
        return next((finding for finding in await diagnose(reads) if finding.code == code), None)


async def test_a_slot_that_nobody_reads_is_found_once_it_holds_much_and_dropped_as_it_says(
    server: DisposablePostgres,
) -> None:
    query(server.dsn, "SELECT pg_create_physical_replication_slot('standby', true)")
    assert await found(server.dsn, "WAL_HELD") is None
    write_wal(server.dsn)
    finding = await found(server.dsn, "WAL_HELD")
    assert finding is not None
    assert (finding.severity, list(finding.subjects)) == (WARNING, ["standby"])
    assert "standby, which nobody reads, holds" in finding.message
    query(server.dsn, finding.remedy.partition("drop it: ")[2].replace("NAME", "standby"))
    assert await found(server.dsn, "WAL_HELD") is None


async def test_wal_that_is_not_archived_is_found_until_it_is(server: DisposablePostgres) -> None:
    query(server.dsn, "ALTER SYSTEM SET archive_mode = on", "ALTER SYSTEM SET archive_command = 'false'")
    server.stop()
    server.start()
    assert await found(server.dsn, "ARCHIVER_FAILING") is None
    write_wal(server.dsn)
    finding = await eventually(lambda: found(server.dsn, "ARCHIVER_FAILING"), timeout=30)
    assert finding is not None
    assert finding.severity == WARNING
    assert finding.subjects[0] in finding.message
    query(server.dsn, "ALTER SYSTEM SET archive_command = 'true'", "SELECT pg_reload_conf()")
    write_wal(server.dsn)

    async def archived() -> bool:
        return await found(server.dsn, "ARCHIVER_FAILING") is None

    await eventually(archived, timeout=60)
