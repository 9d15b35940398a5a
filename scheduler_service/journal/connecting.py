"""Connections to Postgres: their settings and limits, and how one is ended that does not answer any more."""

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Iterator
from typing import Any, Final

import orjson
import psycopg
from psycopg import pq
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

from scheduler_service.journal.lives import LIFE, Life, Lives

Row = dict[str, Any]
Connection = psycopg.AsyncConnection[Row]

#: Of one host; a connection string may name several.
CONNECT_SECONDS: Final = 5
#: How long one try of a call may take. Below it the server gives up by itself; at it the connection is ended.
CALL_SECONDS: Final = 8.0
SETTINGS: Final = {
    "statement_timeout": "7s",
    "lock_timeout": "100ms",
    "idle_in_transaction_session_timeout": "10s",
}
# Set by a statement and not by `options`, which would replace those of the connection string.
_SET: Final = "SELECT " + ", ".join(f"set_config('{name}', '{value}', false)" for name, value in SETTINGS.items())


async def connect(dsn: str, name: str, lives: Lives) -> Connection:
    """A connection to the primary, in its current life. `name` shows in pg_stat_activity.

    Raises psycopg.Error or TimeoutError when none is to be had, and WrongServer.
    """
    async with asyncio.timeout(CALL_SECONDS):
        connection = await psycopg.AsyncConnection.connect(
            dsn,
            autocommit=True,
            row_factory=dict_row,
            connect_timeout=CONNECT_SECONDS,
            application_name=name[:63],
            # A peer that vanished is noticed in seconds, not after the two hours of the system.
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            tcp_user_timeout=10_000,
        )
    try:
        set_json_loads(orjson.loads, connection)
        with limited(connection, CALL_SECONDS):
            await connection.execute(_SET)
            [row] = await (await connection.execute(LIFE)).fetchall()
        lives.meet(Life(**row))
    except BaseException:
        hang_up(connection)
        await connection.close()
        raise
    return connection


@contextlib.contextmanager
def limited(connection: Connection, seconds: float) -> Iterator[None]:
    """Ends the connection when the block takes longer: what waits in it gets an OperationalError.

    A cancel would not do: the driver answers one by asking the same silent server to cancel, and waits for that.
    """
    timer = asyncio.get_running_loop().call_later(seconds, hang_up, connection)
    try:
        yield
    finally:
        timer.cancel()


def hang_up(connection: Connection) -> None:
    """Ends a connection below the driver, at once, whatever its peer does."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.pgconn.socket)) as line:
        line.shutdown(socket.SHUT_RDWR)


def is_usable(connection: Connection) -> bool:
    """False for an idle connection that the server has ended: then there is something to read on it."""
    if connection.closed or connection.pgconn.transaction_status != pq.TransactionStatus.IDLE:
        return False
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN | select.POLLHUP | select.POLLERR)
    return not poll.poll(0)
