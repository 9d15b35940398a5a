"""Stage 8, RESULT: the way into the journal. The executor's only importer of psycopg.

There are two lanes, each a connection with one writer: outcomes on one (`outcomes.py`), everything else on the other
(`reports.py`), so that a flood of output never delays a result. Every function of the journal may be repeated; after
any doubt a lane does repeat the call, on another connection, for as long as Postgres is away.
"""

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections.abc import Iterator, Sequence
from typing import Any, Final, LiteralString

import psycopg

from executor_service import failpoints
from executor_service.errors import StartError
from executor_service.faults import Kind, described, kind_of_state
from executor_service.lives import Life, Lives, WrongServer

log = logging.getLogger(__name__)

#: The contract of the journal functions that this release calls.
CONTRACT: Final = 1

_CONNECT_SECONDS: Final = 5
#: A call that takes longer is taken for lost, and repeated on another connection; sooner the server gives up by itself.
_CALL_SECONDS: Final = 40.0
_SETTINGS: Final = {
    "statement_timeout": "30s",
    # A run that somebody holds must not hold up the others that share the lane.
    "lock_timeout": "500ms",
    "idle_in_transaction_session_timeout": "10s",
}
# Set by a statement and not by `options`, which would replace those of the connection string.
_SET: Final = "SELECT " + ", ".join(f"set_config('{name}', '{value}', false)" for name, value in _SETTINGS.items())
_LIFE: Final[LiteralString] = (
    "SELECT life, system_identifier, timeline, started_at, standby FROM backburner.server_life_v1()"
)
_BACKOFF_SECONDS_MAX: Final = 2.0
#: Rights and missing functions are an operator's to mend: worth waiting for when the alternative is to lose a result.
_MENDABLE: Final = ("3F000", "42501", "42883", "42P01")

_ROW: Final[LiteralString] = (
    "ord, outcome, seq, type, (extract(epoch FROM recorded_at) * 1000000)::bigint, data, effect_key"
)
STARTED: Final[LiteralString] = "SELECT " + _ROW + " FROM backburner.attempts_started_v1(%s::jsonb)"  # noqa: S608 - ours
PROGRESS: Final[LiteralString] = "SELECT " + _ROW + " FROM backburner.attempts_progress_v1(%s::jsonb)"  # noqa: S608 - ours
SETTLE: Final[LiteralString] = "SELECT " + _ROW + " FROM backburner.attempts_settle_v1(%s::jsonb)"  # noqa: S608 - ours
OUTPUT: Final[LiteralString] = (
    "SELECT backburner.output_append_v1(%s::uuid[], %s::uuid[], %s::int[], %s::bytea[], %s::smallint[], %s::bigint[], "
    "%s::bytea[])"
)
#: Names of the writes in `failpoints.WRITES`.
WRITES: Final = {STARTED: "started", PROGRESS: "progress", SETTLE: "settle", OUTPUT: "output"}
_CONTRACT: Final[LiteralString] = "SELECT lowest, highest FROM backburner.contract_v1()"


class Refused(Exception):
    """The journal refuses the call as it stands: repeating it will not help.

    `whole`: whatever the call had said, so that saying less of it does not help either.
    """

    def __init__(self, message: str, *, whole: bool = False) -> None:
        super().__init__(message)
        self.whole = whole


class Busy(Exception):
    """A lock that the call needs was held by somebody else for too long: nothing was written."""


class Lane:
    """A connection for one writer, which comes back. `name` shows in pg_stat_activity.

    A `patient` lane waits even for what only an operator can mend. The `first` one writes in a new life of the database
    what has to be written first; the others wait for it.
    """

    def __init__(
        self, dsn: str, name: str, *, patient: bool = False, first: bool = False, lives: Lives | None = None
    ) -> None:
        self._patient = patient
        self._first = first
        self._dsn = dsn
        self._name = name[:63]
        self._lives = lives or Lives()
        self._life: Life | None = None
        self._connection: psycopg.AsyncConnection[tuple[Any, ...]] | None = None
        self._failures = 0

    @property
    def up(self) -> bool:
        """False while Postgres does not answer."""
        return self._failures == 0

    async def call(self, statement: LiteralString, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Runs one statement in a commit of its own, again and again until Postgres answers.

        Raises Refused, and Busy.
        """
        while True:
            try:
                return await self._try(statement, parameters)
            except (psycopg.Error, TimeoutError, WrongServer) as error:
                if isinstance(error, psycopg.Error):
                    self._judge(error)
                await self._drop()
                await self._pause(error)

    async def check_contract(self) -> None:
        """Waits for Postgres and compares contracts. Raises StartError when the schema does not serve ours."""
        try:
            [(lowest, highest)] = await self.call(_CONTRACT, ())
        except Refused as error:
            raise StartError(f"the database is no Backburner journal: {error}. Run `backburner migrate`") from error
        if not lowest <= CONTRACT <= highest:
            raise StartError(
                f"the schema serves contracts {lowest} to {highest}, this executor calls {CONTRACT}: upgrade the older"
            )

    async def close(self) -> None:
        """Closes the connection."""
        await self._drop()

    async def _try(self, statement: LiteralString, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        if self._life != self._lives.current:
            await self._drop()
        connection = self._connection or await self._connect()
        if not self._first:
            await self._caught_up()
        name = WRITES.get(statement, "")
        failpoints.hit(name, "send")
        with _limited(connection, _CALL_SECONDS):
            cursor = await connection.execute(statement, parameters, prepare=True)
            rows = await cursor.fetchall()
        failpoints.hit(name, "committed")
        self._failures = 0
        if self._life != self._lives.current:
            raise WrongServer("the answer came from a life of the database that is over")
        return rows

    async def _caught_up(self) -> None:
        """Waits until what has to be written first in this life is written."""
        await self._lives.caught_up.wait()
        if self._life != self._lives.current:
            raise WrongServer("the database has come into another life")

    async def _connect(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        async with asyncio.timeout(_CALL_SECONDS):
            connection = await psycopg.AsyncConnection.connect(
                self._dsn,
                autocommit=True,
                connect_timeout=_CONNECT_SECONDS,
                application_name=self._name,
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
                tcp_user_timeout=20_000,
            )
        self._connection = connection
        with _limited(connection, _CONNECT_SECONDS):
            await connection.execute(_SET)
            [row] = await (await connection.execute(_LIFE)).fetchall()
        self._lives.meet(Life(*row))
        self._life = self._lives.current
        return connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            _hang_up(connection)
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()

    def _judge(self, error: psycopg.Error) -> None:
        """Raises what the caller has to decide; returns when the same call may succeed later."""
        state = error.sqlstate or ""
        kind = kind_of_state(state)
        if not state:  # nobody but the connection has said anything
            broken = isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
            kind = Kind.TRANSIENT if broken else Kind.REFUSED
        if kind is Kind.BUSY:
            raise Busy(_first_line(error)) from error
        mendable = state in _MENDABLE
        if kind is Kind.REFUSED or (mendable and not self._patient):
            raise Refused(described(error, state), whole=mendable) from error

    async def _pause(self, error: Exception) -> None:
        self._failures += 1
        if self._failures in (1, 5) or self._failures % 20 == 0:
            state = (error.sqlstate or "") if isinstance(error, psycopg.Error) else ""
            log.warning("%s: Postgres does not answer (%s): results are held", self._name, described(error, state))
        pause = min(_BACKOFF_SECONDS_MAX, 0.05 * 2 ** min(self._failures, 6))
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))


@contextlib.contextmanager
def _limited(connection: psycopg.AsyncConnection[Any], seconds: float) -> Iterator[None]:
    """Ends the connection when the block takes longer: what waits in it gets an OperationalError.

    A cancel would not do: the driver answers one by asking the same silent server to cancel, and waits for that.
    """
    timer = asyncio.get_running_loop().call_later(seconds, _hang_up, connection)
    try:
        yield
    finally:
        timer.cancel()


def _hang_up(connection: psycopg.AsyncConnection[Any]) -> None:
    """Ends a connection below the driver, at once, whatever its peer does."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.pgconn.socket)) as line:
        line.shutdown(socket.SHUT_RDWR)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
