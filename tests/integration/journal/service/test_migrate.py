"""Migrations: applied once, in order, by whoever comes first; never edited."""

import asyncio
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from scheduler_service.journal import JournalUnavailable, SchemaMissing, migrate, open_journal
from tests.support.postgres import with_database


@pytest.fixture
def empty_database(shared_server_url: str) -> Iterator[str]:
    with _database(shared_server_url, "UTF8") as url:
        yield url


@contextmanager
def _database(server_url: str, encoding: str) -> Iterator[str]:
    name = f"bb_empty_{uuid.uuid4().hex[:16]}"
    made = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {} LOCALE_PROVIDER libc LOCALE 'C'")
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(made.format(sql.Identifier(name), sql.Literal(encoding)))
        yield with_database(server_url, name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the migrations that a test may edit."""
    copied = Path(shutil.copytree(migrate.MIGRATIONS, tmp_path / "migrations"))
    monkeypatch.setattr(migrate, "MIGRATIONS", copied)
    return copied


async def test_empty_database_gets_every_file_once(empty_database: str) -> None:
    applied = await migrate.migrate(empty_database)
    assert applied == [item.name for item in migrate.migrations()]
    assert await migrate.migrate(empty_database) == []
    assert all(item.applied_at is not None for item in await migrate.status(empty_database))


async def test_status_of_an_empty_database(empty_database: str) -> None:
    assert [item.applied_at for item in await migrate.status(empty_database)] == [None] * len(migrate.migrations())


@pytest.mark.slow
async def test_several_at_a_time_apply_each_file_once(empty_database: str) -> None:
    applied = await asyncio.gather(*(migrate.migrate(empty_database, roles=True) for _ in range(4)))
    assert sorted(name for one in applied for name in one) == [item.name for item in migrate.migrations()]


async def test_changed_file_is_named(empty_database: str, files: Path) -> None:
    await migrate.migrate(empty_database)
    changed = files / migrate.migrations()[1].name
    changed.write_text(changed.read_text() + "\n-- a better comment\n")
    for attempt in (migrate.migrate, migrate.status):
        with pytest.raises(migrate.MigrationError, match=changed.name):
            await attempt(empty_database)


async def test_file_that_fails_is_rolled_back_and_named(empty_database: str, files: Path) -> None:
    broken = files / "9999_broken.sql"
    broken.write_text("CREATE TABLE half_done (x int); SELECT 1 / 0;")
    with pytest.raises(migrate.MigrationError, match=r"9999_broken\.sql.*division by zero"):
        await migrate.migrate(empty_database)
    async with await psycopg.AsyncConnection.connect(empty_database) as connection:
        found = await (await connection.execute("SELECT to_regclass('backburner.half_done')")).fetchone()
    assert found == (None,)
    broken.unlink()
    assert await migrate.migrate(empty_database) == []


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_database_that_cannot_hold_every_character_is_refused(shared_server_url: str, encoding: str) -> None:
    with _database(shared_server_url, encoding) as url:
        with pytest.raises(migrate.MigrationError, match=f"has the encoding {encoding} and Backburner needs UTF8"):
            await migrate.migrate(url)
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT to_regnamespace('backburner') IS NULL").fetchone() == (True,)


async def test_user_without_the_right_to_make_roles_is_told_what_to_do(shared_server_url: str) -> None:
    name = f"bb_plain_{uuid.uuid4().hex[:8]}"
    async with await psycopg.AsyncConnection.connect(shared_server_url, autocommit=True) as admin:
        await admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(sql.Identifier(name)))
        await admin.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(name)))
        known = await (
            await admin.execute("SELECT 1 FROM pg_roles WHERE rolname = ANY (%s)", [list(migrate.ROLES)])
        ).fetchall()
        dsn = psycopg.conninfo.make_conninfo(with_database(shared_server_url, name), user=name, password="x")
        try:
            if known:
                assert await migrate.migrate(dsn, roles=True)
            else:
                with pytest.raises(migrate.MigrationError, match=r"roles\.sql"):
                    await migrate.migrate(dsn, roles=True)
                assert await migrate.migrate(dsn)
        finally:
            await admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
            await admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


async def test_service_refuses_a_database_without_schema(empty_database: str) -> None:
    with pytest.raises(SchemaMissing, match="backburner migrate"):
        async with open_journal(empty_database, scheduler_id="s1"):
            pass


@pytest.mark.parametrize("served", [(0, 0), (2, 5)])
async def test_service_refuses_a_schema_that_does_not_serve_its_contract(
    database_url: str, served: tuple[int, int]
) -> None:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(
            sql.SQL(
                "CREATE OR REPLACE FUNCTION backburner.contract_v1() RETURNS TABLE (lowest int, highest int) "
                "LANGUAGE sql STABLE AS 'SELECT {}, {}'"
            ).format(*served)
        )
    with pytest.raises(SchemaMissing, match=f"{served[0]} to {served[1]}"):
        async with open_journal(database_url, scheduler_id="s1"):
            pass


async def test_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(JournalUnavailable):
        await migrate.migrate("postgresql://postgres@127.0.0.1:1/postgres")
