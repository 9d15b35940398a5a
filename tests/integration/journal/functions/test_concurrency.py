"""Many connections at a time over few runs: order, time, no deadlock. The fixture checks every journal at the end."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
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


class Crowd:
    """Callers that know nothing of each other, on the same few runs; `outcomes` counts what they were told."""

    def __init__(self, at: Desk, runs: list[str]) -> None:
        self.at = at
        self.runs = runs
        self.requested: list[tuple[str, str]] = []
        self.outcomes: Counter[str] = Counter()
        at.iterations.update(dict.fromkeys(runs, 0))

    async def own(self, connection: Connection) -> None:
        """The next iteration of each run in one call: a request, and now and then a cancel of something old."""
        sent = [self._iteration(run_id) for run_id in self.runs]
        for item, answer in zip(sent, await self.at.call("append_v1", sent, on=connection), strict=True):
            self.outcomes[f"append {answer['outcome']}"] += 1
            if answer["outcome"] == "ok":
                self.at.iterations[item["run_id"]] += 1
                self.requested.append((item["run_id"], item["rows"][0]["effect_key"]))

    def _iteration(self, run_id: str) -> items.Item:
        number = self.at.iteration(run_id)
        key = f"k{number}"
        dispatch = items.dispatch(run_id, key, self.at.session_no) if number % 2 else None
        rows = [items.requested(run_id, key, max_attempts=2, dispatch=dispatch)]
        if number % 5 == 4:
            rows.append(items.cancel(run_id, f"k{number - 3}"))
        return self.at.appending(run_id, *rows)

    async def execute(self, rng: random.Random, connection: Connection) -> None:
        """Claims, then says all it can say of a handful of attempts, rightly or wrongly, twice."""
        await eventually(lambda: self.requested)
        await self.at.claim(3, on=connection)
        known = rng.sample(self.requested, min(4, len(self.requested)))
        for ref in known:
            statement = "UPDATE backburner.effects SET token_hash = sha256(%s) WHERE effect_id = %s AND attempt = 1"
            await connection.execute(statement, [items.token_of(*ref), items.effect_id(*ref)])
        for outcome in rng.sample(["succeeded", "failed", "cancelled"], 2):
            batch = [items.settled(*ref, outcome) for ref in known]
            for answer in await self.at.call("attempts_settle_v1", batch, on=connection):
                self.outcomes[f"settle {answer['outcome']}"] += 1
        await self.at.call("attempts_started_v1", [items.attempt_of(*ref) for ref in known], on=connection)

    async def disturb(self, rng: random.Random, connection: Connection) -> None:
        """Cancels, and losses that the owner declares, of what was asked for last."""
        await eventually(lambda: self.requested)
        for run_id, key in rng.sample(self.requested[-6:], min(2, len(self.requested))):
            if rng.random() < 0.3:
                await self.at.one("request_cancels_v1", items.cancel_request(run_id, key), on=connection)
            lost = items.lost(run_id, key, self.at.epoch(run_id), never_started=rng.random() < 0.5)
            told = await self.at.one("attempts_lost_v1", lost, on=connection)
            self.outcomes[f"lost {told['outcome']}"] += 1


@pytest.mark.invariant("I4", "I12", "I2", "I3")
async def test_everybody_writes_to_the_same_few_runs(at: Desk) -> None:
    """Owner, claims, executors, cancels, losses: seq dense, time forward, every projection as its rows say."""
    crowd = Crowd(at, [await at.create() for _ in range(3)])
    executors = [partial(crowd.execute, random.Random(seed)) for seed in (1, 2, 3)]
    others = [partial(crowd.disturb, random.Random(seed)) for seed in (4, 5)]
    await together(at, [crowd.own, crowd.own, *executors, *others])
    assert crowd.outcomes.keys() >= {"append ok", "settle ok", "lost ok"}, crowd.outcomes


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
        rng = random.Random(seed)

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
        rng = random.Random(seed)

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
        rng = random.Random(seed)

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
