"""Connections for reads: a few, shared. One that is idle and was ended by the server is noticed before it is used."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import psycopg

from scheduler_service.journal.connecting import Connection, connect, hang_up, is_usable, limited
from scheduler_service.journal.errors import JournalUnavailable
from scheduler_service.journal.faults import Kind, journal_error, kind_of
from scheduler_service.journal.lives import Life, Lives, WrongServer
from scheduler_service.recent import Recent

CONNECTIONS_MAX: Final = 6
WAITING_MAX: Final = 500
#: How long a reader waits for a connection, and how long its read may take then.
WAIT_SECONDS: Final = 5.0
READ_SECONDS: Final = 8.0


class Readers:
    """At most CONNECTIONS_MAX connections, for at most WAITING_MAX readers who wait for one."""

    def __init__(self, dsn: str, name: str, lives: Lives) -> None:
        self._dsn = dsn
        self._name = name
        self._lives = lives
        self._room = asyncio.Semaphore(CONNECTIONS_MAX)
        self.waiting = 0
        #: How long reads waited for a connection.
        self.waits = Recent()
        self._idle: list[tuple[Connection, Life | None]] = []
        self._busy: set[Connection] = set()
        self._closed = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for a short read, of one life of the database.

        Raises JournalUnavailable, also when the database has come into another life meanwhile, or JournalRefused.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        await self._wait(deadline)
        try:
            connection, life = await self._take(deadline)
            self._busy.add(connection)
            try:
                with limited(connection, READ_SECONDS):
                    yield connection
            except (psycopg.Error, TimeoutError) as error:
                raise journal_error(error, "somebody else holds a lock on what is read") from error
            finally:
                self._busy.discard(connection)
                await self._give_back(connection, life)
            if life != self._lives.current:
                raise JournalUnavailable("what was read is of a life of the database that is over")
        finally:
            self._room.release()

    async def _wait(self, deadline: float) -> None:
        if self.waiting >= WAITING_MAX:
            raise JournalUnavailable(f"{WAITING_MAX} reads are waiting already")
        self.waiting += 1
        came_at = time.monotonic()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._room.acquire()
        except TimeoutError as error:
            raise JournalUnavailable("Postgres does not answer the reads that were asked for before") from error
        finally:
            self.waiting -= 1
            self.waits.note(time.monotonic() - came_at)

    async def _take(self, deadline: float) -> tuple[Connection, Life | None]:
        """The one that was used last, or a new one, tried for until the deadline."""
        while self._idle:
            connection, life = self._idle.pop()
            if life == self._lives.current and is_usable(connection):
                return connection, life
            await _end(connection)
        pause = 0.05
        while not self._closed:
            try:
                return await connect(self._dsn, self._name, self._lives), self._lives.current
            except (psycopg.Error, TimeoutError, WrongServer) as error:
                if kind_of(error) is not Kind.TRANSIENT or time.monotonic() + pause >= deadline:
                    raise journal_error(error, "somebody else holds a lock on the schema") from error
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(1.0, pause * 2)
        raise JournalUnavailable("the service stops")

    async def _give_back(self, connection: Connection, life: Life | None) -> None:
        if not self._closed and is_usable(connection):
            self._idle.append((connection, life))
        else:
            await _end(connection)

    async def close(self) -> None:
        """Ends all connections; reads that are on their way get no answer."""
        self._closed = True
        for connection in self._busy:
            hang_up(connection)
        while self._idle:
            await _end(self._idle.pop()[0])


async def _end(connection: Connection) -> None:
    hang_up(connection)
    await connection.close()
