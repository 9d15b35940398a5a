"""Group commit: one outcome an item, whatever becomes of the others, the caller, or the connection."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from scheduler_service.journal import (
    Append,
    CancelRequest,
    CreateRun,
    Journal,
    JournalRefused,
    JournalUnavailable,
    LostAttempt,
    open_journal,
    writer,
)
from tests.integration.journal import items
from tests.integration.journal.desk import Desk, Row
from tests.support.eventually import eventually
from tests.support.postgres import DisposablePostgres

LOG = items.row("PROCESS_LOG", 1, message="here")
WRITERS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'backburner %%'"
)


def append_of(item: Row) -> Append:
    return Append(**item)


def creation(run_id: str = "", **fields: Any) -> CreateRun:
    item = items.created(run_id or str(uuid.uuid4()), **fields)
    del item["owner"]
    return CreateRun(**item)


@pytest.fixture
def calls(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many items each call of append_v1 carried."""
    sizes: list[int] = []
    genuine = journal._append._call

    async def counting(batch: Sequence[Any]) -> list[Row]:
        sizes.append(len(batch))
        return await genuine(batch)

    monkeypatch.setattr(type(journal._append), "_call", lambda self, batch: counting(batch))
    return sizes


async def test_what_waits_goes_in_one_commit(at: Desk, journal: Journal, calls: list[int]) -> None:
    runs = [await at.create() for _ in range(100)]
    told = await asyncio.gather(*(journal.append(append_of(at.appending(run_id, LOG))) for run_id in runs))
    assert {t.outcome for t in told} == {"ok"}
    assert len(calls) <= 2, calls


@pytest.mark.invariant("I5")
async def test_stale_item_does_not_fail_the_199_others(at: Desk, journal: Journal) -> None:
    runs = [await at.create() for _ in range(200)]
    sent = [at.appending(run_id, LOG, **({"epoch": 99} if n == 77 else {})) for n, run_id in enumerate(runs)]
    told = await asyncio.gather(*(journal.append(append_of(item)) for item in sent))
    assert [n for n, t in enumerate(told) if t.outcome != "ok"] == [77]
    assert told[77].outcome == "stale_epoch"


async def test_item_that_fails_its_batch_is_found_and_fails_alone(at: Desk, journal: Journal) -> None:
    """A key asked for twice violates a constraint: the call raises, and is halved until the culprit stands alone."""
    runs = [await at.create() for _ in range(50)]
    for run_id in runs:
        await at.request(run_id, "a")
    rows = [items.requested(run_id, "a" if n in (7, 31) else "b") for n, run_id in enumerate(runs)]
    sent = [journal.append(append_of(at.appending(run_id, row))) for run_id, row in zip(runs, rows, strict=True)]
    told = await asyncio.gather(*sent, return_exceptions=True)
    failed = [n for n, t in enumerate(told) if isinstance(t, BaseException)]
    assert failed == [7, 31]
    error = told[7]
    assert isinstance(error, JournalRefused)
    assert error.sqlstate == "23505"
    assert [len(await at.types(run_id)) for run_id in runs] == [1 if n in (7, 31) else 2 for n in range(50)]


@pytest.mark.parametrize("bad", [{"run_id": "no uuid"}, {"rows": [{"type": "NO_SUCH_TYPE", "data": {}}]}], ids=str)
async def test_malformed_item_is_refused_and_the_writer_goes_on(at: Desk, journal: Journal, bad: Row) -> None:
    run_id, other = await at.create(), await at.create()
    told = await asyncio.gather(
        journal.append(append_of(at.appending(run_id, LOG) | bad)),
        journal.append(append_of(at.appending(other, LOG))),
        return_exceptions=True,
    )
    assert isinstance(told[0], JournalRefused)
    assert getattr(told[1], "outcome", told[1]) == "ok"


async def test_hot_run_does_not_hold_up_the_others(at: Desk, journal: Journal) -> None:
    """Its item comes back busy, is tried again with the next batches, and waits alone in the end."""
    hot, *others = [await at.create() for _ in range(20)]
    async with at.another(autocommit=False) as holder:
        await holder.execute("SELECT 1 FROM backburner.run_heads WHERE run_id = %s FOR UPDATE", [hot])
        waiting = asyncio.create_task(journal.append(append_of(at.appending(hot, LOG))))
        rest = [journal.append(append_of(at.appending(run_id, LOG))) for run_id in others]
        done = await asyncio.wait_for(asyncio.gather(*rest), 30)
        assert {t.outcome for t in done} == {"ok"}
        assert not waiting.done()
    assert (await waiting).outcome == "ok"


async def test_cancelled_caller_loses_its_answer_and_nothing_else(at: Desk, journal: Journal) -> None:
    run_id = await at.create()
    async with at.another(autocommit=False) as holder:
        await holder.execute("SELECT 1 FROM backburner.run_heads WHERE run_id = %s FOR UPDATE", [run_id])
        asked = append_of(at.appending(run_id, LOG))
        caller = asyncio.create_task(journal.append(asked))
        await asyncio.sleep(0.05)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    assert await eventually(lambda: at.types(run_id)) == ["PROCESS_LOG"]
    assert (await journal.append(asked)).outcome == "already"
    assert (await journal.append(append_of(at.appending(run_id, LOG)))).outcome == "stale_iteration"


@pytest.mark.invariant("I11")
async def test_writer_has_a_bound(at: Desk, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = await at.create()
    monkeypatch.setattr(writer, "WAITING_MAX", 2)
    async with at.another(autocommit=False) as holder:
        await holder.execute("SELECT 1 FROM backburner.run_heads WHERE run_id = %s FOR UPDATE", [run_id])
        sent = [asyncio.create_task(journal.append(append_of(at.appending(run_id, LOG)))) for _ in range(5)]
        done, _ = await asyncio.wait(sent, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        assert done
        for task in done:
            assert isinstance(task.exception(), JournalUnavailable)
    assert {(await task).outcome for task in sent if task not in done} <= {"ok", "stale_iteration"}


async def test_stopped_writer_says_that_the_fate_is_unknown(at: Desk) -> None:
    run_id = await at.create()
    async with at.another(autocommit=False) as holder:
        await holder.execute("SELECT 1 FROM backburner.run_heads WHERE run_id = %s FOR UPDATE", [run_id])
        async with open_journal(at.dsn, scheduler_id="s9") as journal:
            waiting = asyncio.create_task(journal.append(append_of(at.appending(run_id, LOG))))
            await asyncio.sleep(0.05)
        with pytest.raises(JournalUnavailable):
            await waiting


# -- the connection dies -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.invariant("I6", "I14", "I4")
async def test_killed_backends_lose_nothing_that_was_acknowledged_and_apply_nothing_twice(
    at: Desk, journal: Journal
) -> None:
    runs = [await at.create() for _ in range(10)]
    acknowledged: dict[str, int] = dict.fromkeys(runs, 0)
    stop = asyncio.Event()

    async def own(run_id: str) -> None:
        while not stop.is_set() or acknowledged[run_id] < 5:
            number = acknowledged[run_id] + 1
            row = items.row("PROCESS_LOG", 1, number=number)
            told = await journal.append(append_of(at.appending(run_id, row, iteration=number)))
            assert told.outcome in ("ok", "already")
            acknowledged[run_id] = number

    async def kill() -> None:
        for _ in range(15):
            await asyncio.sleep(0.05)
            for victim in await at.rows(WRITERS):
                await at.rows("SELECT pg_terminate_backend(%s)", victim["pid"])
        stop.set()

    await asyncio.gather(kill(), *(own(run_id) for run_id in runs))
    for run_id in runs:
        numbers = [row["data"]["number"] for row in (await at.journal(run_id))[1:]]
        assert numbers == list(range(1, acknowledged[run_id] + 1))


async def killed_while_it_waits(at: Desk, run_id: str, call: Callable[[], Awaitable[Any]]) -> str:
    """The outcome of a call whose backend is killed while it waits for the run's head, and which then waits again."""
    stuck = WRITERS + " AND wait_event_type = 'Lock' AND pid <> %s"
    async with at.another(autocommit=False) as holder:
        await holder.execute("SELECT 1 FROM backburner.run_heads WHERE run_id = %s FOR UPDATE", [run_id])
        waiting = asyncio.ensure_future(call())
        [victim] = await eventually(lambda: at.rows(stuck, 0))
        await at.rows("SELECT pg_terminate_backend(%s)", victim["pid"])
        await eventually(lambda: at.rows(stuck, victim["pid"]))
    return str((await waiting).outcome)


@pytest.mark.slow
@pytest.mark.invariant("I14")
async def test_every_call_outlives_its_connection(at: Desk, journal: Journal) -> None:
    run_id = await at.running("a", max_attempts=1)
    await at.request(run_id, "b", kind="EXTERNAL", capabilities=[], pool="")
    lost = LostAttempt(**items.lost(run_id, "a", at.epoch(run_id)))
    cancel = CancelRequest(**items.cancel_request(run_id, "b"))
    assert await killed_while_it_waits(at, run_id, lambda: journal.attempts_lost(lost)) == "ok"
    assert await killed_while_it_waits(at, run_id, lambda: journal.request_cancel(cancel)) == "ok"
    created = creation(key="k")
    first, again = await journal.create_run(created), await journal.create_run(created)
    assert (first.run_id, first.created) == (again.run_id, again.created) == (created.run_id, True)


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.invariant("I6")
async def test_writes_wait_for_a_server_that_is_away(postgres_server: DisposablePostgres) -> None:
    await postgres_server.migrate()
    async with open_journal(postgres_server.dsn, scheduler_id="s1") as journal:
        assert (await journal.create_run(creation())).created
        postgres_server.kill()
        waiting = asyncio.create_task(journal.create_run(creation(key="k")))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        postgres_server.start()
        assert (await asyncio.wait_for(waiting, 30)).outcome == "ok"


@pytest.mark.slow
@pytest.mark.crash
async def test_patience_ends_with_an_unknown_fate(
    postgres_server: DisposablePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    await postgres_server.migrate()
    monkeypatch.setattr(writer, "ITEM_SECONDS", 0.5)
    async with open_journal(postgres_server.dsn, scheduler_id="s1") as journal:
        postgres_server.kill()
        with pytest.raises(JournalUnavailable):
            await asyncio.wait_for(journal.create_run(creation()), 30)
        with pytest.raises(JournalUnavailable):
            await asyncio.wait_for(journal.read_events(items.NOWHERE, 0, 10), 30)
