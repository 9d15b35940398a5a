"""Who writes what: the table in `journal/writers.py` is what the functions' bodies do, and what executors can do."""

import re
from typing import Final

import psycopg
import pytest

from scheduler_service.journal.writers import EXECUTOR, OWNER_SENDS, WRITERS
from tests.support.journal_items import Scene, plain_row, scene_at, settle_item

#: What a body does with a type other than writing it.
_READS: Final = [
    r"(?:type'?|becomes|refused_type',)\s*(?:=|<>)?\s*'[A-Z_]+'",
    r"type'? (?:NOT )?IN \([^)]*\)",
    r"becomes (?:=|<>) '[A-Z_]+'",
    r"'[A-Z_]+' = ANY \(types\)",
    r"types (?:&&|<@) '\{[^}]*\}'",
    r"CASE (?:n\.)?becomes.*?END END",
    r"refused_type', '[A-Z_]+'",
]


#: A helper turns settlements that its caller sends into evidence, and this caller sends none.
_UNREACHED: Final = {"request_cancels_v1": {"EFFECT_SUPERSEDED"}, "finish_runs_v1": {"EFFECT_SUPERSEDED"}}


def bodies(scene: Scene) -> dict[str, str]:
    rows = scene.query("SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'backburner'::regnamespace")
    return {row["proname"]: re.sub(r"--.*", "", row["prosrc"]) for row in rows}


def with_helpers(name: str, known: dict[str, str]) -> str:
    """A function's body with the bodies of those it calls, but not of those that others may call too."""
    called = [other for other in known if other != name and not other.endswith("_v1") and f"{other}(" in known[name]]
    return "\n".join([known[name], *(with_helpers(other, known) for other in called if other != "owner_types")])


@pytest.fixture
def known(database_url: str) -> dict[str, str]:
    with scene_at(database_url) as scene:
        return bodies(scene)


def test_only_functions_of_the_table_insert_into_the_journal(known: dict[str, str]) -> None:
    inserting = {name for name, body in known.items() if re.search(r"INSERT\s+INTO\s+journal\b", body)}
    table = set().union(*WRITERS.values())
    helpers = {name for name in inserting if not name.endswith("_v1")}
    assert inserting - helpers == table
    called = {name for function in table for name in helpers if f"{name}(" in with_helpers(function, known)}
    assert called == helpers, "a helper that inserts is reached from functions of the table only"


def test_bodies_name_exactly_the_types_that_the_table_gives_them(known: dict[str, str]) -> None:
    for function in set().union(*WRITERS.values()):
        body = with_helpers(function, known)
        written = {match for match in re.findall(r"'([A-Z_]+)'", stripped(body)) if match in WRITERS}
        written -= _UNREACHED.get(function, set())
        table = {type_ for type_, functions in WRITERS.items() if function in functions}
        if function == "append_v1":
            table -= OWNER_SENDS
            written -= OWNER_SENDS
        assert written == table, function


def stripped(body: str) -> str:
    """The body without what only compares a type."""
    flat = " ".join(body.split())
    flat = re.sub(r"'type', '([A-Z_]+)'", r"written:'\1'", flat)
    for pattern in _READS:
        flat = re.sub(pattern, "", flat)
    return flat


def test_schema_knows_the_same_types(known: dict[str, str], database_url: str) -> None:
    with scene_at(database_url) as scene:
        row = scene.one("SELECT pg_get_constraintdef(oid) AS text FROM pg_constraint WHERE conname = 'known_type'")
        sends = scene.one("SELECT backburner.owner_types() AS types")["types"]
    assert set(re.findall(r"'([A-Z_]+)'", row["text"])) == set(WRITERS)
    assert set(sends) == OWNER_SENDS
    assert known


@pytest.mark.parametrize("type_", sorted(set(WRITERS) - OWNER_SENDS))
def test_owner_is_refused_other_types(database_url: str, type_: str) -> None:
    with scene_at(database_url) as scene:
        run_id = scene.run()
        with pytest.raises(psycopg.Error) as refusal:
            scene.append(run_id, plain_row(type_))
        assert refusal.value.sqlstate == "BB002"
        assert scene.types(run_id) == ["RUN_CREATED"]


def test_executors_write_their_types_only_whatever_they_send(database_url: str) -> None:
    allowed = {type_ for type_, functions in WRITERS.items() if functions & EXECUTOR}
    forged = {
        "type": "RUN_COMPLETED", "seq": 99, "recorded_at": "1999-01-01T00:00:00Z", "writer": "api/root", "cause": 1,
        "effect_key": "other", "state": "EFFECT_STATE_SUCCEEDED", "executor_id": "e9",
    }  # fmt: skip
    with scene_at(database_url) as scene:
        session, run_id = scene.hello(), scene.run()
        for outcome in ("succeeded", "failed", "timed_out", "cancelled", "nonsense"):
            attempt = scene.dispatched(session, run_id, outcome, max_attempts=1)
            for function, values in (
                ("attempts_started_v1", {"pid": 1}),
                ("attempts_progress_v1", {"ordinal": 1, "progress": {}, "durable": True}),
                ("attempts_settle_v1", settle_item(attempt, outcome)),
                ("attempts_settle_v1", settle_item(attempt, outcome)),
            ):
                scene.call(function, [attempt.identity | values | forged])
        rows = [row for row in scene.journal(run_id) if row["writer"].startswith("executor/")]
        assert {row["type"] for row in rows} <= allowed
        assert {row["writer"] for row in rows} == {"executor/e1"}
        assert {row["recorded_at"].year > 2000 for row in rows} == {True}
        assert scene.types(run_id).count("EFFECT_STARTED") == 5
        assert scene.head(run_id)["open_effects"] == 0
