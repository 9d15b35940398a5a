"""Reads whole runs for the rules: one snapshot and one run in memory at a time, no lock that others wait for."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, LiteralString

import psycopg
from psycopg.rows import dict_row

from scheduler_service.journal.errors import JournalRefused, JournalUnavailable
from scheduler_service.journal.faults import is_unavailable
from scheduler_service.journal.statements import load_statements
from scheduler_service.journal.verify.rules import Recorded, Violation, violations

_STATEMENTS: Final = load_statements(Path(__file__).with_name("verify.sql"))
#: What is read of a run, by name; each takes `run_id`.
READS: Final = {
    name: _STATEMENTS[name] for name in ("head", "run", "journal", "effects", "open_work", "groups", "blobs", "usage")
}
_PAGE_RUNS: Final = 500

Connection = psycopg.AsyncConnection[dict[str, Any]]


@dataclass(frozen=True)
class Verified:
    """One run that was checked."""

    run_id: str
    rows: int
    violations: list[Violation]


async def verify(dsn: str, run_ids: Sequence[str] | None = None) -> AsyncGenerator[Verified, None]:
    """Checks these runs, or all of the database, by id. Yields each as it is done; unknown ids are left out.

    Each run is read in a transaction of its own (repeatable read, read only), so a live system may go on meanwhile.
    Raises JournalUnavailable when Postgres goes away, JournalRefused when the role may not read.
    """
    try:
        async with await psycopg.AsyncConnection.connect(
            dsn, row_factory=dict_row, autocommit=True, application_name="backburner verify", connect_timeout=10
        ) as connection:
            await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
            await connection.set_read_only(True)
            async for run_id in _ids(connection, run_ids):
                recorded = await _read(connection, run_id)
                if recorded is not None:
                    yield Verified(run_id, len(recorded.journal), violations(recorded))
    except psycopg.Error as error:
        if is_unavailable(error):
            raise JournalUnavailable(f"Postgres does not answer: {error}".strip()) from error
        raise JournalRefused(str(error).strip(), error.sqlstate or "") from error


async def _ids(connection: Connection, wanted: Sequence[str] | None) -> AsyncIterator[str]:
    if wanted is not None:
        for run_id in wanted:
            yield run_id
        return
    after: str | None = None
    while page := await _rows(connection, _STATEMENTS["page_of_runs"], {"after": after, "limit": _PAGE_RUNS}):
        for row in page:
            yield str(row["run_id"])
        after = str(page[-1]["run_id"])


async def _read(connection: Connection, run_id: str) -> Recorded | None:
    async with connection.transaction():
        read = {name: await _rows(connection, statement, {"run_id": run_id}) for name, statement in READS.items()}
    return recorded(run_id, read) if read["head"] else None


def recorded(run_id: str, read: Mapping[str, Sequence[dict[str, Any]]]) -> Recorded:
    """What was read of a run, as the rules take it."""
    [head], [run], [open_work] = read["head"], read["run"], read["open_work"]
    queued, timers = frozenset(open_work["queued"]), frozenset(open_work["timers"])
    sums = read["groups"], read["blobs"], read["usage"]
    return Recorded(run_id, read["journal"], read["effects"], head, run, queued, timers, *sums)


async def _rows(connection: Connection, statement: LiteralString, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    return await (await connection.execute(statement, parameters)).fetchall()
