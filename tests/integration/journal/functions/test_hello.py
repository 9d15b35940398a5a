"""Hellos that overtake each other on their way to the journal."""

from pathlib import Path
from typing import LiteralString

import pytest

import scheduler_service.journal
from scheduler_service.journal.statements import load_statements
from tests.integration.journal import items
from tests.integration.journal.desk import Desk, desk

_QUERIES = load_statements(Path(scheduler_service.journal.__file__).with_name("queries.sql"))


async def hello(at: Desk, incarnation: str, dial: int, *succeeds: str) -> int:
    """The number of the session; 0: refused."""
    return await at.hello("x", incarnation=incarnation, dial=dial, succeeds=list(succeeds))


async def test_a_sign_of_life_after_the_end_of_a_session_does_not_bring_it_back(database_url: str) -> None:
    """It was on its way when the stream broke."""
    async with desk(database_url) as at:
        session = await hello(at, "i1", 1)
        seen = f'[{{"executor_id": "x", "session_no": {session}, "state": "CONNECTED"}}]'
        await at.rows("SELECT backburner.executors_seen_v1(%s::jsonb)", seen)
        await at.rows("SELECT backburner.executor_gone_v1('x', %s)", session)
        await at.rows("SELECT backburner.executors_seen_v1(%s::jsonb)", seen)
        statement: LiteralString = "SELECT state FROM backburner.executors WHERE executor_id = 'x'"
        assert await at.rows(statement) == [{"state": "DISCONNECTED"}]
        await hello(at, "i1", 2)
        assert await at.rows(statement) == [{"state": "CONNECTED"}]


@pytest.mark.invariant("I3")
async def test_a_hello_that_a_later_one_has_overtaken_is_refused(database_url: str) -> None:
    """Found by simulation: its report is older than starts that came since, which were taken for never started."""
    async with desk(database_url) as at:
        first = await hello(at, "i1", 1)
        later = await hello(at, "i1", 3)
        assert later == first + 1
        assert await hello(at, "i1", 2) == 0
        assert await hello(at, "i1", 3) == later + 1, "every call may be repeated"
        assert await hello(at, "i1", 4) == later + 2


async def test_a_hello_of_an_incarnation_that_is_dead_is_refused(database_url: str) -> None:
    async with desk(database_url) as at:
        await hello(at, "i1", 5)
        second = await hello(at, "i2", 1, "i1")
        assert await hello(at, "i1", 6) == 0
        assert await hello(at, "i3", 1, "i2") == second + 1
        assert [await hello(at, dead, 9) for dead in ("i1", "i2")] == [0, 0]


async def test_an_executor_that_does_not_count_is_never_overtaken(database_url: str) -> None:
    async with desk(database_url) as at:
        numbers = [await at.hello(items.EXECUTOR) for _ in range(3)]
    assert numbers == sorted(set(numbers))
    assert 0 not in numbers


@pytest.mark.invariant("I13")
async def test_the_grace_of_what_an_earlier_incarnation_had_does_not_begin_anew_with_hellos(database_url: str) -> None:
    """An executor that is started over and over, and cannot say that the one before is dead, postponed its losses."""
    async with desk(database_url) as at:
        await at.running("a")
        await at.rows("UPDATE backburner.effects SET dispatched_at = clock_timestamp() - interval '1 hour' RETURNING 1")
        await at.rows("UPDATE backburner.executors SET seen_at = clock_timestamp() - interval '1 min' RETURNING 1")
        for number in range(3):
            await at.hello(incarnation=f"later-{number}")
            assert await _stranded(at, 30), "nobody has vouched for it for a minute"
            assert not await _stranded(at, 90), "it was vouched for an hour after its dispatch"


async def _stranded(at: Desk, grace_s: float) -> bool:
    async with at.another() as connection:
        cursor = await connection.execute(_QUERIES["stranded_attempts"], {"grace_s": grace_s})
        return bool(await cursor.fetchall())
