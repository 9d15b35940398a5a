"""Stage 8, RESULT: the way into the journal. The executor's only importer of psycopg.

There are two lanes, each a connection with one writer: outcomes on one (`outcomes.py`), everything else on the other
(`reports.py`), so that a flood of output never delays a result. Every function of the journal may be repeated; after
any doubt a lane does repeat the call, on another connection, for as long as Postgres is away.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Sequence
from typing import Any, Final, LiteralString

import psycopg

from executor_service.errors import StartError

log = logging.getLogger(__name__)

#: The contract of the journal functions that this release calls.
CONTRACT: Final = 1

_CONNECT_SECONDS: Final = 5
#: A call that takes longer is taken for lost, and repeated on another connection.
_CALL_SECONDS: Final = 40.0
_BACKOFF_SECONDS_MAX: Final = 2.0
#: How long a call waits for a lock: a run that somebody holds must not hold up the others that share the lane.
_LOCK_MS: Final = 500
_LOCK_NOT_AVAILABLE: Final = "55P03"
#: SQLSTATE classes after which the same call may succeed: connection, resources, operator intervention, a read-only
#: phase of a failover, and refusals that only say "again".
_TRANSIENT: Final = ("08", "25006", "40", "53", "57")
#: Rights and missing functions are an operator's to mend: worth waiting for when the alternative is to lose a result.
_MENDABLE: Final = ("3F000", "42501", "42883")

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

    A `patient` lane waits even for what only an operator can mend.
    """

    def __init__(self, dsn: str, name: str, *, patient: bool = False) -> None:
        self._transient = _TRANSIENT + _MENDABLE if patient else _TRANSIENT
        self._dsn = dsn
        self._name = name
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
                async with asyncio.timeout(_CALL_SECONDS):
                    return await self._try(statement, parameters)
            except (psycopg.Error, TimeoutError) as error:
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
        connection = self._connection or await self._connect()
        cursor = await connection.execute(statement, parameters, prepare=True)
        rows = await cursor.fetchall()
        self._failures = 0
        return rows

    async def _connect(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        self._connection = await psycopg.AsyncConnection.connect(
            self._dsn,
            autocommit=True,
            connect_timeout=_CONNECT_SECONDS,
            application_name=self._name,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=20_000,
            options=f"-c statement_timeout=30s -c lock_timeout={_LOCK_MS}ms",
        )
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()

    def _judge(self, error: psycopg.Error) -> None:
        """Raises what the caller has to decide."""
        if error.sqlstate == _LOCK_NOT_AVAILABLE:
            raise Busy(_first_line(error)) from error
        if not self._is_transient(error):
            raise Refused(str(error).strip(), whole=(error.sqlstate or "").startswith(_MENDABLE)) from error

    def _is_transient(self, error: psycopg.Error) -> bool:
        """True when the error says nothing about what was asked, only that now is a bad time."""
        if error.sqlstate is None:
            return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
        return error.sqlstate.startswith(self._transient)

    async def _pause(self, error: Exception) -> None:
        self._failures += 1
        if self._failures in (1, 5) or self._failures % 20 == 0:
            log.warning("%s: Postgres does not answer (%s): results are held", self._name, _first_line(error))
        pause = min(_BACKOFF_SECONDS_MAX, 0.05 * 2 ** min(self._failures, 6))
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
