"""Every statement of the services is one that Postgres accepts against the migrated schema."""

import re
from pathlib import Path
from typing import Any, Final, cast

import psycopg
import pytest

import scheduler_service.journal
from executor_service import recording
from scheduler_service.journal import evidence
from scheduler_service.journal.statements import load_statements

FOLDER: Final = Path(scheduler_service.journal.__file__).parent
STATEMENTS: Final[dict[str, str]] = {
    **{f"queries.{name}": text for name, text in load_statements(FOLDER / "queries.sql").items()},
    **{f"client_reads.{name}": text for name, text in load_statements(FOLDER / "client_reads.sql").items()},
    **{f"diagnosis.{name}": text for name, text in load_statements(FOLDER / "diagnosis.sql").items()},
    **{f"metrics.{name}": text for name, text in load_statements(FOLDER / "metrics.sql").items()},
    **{f"histories.{name}": text for name, text in load_statements(FOLDER / "histories.sql").items()},
    **{f"recording.{name}": getattr(recording, name) for name in ("STARTED", "PROGRESS", "SETTLE", "OUTPUT")},
    "evidence.OVERLAP_SQL": evidence.OVERLAP_SQL,
}


def numbered(statement: str) -> str:
    """The statement with $1, $2, ... instead of the driver's parameters."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        name = match[1] or f"#{len(names)}"
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}"

    return re.sub(r"%(?:\((\w+)\))?s", number, statement).replace("%%", "%")


@pytest.mark.parametrize("name", STATEMENTS)
def test_statement_prepares(database_url: str, name: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SET search_path = pg_catalog")  # names must be written in full
        connection.execute(cast("Any", f"PREPARE it AS {numbered(STATEMENTS[name])}"))


def test_effects_have_the_same_columns_wherever_they_are_read(database_url: str) -> None:
    """Each becomes an EffectView."""

    def columns(name: str, **parameters: Any) -> set[str]:
        with psycopg.connect(database_url, autocommit=True) as connection:
            cursor = connection.execute(cast("Any", STATEMENTS[name]), parameters)
            return {column.name for column in cursor.description or ()}

    assert columns("metrics.examples", effect_ids=[]) == columns("client_reads.causes", run_ids=[], each=1)


def test_every_statement_of_the_engine_is_used() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py"))
    unused = [name for name in load_statements(FOLDER / "queries.sql") if f'"{name}"' not in source]
    assert unused == []
