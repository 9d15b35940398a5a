"""One dedicated connection that comes back: reconnects with jittered back-off, and never hides a lost answer."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, LiteralString

import psycopg

from scheduler_service import failpoints
from scheduler_service.journal.connecting import CALL_SECONDS, Connection, Row, connect, hang_up, limited
from scheduler_service.journal.errors import JournalUnavailable
from scheduler_service.journal.faults import Kind, described, journal_error, kind_of
from scheduler_service.journal.lives import Life, Lives, WrongServer

log = logging.getLogger(__name__)

_BACKOFF_SECONDS_MAX: Final = 2.0


class Link:
    """A connection for one writer at a time. `name` shows in pg_stat_activity; `took` hears how long commits took."""

    def __init__(
        self, dsn: str, name: str, lives: Lives | None = None, took: Callable[[float], None] = lambda seconds: None
    ) -> None:
        self._dsn = dsn
        self._name = name
        self._lives = lives or Lives()
        self._took = took
        self._life: Life | None = None
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()
        self._failures = 0
        self._closed = False

    async def call(
        self,
        statement: LiteralString,
        parameters: Mapping[str, Any],
        *,
        name: str,
        deadline: float,
        life: Life | None = None,
    ) -> list[Row]:
        """Runs one statement in its own commit, again and again until it answers or the monotonic deadline passes.

        `name` is that of the write in `failpoints.WRITES`. Repeating is safe because every function of the journal may
        be repeated. With `life` it is sent to that life of the server only.
        Raises JournalUnavailable (its fate is unknown), JournalRefused, or JournalBusy when a lock is held for longer
        than a moment: the caller knows whether others can go first.
        """
        async with self._turn(deadline):
            while True:
                try:
                    connection = await self._connected(life)
                    with limited(connection, max(0.1, min(CALL_SECONDS, deadline - time.monotonic()))):
                        return await self._try(connection, statement, parameters, name)
                except (psycopg.Error, TimeoutError, WrongServer) as error:
                    await self._failed(error, deadline)

    @asynccontextmanager
    async def _turn(self, deadline: float) -> AsyncIterator[None]:
        """Waits for those who came before; not for longer than what was asked may take."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._lock.acquire()
        except TimeoutError as error:
            raise JournalUnavailable(f"Postgres does not answer those who asked before, on {self._name}") from error
        try:
            yield
        finally:
            self._lock.release()

    async def _try(
        self, connection: Connection, statement: LiteralString, parameters: Mapping[str, Any], name: str
    ) -> list[Row]:
        failpoints.hit(name, "send")
        sent_at = time.monotonic()
        cursor = await connection.execute(statement, parameters, prepare=True)
        rows = await cursor.fetchall() if cursor.description else []
        self._took(time.monotonic() - sent_at)
        failpoints.hit(name, "committed")
        self._failures = 0
        if self._life != self._lives.current:
            raise WrongServer("the answer came from a life of the database that is over")
        return rows

    async def _connected(self, life: Life | None) -> Connection:
        if self._closed:
            raise JournalUnavailable("the service stops")
        if self._connection is not None and self._life != self._lives.current:
            await self._drop()
        if self._connection is None:
            self._connection = await connect(self._dsn, self._name, self._lives)
            self._life = self._lives.current
        if life is not None and life != self._life:
            raise JournalUnavailable("the database is in another life than what was asked for knew")
        return self._connection

    async def _failed(self, error: Exception, deadline: float) -> None:
        """Returns when it is time to try again; raises when that is not for us."""
        kind = kind_of(error)
        refusal = journal_error(error, "somebody else holds a lock on the run")
        if kind in (Kind.BUSY, Kind.REFUSED):
            raise refusal from error
        await self._drop()
        pause = self._pause()
        if self._closed or time.monotonic() + pause >= deadline:
            raise refusal from error
        if self._failures in (1, 5) or self._failures % 20 == 0:
            say = log.error if kind is Kind.OPERATOR else log.warning
            say("%s: Postgres does not answer (%s); trying again", self._name, described(error))
        await asyncio.sleep(pause)

    def _pause(self) -> float:
        self._failures += 1
        return min(_BACKOFF_SECONDS_MAX, 0.05 * 2.0 ** min(self._failures, 6)) * random.uniform(0.5, 1.0)

    def hang_up(self) -> None:
        """For good: what is on its way gets no answer."""
        self._closed = True
        if self._connection is not None:
            hang_up(self._connection)

    async def close(self) -> None:
        """Closes the connection."""
        async with self._lock:
            await self._drop()

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            hang_up(connection)
            await connection.close()
