"""The reads of a diagnosis: through the service, or straight on the database when no service is up."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from scheduler_service.clock import DatabaseClock
from scheduler_service.journal.client_reads import ClientReads, Connections
from scheduler_service.journal.connecting import Row
from scheduler_service.journal.errors import JournalError
from scheduler_service.journal.faults import journal_error
from scheduler_service.journal.migrate import migrations
from scheduler_service.journal.statements import load_statements

_SQL: Final = load_statements(Path(__file__).with_suffix(".sql"))
_STATEMENT_TIMEOUT: Final = "SET statement_timeout = '20s'"


class DiagnosisReads:
    """What is looked at, by name of the statement in `diagnosis.sql`."""

    def __init__(self, connections: Connections, clock: DatabaseClock) -> None:
        self._connections = connections
        self.clients = ClientReads(connections)
        self.clock = clock

    async def rows(self, name: str) -> Sequence[Mapping[str, Any]]:
        """The rows of one statement."""
        async with self._connections.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(_SQL[name])
            found: list[Row] = await cursor.fetchall()
            return found

    @property
    def newest_schema(self) -> int:
        """Version of the newest migration that this release has."""
        return migrations()[-1].version


class OneConnection:
    """One connection, for as long as it is open."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """The connection."""
        yield self._connection


@asynccontextmanager
async def open_reads(dsn: str) -> AsyncIterator[DiagnosisReads]:
    """Reads straight on a database. Raises JournalUnavailable, or JournalError for one without our schema."""
    try:
        async with await psycopg.AsyncConnection.connect(
            dsn, autocommit=True, application_name="backburner doctor", connect_timeout=10
        ) as connection:
            await connection.execute(_STATEMENT_TIMEOUT)
            clock = DatabaseClock()
            async for (now,) in await connection.execute("SELECT clock_timestamp()"):
                clock.learn(now)
            yield DiagnosisReads(OneConnection(connection), clock)
    except psycopg.errors.UndefinedTable as error:
        raise JournalError("the database has no Backburner schema, or an old one: run `backburner migrate`") from error
    except psycopg.Error as error:
        raise journal_error(error, "somebody holds a lock") from error
