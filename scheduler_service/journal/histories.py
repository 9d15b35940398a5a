"""Reads whole journals for replay: one run in memory at a time, each from a snapshot of its own, nothing written."""

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from scheduler_service.journal.errors import JournalRefused, JournalUnavailable
from scheduler_service.journal.faults import is_unavailable
from scheduler_service.journal.journal import event_of
from scheduler_service.journal.payloads import BlobsUnreadable, loaded
from scheduler_service.journal.statements import load_statements
from scheduler_service.replay.events import Event

_SQL: Final = load_statements(Path(__file__).with_suffix(".sql"))
_PAGE_RUNS: Final = 500

Connection = psycopg.AsyncConnection[dict[str, Any]]


async def histories(
    dsn: str, *, run_ids: Sequence[str] | None = None, processes: Sequence[str] | None = None, live: bool = False
) -> AsyncGenerator[tuple[str, Sequence[Event]], None]:
    """The journals of these runs, or of all runs of these processes (with `live`, of those that have not ended), by id.

    Runs that are driven by clients have no process and are left out, as are unknown ids. Raises JournalUnavailable when
    Postgres goes away, JournalRefused when the role may not read.
    """
    chosen = {"run_ids": None if run_ids is None else list(run_ids), "live": live}
    chosen["processes"] = None if processes is None else list(processes)
    try:
        async with await psycopg.AsyncConnection.connect(
            dsn, row_factory=dict_row, autocommit=True, application_name="backburner replay-check", connect_timeout=10
        ) as connection:
            await connection.set_read_only(True)
            after: str | None = None
            while page := await _rows(connection, "page", {**chosen, "after": after, "limit": _PAGE_RUNS}):
                for row in page:
                    yield str(row["run_id"]), await _history(connection, str(row["run_id"]))
                after = str(page[-1]["run_id"])
    except psycopg.Error as error:
        if is_unavailable(error):
            raise JournalUnavailable(f"Postgres does not answer: {error}".strip()) from error
        raise JournalRefused(str(error).strip(), error.sqlstate or "") from error


async def _history(connection: Connection, run_id: str) -> Sequence[Event]:
    """A run's events with their large values in place; without them when they are gone, or too many."""

    async def read(run_id: str, digests: Sequence[str]) -> dict[str, bytes]:
        rows = await _rows(connection, "blobs", {"run_id": run_id, "digests": list(digests)})
        return {row["digest"]: bytes(row["content"]) for row in rows}

    events = [event_of(row) for row in await _rows(connection, "events", {"run_id": run_id})]
    try:
        return await loaded(run_id, events, read)
    except BlobsUnreadable:
        return events  # whoever replays them says that it cannot


async def _rows(connection: Connection, name: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    return await (await connection.execute(_SQL[name], parameters)).fetchall()
