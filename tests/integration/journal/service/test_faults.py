"""Answers of a Postgres that cannot serve right now: nothing is lost, nothing told as done, it goes on by itself."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from scheduler_service.journal import JournalRefused, JournalUnavailable, items, open_journal, writer
from scheduler_service.journal.errors import JournalMisconfigured
from tests.support.eventually import eventually
from tests.support.journal_items import OWNER, Scene, request_row, scene_at

PASSES: Final = (
    "53100", "53200", "53300", "53400", "40001", "40P01", "25006", "57014", "57P01", "57P02", "57P03", "58030", "08006",
)  # fmt: skip
MENDED: Final = {"42883": "backburner migrate", "42501": "roles.sql", "3D000": "DATABASE_URL", "28P01": "password"}
OURS: Final = "application_name LIKE 'backburner%' AND datname = current_database()"
#: Raises an error at each new row of the journal, with a SQLSTATE that is written into a table.
TRIGGER: Final = """
    CREATE TABLE public.fault (state text);
    CREATE FUNCTION public.raise_fault() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    DECLARE f record;
    BEGIN
        FOR f IN SELECT state FROM public.fault LOOP
            RAISE EXCEPTION USING ERRCODE = f.state, MESSAGE = 'made by a test';
        END LOOP;
        RETURN NEW;
    END $$;
    CREATE TRIGGER fault BEFORE INSERT ON backburner.journal FOR EACH ROW EXECUTE FUNCTION public.raise_fault();
"""


@pytest.fixture
def scene(database_url: str) -> Iterator[Scene]:
    with scene_at(database_url) as scene:
        scene.connection.execute(TRIGGER)
        yield scene


@contextmanager
def faulty(scene: Scene, state: str) -> Iterator[None]:
    scene.query("INSERT INTO public.fault VALUES (%s)", state)
    try:
        yield
    finally:
        scene.query("DELETE FROM public.fault")


def append(run_id: str, key: str, iteration: int = 1) -> items.Append:
    return items.Append(run_id=run_id, epoch=0, iteration=iteration, actor=OWNER, rows=[request_row(key)])


def keys(scene: Scene, run_id: str) -> list[str]:
    rows = scene.query(
        "SELECT effect_key FROM backburner.journal WHERE run_id = %s AND type = 'EFFECT_REQUESTED' ORDER BY seq", run_id
    )
    return [row["effect_key"] for row in rows]


def tries(caplog: pytest.LogCaptureFixture) -> Callable[[], bool]:
    return lambda: any("trying again" in record.message for record in caplog.records)


@pytest.mark.invariant("I6", "I14")
@pytest.mark.parametrize("state", PASSES)
async def test_what_passes_is_waited_for(scene: Scene, caplog: pytest.LogCaptureFixture, state: str) -> None:
    run_id = scene.run()
    async with open_journal(scene.dsn, scheduler_id="s1") as journal:
        with faulty(scene, state):
            waiting = asyncio.create_task(journal.append(append(run_id, "a")))
            await eventually(tries(caplog))
            assert not waiting.done()
            assert keys(scene, run_id) == []
        assert (await waiting).outcome == "ok"
    assert keys(scene, run_id) == ["a"]


@pytest.mark.invariant("I6", "I11")
@pytest.mark.parametrize("state", ["53100", *MENDED])
async def test_what_does_not_pass_is_in_doubt_and_never_refused(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Refused, a run would be parked; an operator who mends the database finds all of them going on."""
    monkeypatch.setattr(writer, "ITEM_SECONDS", 0.3)
    run_id = scene.run()
    async with open_journal(scene.dsn, scheduler_id="s1") as journal:
        with faulty(scene, state):
            with pytest.raises(JournalUnavailable) as caught:
                await journal.append(append(run_id, "a"))
            assert isinstance(caught.value, JournalMisconfigured) == (state in MENDED)
            assert MENDED.get(state, state) in str(caught.value)
        assert (await journal.append(append(run_id, "a"))).outcome == "ok"
    assert keys(scene, run_id) == ["a"]


async def test_what_says_something_about_the_call_is_refused_at_once(scene: Scene) -> None:
    run_id = scene.run()
    async with open_journal(scene.dsn, scheduler_id="s1") as journal:
        with faulty(scene, "22012"), pytest.raises(JournalRefused):
            await journal.append(append(run_id, "a"))


@asynccontextmanager
async def read_only(dsn: str) -> AsyncIterator[None]:
    name = sql.Identifier(urlsplit(dsn).path.lstrip("/"))
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
        await connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OURS}")
        try:
            yield
        finally:
            await connection.execute("SET default_transaction_read_only = off")
            await connection.execute(sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name))


@pytest.mark.invariant("I6")
async def test_a_read_only_phase_is_read_in_and_waited_for(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    run_id = scene.run()
    async with open_journal(scene.dsn, scheduler_id="s1") as journal:
        async with read_only(scene.dsn):
            waiting = asyncio.create_task(journal.append(append(run_id, "a")))
            await eventually(tries(caplog))
            assert len(await journal.read_events(run_id, 0, 10)) == 1
            assert not waiting.done()
        assert (await waiting).outcome == "ok"


async def test_reads_do_not_meet_connections_that_the_server_has_ended(scene: Scene) -> None:
    """Else every restart would cost as many calls as connections were idle."""
    run_id = scene.run()
    async with open_journal(scene.dsn, scheduler_id="s1") as journal:
        for _ in range(3):
            await asyncio.gather(*(journal.read_events(run_id, 0, 10) for _ in range(20)))
            scene.query(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OURS}")
            await eventually(lambda: not scene.query(f"SELECT pid FROM pg_stat_activity WHERE {OURS}"))
        assert len(await journal.read_events(run_id, 0, 10)) == 1


async def test_the_connections_have_limits(scene: Scene) -> None:
    async with open_journal(scene.dsn, scheduler_id="s1") as journal, journal.connection() as connection:
        names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        for name in names:
            row = await (await connection.execute("SELECT current_setting(%s) AS it", [name])).fetchone()
            assert row is not None
            assert row["it"] not in ("", "0"), name
