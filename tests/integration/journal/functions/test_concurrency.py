"""Many connections at a time over few runs: order, time, and no deadlock. The fixture checks every journal at the end."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import psycopg
import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Connection, Desk
from tests.support.eventually import eventually

pytestmark = pytest.mark.slow
ROUNDS = 40

Work = Callable[[Connection], Awaitable[Any]]


async def together(at: Desk, work: Iterable[Work], rounds: int = ROUNDS) -> None:
    """Each kind of work on a connection of its own, so many times. A deadlock would raise."""

    async def loop(one: Work) -> None:
        async with at.another() as connection:
            for _ in range(rounds):
                await one(connection)

    async with asyncio.TaskGroup() as group:
        for one in work:
            group.create_task(loop(one))


def chance(seed: int) -> random.Random:
    return random.Random(seed)


@pytest.mark.invariant("I4", "I12", "I2", "I3")
async def test_everybody_writes_to_the_same_few_runs(at: Desk) -> None:
    """Owner, claims, executors, cancels, losses: seq dense, time forward, every projection as its rows say."""
    runs = [await at.create() for _ in range(3)]
    requested: list[tuple[str, str]] = []
    outcomes: Counter[str] = Counter()

    async def own(connection: Connection) -> None:
        """Three iterations in one call, each of one request and one cancel of something old."""
        sent = []
        for run_id in runs:
            key = f"k{at.iteration(run_id)}"
            rows = [items.requested(run_id, key, max_attempts=2)]
            if at.iteration(run_id) % 5 == 4:
                rows.append(items.cancel(run_id, f"k{at.iteration(run_id) - 3}"))
            sent.append(at.appending(run_id, *rows))
        for item, answer in zip(sent, await at.call("append_v1", sent, on=connection), strict=True):
            outcomes[f"append {answer['outcome']}"] += 1
            if answer["outcome"] == "ok":
                at.iterations[item["run_id"]] += 1
                requested.append((item["run_id"], item["rows"][0]["effect_key"]))

    at.iterations.update(dict.fromkeys(runs, 0))

    def execute(seed: int) -> Work:
        rng = chance(seed)

        async def act(connection: Connection) -> None:
            """Claims, then says all it can say of a handful of attempts, rightly or wrongly, twice."""
            await eventually(lambda: requested)
            await at.claim(3, on=connection)
            known = rng.sample(requested, min(4, len(requested)))
            for run_id, key in known:
                token = items.token_of(run_id, key, 1)
                statement = "UPDATE backburner.effects SET token_hash = sha256(%s) WHERE effect_id = %s AND attempt = 1"
                await connection.execute(statement, [token, items.effect_id(run_id, key)])
            for outcome in rng.sample(["succeeded", "failed", "cancelled"], 2):
                batch = [items.settled(*ref, outcome) for ref in known]
                for answer in await at.call("attempts_settle_v1", batch, on=connection):
                    outcomes[f"settle {answer['outcome']}"] += 1
            await at.call("attempts_started_v1", [items.attempt_of(*ref) for ref in known], on=connection)

        return act

    def disturb(seed: int) -> Work:
        rng = chance(seed)

        async def act(connection: Connection) -> None:
            """Cancels, and losses that the owner declares, of what was asked for last."""
            await eventually(lambda: requested)
            for run_id, key in rng.sample(requested[-6:], min(2, len(requested))):
                if rng.random() < 0.3:
                    await at.one("request_cancels_v1", items.cancel_request(run_id, key), on=connection)
                lost = items.lost(run_id, key, at.epoch(run_id), never_started=rng.random() < 0.5)
                outcomes[f"lost {(await at.one('attempts_lost_v1', lost, on=connection))['outcome']}"] += 1

        return act

    await together(at, [own, own, execute(1), execute(2), execute(3), disturb(4), disturb(5)])
    assert outcomes["append ok"] and outcomes["settle ok"] and outcomes["lost ok"], outcomes


@pytest.mark.invariant("I6")
async def test_claims_and_cancels_do_not_deadlock(at: Desk) -> None:
    """Claims go through the queue, cancels come from the head: what is cancelled is never dispatched afterwards."""
    runs = [await at.create() for _ in range(6)]
    keys = [f"k{n}" for n in range(30)]
    for run_id in runs:
        await at.request(run_id, *keys)

    async def claim(connection: Connection) -> None:
        await at.claim(5, on=connection)

    def cancel(seed: int) -> Work:
        rng = chance(seed)

        async def act(connection: Connection) -> None:
            batch = [items.cancel_request(run_id, rng.choice(keys)) for run_id in rng.sample(runs, 4)]
            await at.call("request_cancels_v1", batch, on=connection)

        return act

    await together(at, [claim, claim, cancel(1), cancel(2), cancel(3)])
    for run_id in runs:
        over = set()
        for row in await at.journal(run_id):
            assert not (row["type"] == "EFFECT_DISPATCHED" and row["effect_key"] in over)
            if row["type"] == "EFFECT_CANCELLED":
                over.add(row["effect_key"])


@pytest.mark.invariant("I3")
async def test_readoptions_and_settlements_do_not_deadlock(at: Desk) -> None:
    """Both go over effects of many runs in one call; runs and effects are numbered in opposite orders."""
    runs = [await at.running(*(f"k{n}" for n in range(10))) for _ in range(4)]
    everything = [(run_id, f"k{n}") for run_id in runs for n in range(10)]

    def adopt(seed: int) -> Work:
        rng = chance(seed)

        async def act(connection: Connection) -> None:
            sent = [
                items.attempt_of(*ref) | {
                    "executor_id": items.EXECUTOR, "incarnation": items.INCARNATION, "session_no": at.session_no,
                }
                for ref in rng.sample(everything, 12)
            ]  # fmt: skip
            await at.call("readopt_v1", sent, on=connection)

        return act

    def report(seed: int) -> Work:
        rng = chance(seed)

        async def act(connection: Connection) -> None:
            batch = rng.sample(everything, 12)
            if rng.random() < 0.2:
                await at.call("attempts_settle_v1", [items.settled(*ref) for ref in batch[:2]], on=connection)
            said = [items.attempt_of(*ref) | {"ordinal": rng.randrange(9), "durable": True} for ref in batch]
            await at.call("attempts_progress_v1", said, on=connection)
            await at.call("attempts_started_v1", said, on=connection)

        return act

    await together(at, [adopt(1), adopt(2), report(3), report(4), report(5)])


@pytest.mark.invariant("I12")
async def test_time_in_a_run_does_not_go_back_with_the_clock(at: Desk) -> None:
    """After a failover to a server whose clock is behind: every function stamps the head's time or a later one."""
    run_id = await at.running("settled", "failed", "lost", "cancelled", "told", max_attempts=2)
    await at.request(run_id, "waits", kind="EXTERNAL", capabilities=[], pool="")
    await at.rows("UPDATE backburner.run_heads SET recorded_at = clock_timestamp() + interval '1 hour' RETURNING 1")
    before = (await at.head(run_id))["recorded_at"]
    await at.call("attempts_started_v1", [items.attempt_of(run_id, "told")])
    await at.call("attempts_progress_v1", [items.attempt_of(run_id, "told") | {"ordinal": 1, "durable": True}])
    await at.settle(run_id, "settled")
    await at.settle(run_id, "failed", "failed")
    await at.lose(run_id, "lost")
    for key in ("cancelled", None):
        await at.one("request_cancels_v1", items.cancel_request(run_id, key))
    await at.one("resolve_external_v1", items.answer(run_id, "waits"))
    await at.append(run_id, items.requested(run_id, "late"), items.row("TIMER_FIRED", 0, ordinal=1))
    await at.rows("UPDATE backburner.dispatch_queue SET not_before = '-infinity' RETURNING 1")
    assert len(await at.claim()) == 3
    later = [row for row in await at.journal(run_id) if row["recorded_at"] == before]
    assert {row["type"] for row in later} == {
        "EFFECT_STARTED", "EFFECT_PROGRESS", "EFFECT_RESOLVED", "EFFECT_ATTEMPT_FAILED", "EFFECT_ATTEMPT_LOST",
        "EFFECT_CANCEL_REQUESTED", "RUN_CANCEL_REQUESTED", "EFFECT_REQUESTED", "TIMER_FIRED", "EFFECT_DISPATCHED",
    }  # fmt: skip


@pytest.mark.invariant("I14", "I2")
async def test_backend_that_is_killed_in_the_middle_leaves_nothing_half_done(at: Desk) -> None:
    """The call waits for the head when its backend dies; its repetition is the first."""
    run_id = await at.running("a")
    async with at.another(autocommit=False) as holder, at.another() as victim:
        await holder.execute("SELECT 1 FROM backburner.run_heads WHERE run_id = %s FOR UPDATE", [run_id])
        pid = victim.info.backend_pid
        dying = asyncio.create_task(at.one("attempts_settle_v1", items.settled(run_id, "a"), on=victim))
        waits = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
        await eventually(lambda: at.rows(waits, pid))
        await at.rows("SELECT pg_terminate_backend(%s)", pid)
        with pytest.raises(psycopg.OperationalError):
            await dying
    assert await at.types(run_id) == ["EFFECT_REQUESTED", "EFFECT_DISPATCHED"]
    assert [(await at.settle(run_id, "a"))["outcome"] for _ in range(2)] == ["ok", "already"]
