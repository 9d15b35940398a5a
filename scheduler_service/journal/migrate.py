"""Brings a database's schema up to this release: numbered files, each in one transaction, under an advisory lock.

Forward only. A file that was applied is never edited: its checksum is kept, and a difference is an error. Services do
not migrate by themselves; they check the contract range that the schema serves and refuse to start outside it.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import psycopg
import psycopg.sql

from scheduler_service.journal.errors import JournalError, JournalUnavailable
from scheduler_service.journal.faults import is_unavailable

MIGRATIONS: Final = Path(__file__).with_name("migrations")
ROLES: Final = ("backburner_scheduler", "backburner_executor")
_LOCK: Final = 0x6261636B62  # any number that nobody else uses as an advisory lock in this database
_LOCK_TIMEOUT: Final = "10s"
#: Where the grants begin in a file that has some: they are its last part.
_GRANTS: Final = "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;"

Connection = psycopg.AsyncConnection[Any]


class MigrationError(JournalError):
    """The schema cannot be brought up to this release; the message names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file, and when it was applied to the database (None: it was not)."""

    version: int
    name: str
    checksum: str
    sql: str
    applied_at: datetime | None = None


def migrations() -> list[Migration]:
    """The files of this release, in order."""
    return [_read(path) for path in sorted(MIGRATIONS.glob("[0-9]*.sql"))]


async def migrate(dsn: str, *, roles: bool = False) -> list[str]:
    """Applies what is missing and answers with the names of the files applied. `roles` also makes the two roles.

    Raises MigrationError, or JournalUnavailable when Postgres does not answer.
    """
    async with await _connect(dsn) as connection:
        _check_encoding(connection)
        # Two migrating at a time: the second waits, and finds nothing left to do.
        await connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
        await connection.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT}'")
        if roles:
            await _make_roles(connection)
        await _prepare(connection)
        applied = await _applied(connection)
        missing = [item for item in migrations() if not _is_applied(item, applied)]
        for item in missing:
            await _apply(connection, item)
        if roles and not missing:
            await _grant(connection)
        return [item.name for item in missing]


async def status(dsn: str) -> list[Migration]:
    """The files of this release, with the time at which each was applied to the database."""
    async with await _connect(dsn) as connection:
        known = await (await connection.execute("SELECT to_regclass('backburner.schema_migrations')")).fetchone()
        applied = await _applied(connection) if known is not None and known[0] is not None else {}
    found = migrations()
    for item in found:
        _is_applied(item, applied)
    return [
        Migration(m.version, m.name, m.checksum, m.sql, applied[m.version][1] if m.version in applied else None)
        for m in found
    ]


async def _connect(dsn: str) -> Connection:
    try:
        return await psycopg.AsyncConnection.connect(
            dsn, autocommit=True, application_name="backburner migrate", connect_timeout=10
        )
    except psycopg.OperationalError as error:
        if is_unavailable(error):
            raise JournalUnavailable(f"Postgres does not answer: {error}".strip()) from error
        raise MigrationError(f"cannot connect: {error}".strip()) from error


def _check_encoding(connection: Connection) -> None:
    """JSON is UTF-8; in any other encoding the server refuses characters, or hands out bytes for text."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise MigrationError(
            f"database {connection.info.dbname} has the encoding {encoding} and Backburner needs UTF8: "
            "CREATE DATABASE ... TEMPLATE template0 ENCODING 'UTF8'"
        )


async def _prepare(connection: Connection) -> None:
    await connection.execute("CREATE SCHEMA IF NOT EXISTS backburner")
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS backburner.schema_migrations ("
        " version int PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,"
        " applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
    )


async def _applied(connection: Connection) -> dict[int, tuple[str, datetime]]:
    cursor = await connection.execute("SELECT version, checksum, applied_at FROM backburner.schema_migrations")
    return {version: (checksum, at) for version, checksum, at in await cursor.fetchall()}


def _is_applied(item: Migration, applied: dict[int, tuple[str, datetime]]) -> bool:
    known = applied.get(item.version)
    if known is not None and known[0] != item.checksum:
        raise MigrationError(
            f"{item.name} was changed after it was applied to this database: restore the file as it was released, and "
            "put the change into a new one"
        )
    return known is not None


async def _apply(connection: Connection, item: Migration) -> None:
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL search_path = backburner, pg_catalog")
            await connection.execute(item.sql.encode())
            await connection.execute(
                "INSERT INTO backburner.schema_migrations (version, name, checksum) VALUES (%s, %s, %s)",
                [item.version, item.name, item.checksum],
            )
    except psycopg.Error as error:
        raise MigrationError(f"{item.name} failed and was rolled back: {error}".strip()) from error


async def _make_roles(connection: Connection) -> None:
    for role in ROLES:
        found = await (await connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role])).fetchone()
        if found is not None:
            continue
        try:
            await connection.execute(psycopg.sql.SQL("CREATE ROLE {} NOLOGIN").format(psycopg.sql.Identifier(role)))
        except psycopg.errors.DuplicateObject:
            continue  # roles belong to the whole server: another database's migration made it just now
        except psycopg.errors.InsufficientPrivilege as error:
            raise MigrationError(
                f"this user may not create the role {role}: let an administrator run deploy/roles.sql, or migrate "
                "without roles"
            ) from error


async def _grant(connection: Connection) -> None:
    """Grants again: the roles may be younger than the schema."""
    async with connection.transaction():
        await connection.execute("SET LOCAL search_path = backburner, pg_catalog")
        for item in migrations():
            _, begin, grants = item.sql.partition(_GRANTS)
            await connection.execute((begin + grants).encode())


def _read(path: Path) -> Migration:
    text = path.read_text(encoding="utf-8")
    return Migration(int(path.name.split("_", 1)[0]), path.name, hashlib.sha256(text.encode()).hexdigest(), text)
