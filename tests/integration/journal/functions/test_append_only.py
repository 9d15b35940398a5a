"""The journal cannot be changed, by anybody, and the constraints repeat what the functions promise."""

from typing import LiteralString

import psycopg
import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk

CHANGES = [
    "UPDATE backburner.journal SET data = '{}'",
    "UPDATE backburner.journal SET seq = seq + 100 WHERE false",
    "DELETE FROM backburner.journal",
    "DELETE FROM backburner.journal WHERE false",
    "TRUNCATE backburner.journal",
    "MERGE INTO backburner.journal j USING (SELECT 1) x ON true WHEN MATCHED THEN DELETE",
    "INSERT INTO backburner.journal SELECT * FROM backburner.journal "
    "ON CONFLICT (run_id, seq) DO UPDATE SET data = '{}'",
]


@pytest.mark.invariant("I4")
@pytest.mark.parametrize("change", CHANGES)
async def test_not_even_the_owner_changes_a_row(at: Desk, change: LiteralString) -> None:
    run_id = await at.running("a")
    before = await at.journal(run_id)
    with pytest.raises(psycopg.DatabaseError) as refused:
        await at.connection.execute(change)
    assert refused.value.sqlstate == "BB001"
    assert await at.journal(run_id) == before


def row(run_id: str, seq: int, type_: str, attempt: int = 1) -> LiteralString:
    """A row as a broken function would insert it."""
    effect = items.effect_id(run_id, "a")
    return (  # the values are the test's own
        "INSERT INTO backburner.journal (run_id, seq, type, effect_id, effect_key, attempt, recorded_at, writer, data) "
        f"VALUES ('{run_id}', {seq}, '{type_}', '{effect}', 'a', {attempt}, now(), 'broken', '{{}}')"  # type: ignore[misc, unused-ignore]
    )


@pytest.mark.invariant("I2", "I3", "I4")
@pytest.mark.parametrize(
    ("seq", "type_", "constraint"),
    [
        (4, "PROCESS_LOG", "journal_pkey"),
        (0, "PROCESS_LOG", "journal_seq_check"),
        (9, "SOMETHING_ELSE", "known_type"),
        (9, "EFFECT_CANCELLED", "journal_settles_once"),
        (9, "EFFECT_RESOLVED", "journal_settles_once"),
        (9, "EFFECT_DISPATCHED", "journal_dispatches_once"),
    ],
)
async def test_row_that_no_function_would_write_is_refused_by_a_constraint(
    at: Desk, seq: int, type_: str, constraint: str
) -> None:
    run_id = await at.running("a")
    await at.settle(run_id, "a")
    with pytest.raises(psycopg.IntegrityError) as refused:
        await at.connection.execute(row(run_id, seq, type_))
    assert refused.value.diag.constraint_name == constraint


@pytest.mark.invariant("I2")
@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("UPDATE backburner.effects SET state = 'SUCCEEDED'", "settled_exactly_when_terminal"),
        ("UPDATE backburner.effects SET settled_seq = 3", "settled_exactly_when_terminal"),
        ("UPDATE backburner.effects SET state = 'ELSEWHERE'", "effects_state_check"),
        ("UPDATE backburner.effects SET executor_id = NULL", "live_attempts_have_an_executor"),
        ("UPDATE backburner.effects SET attempt = 0", "live_attempts_have_an_executor"),
        ("UPDATE backburner.runs SET state = 'COMPLETED'", "ended_exactly_when_terminal"),
        ("UPDATE backburner.runs SET ended_at = now()", "ended_exactly_when_terminal"),
        ("UPDATE backburner.runs SET state = 'ELSEWHERE'", "runs_state_check"),
    ],
)
async def test_projection_that_contradicts_itself_is_refused(at: Desk, change: LiteralString, constraint: str) -> None:
    await at.running("a")
    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        await at.connection.execute(change)
    assert refused.value.diag.constraint_name == constraint
