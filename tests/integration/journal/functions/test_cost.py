"""What a call costs does not depend on how long the run's history is: index entries read are counted, not seconds."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, LiteralString

import pytest

from tests.integration.journal import items
from tests.integration.journal.desk import Desk

HISTORY: Final = 5_000
#: Index entries that a call about one effect may read; a call that walks the history reads all of its thousands. A few
#: hundred are left for rows of the queue that are gone, while other sessions of a shared server keep them visible.
MOST: Final = 1_000
READ: Final[LiteralString] = (
    "SELECT coalesce(sum(idx_tup_read), 0)::int AS entries, "
    "(SELECT coalesce(sum(seq_tup_read), 0)::int FROM pg_stat_user_tables "
    " WHERE relname IN ('journal', 'effects')) AS seq "
    "FROM pg_stat_user_indexes WHERE relname IN ('journal', 'effects', 'dispatch_queue', 'run_heads', 'run_groups')"
)

CALLS: Final[dict[str, Callable[[Desk, str, str], Awaitable[Any]]]] = {
    "append": lambda at, run, key: at.request(run, f"{key} again", fast=True),
    "settle": lambda at, run, key: at.settle(run, key),
    "fail": lambda at, run, key: at.settle(run, key, "failed"),
    "lose": lambda at, run, key: at.lose(run, key),
    "start": lambda at, run, key: at.one("attempts_started_v1", items.attempt_of(run, key)),
    "cancel": lambda at, run, key: at.one("request_cancels_v1", items.cancel_request(run, key)),
    "claim": lambda at, run, _: at.claim(1),
}


async def entries_read(at: Desk) -> int:
    await at.rows("SELECT pg_stat_force_next_flush()")
    [row] = await at.rows(READ)
    return int(row["entries"]) + int(row["seq"])


async def long_run(at: Desk) -> str:
    """A run with a history, and effects of every kind that a call may be about."""
    run_id = await at.create()
    for n in range(0, HISTORY, 1000):
        keys = [f"h{n + m}" for m in range(500)]
        await at.request(run_id, *keys, fast=True)
        await at.call("attempts_settle_v1", [items.settled(run_id, key) for key in keys])
    await at.request(
        run_id, *CALLS, *(f"{name} warm {n}" for name in CALLS for n in range(8)), fast=True, max_attempts=2
    )
    await at.request(run_id, *(f"queued {n}" for n in range(20)))
    return run_id


@pytest.mark.slow
@pytest.mark.parametrize(
    "analysed",
    [
        pytest.param(False, id="no statistics"),
        pytest.param(True, id="statistics"),
    ],
)
async def test_call_about_one_effect_does_not_read_the_history(at: Desk, analysed: bool) -> None:
    run_id = await long_run(at)
    if analysed:
        await at.connection.execute("ANALYZE")
    cost: dict[str, int] = {}
    for name, call in CALLS.items():
        for n in range(8):  # past the point at which plans are kept
            await call(at, run_id, f"{name} warm {n}")
        before = await entries_read(at)
        await call(at, run_id, name)
        cost[name] = await entries_read(at) - before
    assert {name: read for name, read in cost.items() if read > MOST} == {}
