"""The schema against what repeats it: the state tables, the protos, the files; and how its functions are made."""

import re
from collections.abc import Iterable
from typing import Any, Final

import psycopg

from backburner.journal.v1 import journal_pb2
from scheduler_service.journal import shard_of
from scheduler_service.journal.migrate import migrations
from scheduler_service.replay.states import EFFECT_TERMINAL, RUN_TERMINAL, EffectState, RunState

FUNCTIONS: Final = """
    SELECT p.proname AS name, p.prosecdef AS definer, coalesce(p.proconfig, '{}') AS config, p.prosrc AS body
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'backburner' ORDER BY 1
"""


def rows(dsn: str, statement: Any, *parameters: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(statement, parameters or None).fetchall()


def texts_of(dsn: str, table: str, constraint: str) -> set[str]:
    """The literals of a CHECK constraint."""
    [(definition,)] = rows(
        dsn,
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = %s AND conrelid = %s::regclass",
        constraint,
        f"backburner.{table}",
    )
    return set(re.findall(r"'(\w+)'::text", definition))


def names_of(enum: Any, prefix: str) -> set[str]:
    """The values of a proto enum without their prefix, the unspecified one left out."""
    return {name.removeprefix(prefix) for name in enum.keys()} - {"UNSPECIFIED"}  # noqa: SIM118


def test_files_are_numbered_upwards_and_named_after_what_they_hold() -> None:
    found = migrations()
    versions = [item.version for item in found]
    assert versions == sorted(set(versions))
    assert all(re.fullmatch(r"\d{4}_[a-z_]+\.sql", item.name) for item in found)


def test_states_are_those_of_the_state_tables_and_of_the_protos(database_url: str) -> None:
    effects = texts_of(database_url, "effects", "effects_state_check")
    assert effects == set(EffectState) == names_of(journal_pb2.EffectState, "EFFECT_STATE_")
    runs = texts_of(database_url, "runs", "runs_state_check")
    assert runs == set(RunState) == names_of(journal_pb2.RunState, "RUN_STATE_")


def test_terminal_states_are_those_of_the_state_tables(database_url: str) -> None:
    assert texts_of(database_url, "effects", "settled_exactly_when_terminal") == set(EFFECT_TERMINAL)
    assert texts_of(database_url, "runs", "ended_exactly_when_terminal") == set(RUN_TERMINAL)


def test_event_types_are_those_of_the_protos(database_url: str) -> None:
    assert texts_of(database_url, "journal", "known_type") == names_of(journal_pb2.EventType, "EVENT_TYPE_")


def test_every_table_says_what_it_is_for(database_url: str) -> None:
    silent = rows(
        database_url,
        "SELECT relname FROM pg_class WHERE relnamespace = 'backburner'::regnamespace AND relkind = 'r' "
        "AND obj_description(oid) IS NULL AND relname <> 'schema_migrations'",
    )
    assert silent == []


def test_function_that_is_called_from_outside_is_versioned_runs_as_its_owner_and_fixes_its_search_path(
    database_url: str,
) -> None:
    for name, definer, config, _ in rows(database_url, FUNCTIONS):
        if re.search(r"_v\d+$", name) and name != "contract_v1":
            assert definer, f"{name} is no SECURITY DEFINER"
            assert "search_path=backburner, pg_temp" in config, f"{name} has an open search_path"
        else:
            assert not definer, f"{name} runs as its owner and is no function of the contract"


def test_executors_functions_take_no_time(database_url: str) -> None:
    """Forged times would be times in a run that go where an executor wants them."""
    told = rows(
        database_url,
        "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'backburner'::regnamespace "
        "AND (proname LIKE 'attempt%%' OR proname LIKE 'output%%') AND 1 = %s",
        1,
    )
    assert len(told) >= 5
    for name, body in told:
        assert not re.search(r"item->>?'(recorded_at|now|time|at|type)'", body), f"{name} takes a time or a type"


def test_shard_of_a_run_is_the_same_in_both_languages(database_url: str) -> None:
    told = rows(database_url, "SELECT id::text, backburner.shard_of(id) FROM (SELECT gen_random_uuid() AS id "
                              "FROM generate_series(1, 500)) x WHERE 1 = %s", 1)  # fmt: skip
    assert [shard for _, shard in told] == [shard_of(run_id) for run_id, _ in told]
    assert {shard for _, shard in told} == set(range(16))


def test_no_index_stands_on_what_changes_with_every_append(database_url: str) -> None:
    """Or the updates of heads and of progress would not be HOT, and every append would write to every index."""
    indexed = rows(
        database_url,
        "SELECT i.indrelid::regclass::text, a.attname FROM pg_index i JOIN pg_attribute a "
        "ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) "
        "WHERE i.indrelid IN ('backburner.run_heads'::regclass, 'backburner.effects'::regclass, "
        "'backburner.executors'::regclass, 'backburner.shards'::regclass)",
    )
    hot = {"seq", "iteration", "recorded_at", "progress", "usage", "last_activity_at", "progress_ordinal", "seen_at",
           "expires_at", "strikes"}  # fmt: skip
    assert not hot & {column for _, column in indexed}


def test_predicates_of_the_heads_indexes_do_not_change_with_every_append(database_url: str) -> None:
    predicates = _predicates(rows(database_url, "SELECT indexdef FROM pg_indexes WHERE tablename = 'run_heads'"))
    assert not [p for p in predicates if re.search(r"\b(seq|iteration|recorded_at|strikes)\b", p)]


def _predicates(definitions: Iterable[tuple[str]]) -> list[str]:
    return [text.partition(" WHERE ")[2] for (text,) in definitions if " WHERE " in text]
