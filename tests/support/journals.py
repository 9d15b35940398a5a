"""Reads journals as a checker would: by SQL, apart from the services, and says what is wrong with them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

SETTLING: Final = ("EFFECT_RESOLVED", "EFFECT_CANCELLED")
ENDING: Final = ("RUN_COMPLETED", "RUN_FAILED", "RUN_CANCELLED", "RUN_CONTINUED")


@dataclass(frozen=True)
class JournalRow:
    """One row of a journal."""

    seq: int
    type: str
    key: str
    attempt: int
    recorded_at: Any
    writer: str
    data: Any


async def journal_of(dsn: str, run_id: str) -> list[JournalRow]:
    """The whole journal of a run, in order."""
    statement = """
        SELECT seq, type, coalesce(effect_key, '') AS key, attempt, recorded_at, writer, data
        FROM backburner.journal WHERE run_id = %s ORDER BY seq
    """
    async with await psycopg.AsyncConnection.connect(dsn, row_factory=dict_row) as connection:
        rows = await (await connection.execute(statement, [run_id])).fetchall()
    return [JournalRow(**row) for row in rows]


def of_type(rows: list[JournalRow], *types: str, key: str | None = None) -> list[JournalRow]:
    """The rows of these types, of one effect or of all."""
    return [row for row in rows if row.type in types and key in (None, row.key)]


def check_journal(rows: list[JournalRow]) -> None:
    """Asserts what holds for every journal: I2, I3, I4, I12 and one end at most."""
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1)), "seq is not dense"
    times = [row.recorded_at for row in rows]
    assert times == sorted(times), "time went back"
    keys = {row.key for row in rows if row.key}
    for key in keys:
        settled = of_type(rows, *SETTLING, key=key)
        assert len(settled) <= 1, f"{key} settled {len(settled)} times"
        dispatched = [row.attempt for row in of_type(rows, "EFFECT_DISPATCHED", key=key)]
        assert dispatched == list(range(1, len(dispatched) + 1)), f"{key} was dispatched as {dispatched}"
        first = next(row for row in rows if row.key == key)
        assert first.type == "EFFECT_REQUESTED", f"{key} begins with {first.type}"
    assert len(of_type(rows, *ENDING)) <= 1, "the run ended twice"


def alive(pid: int) -> bool:
    """True while a process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def marked_processes(marker: str) -> list[int]:
    """Processes whose environment has the marker: descendants of attempts, wherever they went."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (process / "environ").read_bytes() and alive(int(process.name)):
                found.append(int(process.name))
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue
    return found
