"""One dedicated connection that comes back: reconnects with jittered back-off, and never hides a lost answer."""

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from typing import Any, Final, LiteralString

import orjson
import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

from scheduler_service.journal.errors import JournalBusy, JournalRefused, JournalUnavailable

log = logging.getLogger(__name__)

Row = dict[str, Any]

#: SQLSTATE classes after which the same call may succeed: connection, resources, operator intervention, read-only
#: phases of a failover, and the refusals that only say "again".
RETRYABLE: Final = ("08", "53", "57", "25006", "40", "55P03")
_CONNECT_SECONDS = 5
_CALL_SECONDS_MIN = 1.0
_SETTINGS: Final[LiteralString] = "SET lock_timeout = '100ms'"
_BACKOFF_SECONDS_MAX = 2.0


def is_unavailable(error: psycopg.Error) -> bool:
    """True when the error says nothing about what was asked, only that now is a bad time."""
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return state.startswith(RETRYABLE)


class Link:
    """A connection for one writer at a time. `name` shows in pg_stat_activity."""

    def __init__(self, dsn: str, name: str) -> None:
        self._dsn = dsn
        self._name = name
        self._connection: psycopg.AsyncConnection[Row] | None = None
        self._lock = asyncio.Lock()
        self._failures = 0

    async def call(self, statement: LiteralString, parameters: Mapping[str, Any], *, deadline: float) -> list[Row]:
        """Runs one statement in its own commit, again and again until it answers or the monotonic deadline passes.

        Repeating is safe because every function of the journal may be repeated.
        Raises JournalUnavailable (its fate is unknown), JournalRefused, or JournalBusy when a lock is held for longer
        than a moment: the caller knows whether others can go first.
        """
        async with self._lock:
            while True:
                try:
                    # Or a server that neither answers nor goes away would keep the writer for ever.
                    async with asyncio.timeout(max(_CALL_SECONDS_MIN, deadline - time.monotonic())):
                        return await self._try(statement, parameters)
                except psycopg.errors.LockNotAvailable as error:
                    raise JournalBusy("somebody else holds a lock on the run") from error
                except (psycopg.Error, TimeoutError) as error:
                    if isinstance(error, psycopg.Error) and not is_unavailable(error):
                        raise JournalRefused(str(error).strip(), error.sqlstate or "") from error
                    await self._drop()
                    if time.monotonic() >= deadline:
                        raise JournalUnavailable(f"Postgres does not answer: {error}".strip()) from error
                    await self._pause(error)

    async def close(self) -> None:
        """Closes the connection."""
        async with self._lock:
            await self._drop()

    async def _try(self, statement: LiteralString, parameters: Mapping[str, Any]) -> list[Row]:
        connection = self._connection or await self._connect()
        cursor = await connection.execute(statement, parameters, prepare=True)
        rows = await cursor.fetchall() if cursor.description else []
        self._failures = 0
        return rows

    async def _connect(self) -> psycopg.AsyncConnection[Row]:
        connection = await psycopg.AsyncConnection.connect(
            self._dsn,
            autocommit=True,
            row_factory=dict_row,
            connect_timeout=_CONNECT_SECONDS,
            application_name=self._name,
            # a peer that vanished is noticed in seconds, not after the two hours of the system
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
        )
        set_json_loads(orjson.loads, connection)
        await connection.execute(_SETTINGS)
        self._connection = connection
        return connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _pause(self, error: Exception) -> None:
        self._failures += 1
        pause = min(_BACKOFF_SECONDS_MAX, 0.05 * 2 ** min(self._failures, 6)) * random.uniform(0.5, 1.0)
        if self._failures in (1, 5) or self._failures % 20 == 0:
            log.warning("%s: Postgres does not answer (%s); trying again", self._name, str(error).strip())
        await asyncio.sleep(pause)
