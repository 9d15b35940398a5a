"""Heads in id order, then effects in id order, then queue rows: seen from outside, while a call waits for a lock.

One session holds a row. The call under test comes to it and waits (or, about many runs, hands it back). A third session
then tries with NOWAIT which other rows the waiting call has locked already.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, LiteralString

import psycopg
import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk, desk
from tests.support.eventually import eventually

LOW, HIGH = "00000000-0000-4000-8000-000000000001", "ffffffff-ffff-4fff-bfff-fffffffffff1"
HEAD: Final = "SELECT 1 FROM backburner.run_heads WHERE run_id = %s FOR UPDATE"
EFFECT: Final = "SELECT 1 FROM backburner.effects WHERE effect_id = %s FOR UPDATE"
QUEUE: Final = "SELECT 1 FROM backburner.dispatch_queue WHERE run_id = %s FOR UPDATE"

#: Calls about effects of runs: function, and its item for one effect.
Make = Callable[[Desk, str, str], items.Item]
CALLS: Final[dict[str, tuple[LiteralString, Make]]] = {
    "append": ("append_v1", lambda at, run, key: at.appending(run, items.cancel(run, key))),
    "cancel": ("request_cancels_v1", lambda _, run, key: items.cancel_request(run, key)),
    "resolve": ("resolve_external_v1", lambda _, run, key: items.answer(run, key)),
    "lost": ("attempts_lost_v1", lambda at, run, key: items.lost(run, key, at.epoch(run))),
    "settle": ("attempts_settle_v1", lambda _, run, key: items.settled(run, key)),
    "started": ("attempts_started_v1", lambda _, run, key: items.attempt_of(run, key)),
    "progress": (
        "attempts_progress_v1",
        lambda _, run, key: items.attempt_of(run, key) | {"ordinal": 1, "durable": True},
    ),
}
#: The same about client-driven runs, which calls of clients need.
CLIENT_CALLS: Final[dict[str, tuple[LiteralString, Make]]] = {
    "client_start": ("open_clients_v1", lambda _, run, key: items.client_start(run)),
    "client_request": ("client_requests_v1", lambda _, run, key: items.client_request(run, f"{key}/more")),
    "finish": ("finish_runs_v1", lambda _, run, key: items.finish(run, state="FAILED")),
    "halt_idle": ("halt_idle_v1", lambda at, run, key: items.idle(run, at.epoch(run))),
}
ALL_CALLS: Final = CALLS | CLIENT_CALLS
READOPT: Final[tuple[LiteralString, Make]] = (
    "readopt_v1",
    lambda at, run, key: (
        items.attempt_of(run, key)
        | {"executor_id": items.EXECUTOR, "incarnation": items.INCARNATION, "session_no": at.session_no}
    ),
)
#: These answer `busy` for a head that is held, when they are about many runs. The others wait, in id order.
SKIPPING: Final = {"append", "cancel", "resolve", "lost", "settle", *CLIENT_CALLS}


@pytest.fixture
async def at(database_url: str) -> AsyncIterator[Desk]:
    async with desk(database_url) as made:
        for run_id in (LOW, HIGH):
            await made.create(run_id, client_driven=True, start_id="first", idle_timeout_s=3600.0)
            await made.request(run_id, "a", "b", fast=True)
            await made.request(run_id, "queued")
        yield made


@asynccontextmanager
async def holding(at: Desk, statement: LiteralString, row: str) -> AsyncIterator[None]:
    """Somebody else has the row."""
    async with at.another(autocommit=False) as holder:
        await holder.execute(statement, [row])
        yield


@asynccontextmanager
async def waiting(at: Desk, function: LiteralString, sent: Any) -> AsyncIterator[None]:
    """A call that has come to the held row and waits for it."""
    async with at.another() as caller:
        call = asyncio.create_task(at.call(function, sent, on=caller))
        stuck = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
        try:
            await eventually(lambda: at.rows(stuck, caller.info.backend_pid), message=lambda: f"{function}: {call}")
            yield
        finally:
            await at.rows("SELECT pg_terminate_backend(%s)", caller.info.backend_pid)
            await asyncio.gather(call, return_exceptions=True)


async def is_free(at: Desk, statement: LiteralString, row: str) -> bool:
    """True when nobody has the row locked."""
    async with at.another(autocommit=False) as probe:
        try:
            await probe.execute(statement + " NOWAIT", [row])
        except psycopg.errors.LockNotAvailable:
            return False
        return True


@pytest.mark.parametrize("name", ALL_CALLS)
async def test_effect_and_queue_row_are_not_locked_before_the_head(at: Desk, name: str) -> None:
    function, make = ALL_CALLS[name]
    async with holding(at, HEAD, LOW), waiting(at, function, [make(at, LOW, "a")]):
        assert await is_free(at, EFFECT, items.effect_id(LOW, "a"))
        assert await is_free(at, QUEUE, LOW)


@pytest.mark.parametrize("name", sorted(set(ALL_CALLS) - SKIPPING))
async def test_heads_are_locked_in_id_order_whatever_order_was_sent(at: Desk, name: str) -> None:
    function, make = ALL_CALLS[name]
    async with holding(at, HEAD, LOW), waiting(at, function, [make(at, HIGH, "a"), make(at, LOW, "a")]):
        assert await is_free(at, HEAD, HIGH)
        assert await is_free(at, EFFECT, items.effect_id(HIGH, "a"))


@pytest.mark.parametrize("name", sorted(SKIPPING))
async def test_held_head_is_handed_back_with_its_effect_untouched(at: Desk, name: str) -> None:
    function, make = ALL_CALLS[name]
    held = items.effect_id(LOW, "a")
    async with holding(at, HEAD, LOW), holding(at, EFFECT, held), asyncio.timeout(30):
        answers = await at.call(function, [make(at, HIGH, "a"), make(at, LOW, "a")])
    assert [a["outcome"] for a in answers][1] == "busy"


@pytest.mark.parametrize("name", ["append", "cancel", "lost", "settle", "started", "progress"])
async def test_effects_of_a_run_are_locked_in_id_order(at: Desk, name: str) -> None:
    low, high = sorted(("a", "b"), key=lambda key: items.effect_id(LOW, key))
    function, make = ALL_CALLS[name]
    sent = [make(at, LOW, high), make(at, LOW, low)]
    if name == "append":
        sent = [at.appending(LOW, items.cancel(LOW, high), items.cancel(LOW, low))]
    async with holding(at, EFFECT, items.effect_id(LOW, low)), waiting(at, function, sent):
        assert await is_free(at, EFFECT, items.effect_id(LOW, high))
        assert not await is_free(at, HEAD, LOW)


async def test_readoption_goes_over_effects_in_the_order_in_which_the_others_do(at: Desk) -> None:
    """It takes no head: by run, then by id, is what keeps it from crossing the calls that do."""
    function, make = READOPT
    for low, high in (((LOW, "a"), (HIGH, "a")), ((LOW, "b"), (HIGH, "b"))):
        async with holding(at, EFFECT, items.effect_id(*low)), waiting(at, function, [make(at, *high), make(at, *low)]):
            assert await is_free(at, EFFECT, items.effect_id(*high))


async def test_claim_leaves_a_held_head_and_touches_nothing_of_it(at: Desk) -> None:
    async with holding(at, HEAD, LOW), holding(at, EFFECT, items.effect_id(LOW, "queued")), asyncio.timeout(30):
        taken = await at.claim()
    assert [str(row["run_id"]) for row in taken if row["token_index"] >= 0] == [HIGH]


async def test_claim_locks_no_queue_row_before_its_head_and_effect(at: Desk) -> None:
    async with holding(at, EFFECT, items.effect_id(LOW, "queued")), at.another() as caller:
        call = asyncio.create_task(at.claim(on=caller))
        stuck = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
        await eventually(lambda: at.rows(stuck, caller.info.backend_pid))
        assert await is_free(at, QUEUE, LOW)
        assert await is_free(at, HEAD, HIGH)
        await at.rows("SELECT pg_terminate_backend(%s)", caller.info.backend_pid)
        await asyncio.gather(call, return_exceptions=True)
