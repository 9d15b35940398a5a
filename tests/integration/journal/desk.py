"""The journal's SQL functions called step by step, each call one commit, as a scheduler and an executor would.

A desk is a scheduler that owns all shards and an executor with a session. Its calls go through one connection; a test
that needs two callers at a time opens more with `another`.
"""

import asyncio
import json
import secrets
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

from tests.integration.journal import items
from tests.integration.journal.items import Item
from tests.support.eventually import eventually

Row = dict[str, Any]
Connection = psycopg.AsyncConnection[Row]


class Desk:
    """What a test works with. Made by `desk`."""

    def __init__(self, dsn: str, connection: Connection) -> None:
        self.dsn = dsn
        self.connection = connection
        self.session_no = 0
        self.epochs: dict[int, int] = {}
        self.iterations: dict[str, int] = {}

    # -- calls --------------------------------------------------------------------------------------------------

    async def call(self, function: LiteralString, sent: Sequence[Item], *, on: Connection | None = None) -> list[Row]:
        """One call of an array function; its rows in the order of the items."""
        cursor = await (on or self.connection).execute(items.calling(function), [json.dumps(list(sent))])
        return sorted(await cursor.fetchall(), key=lambda row: row["ord"])

    async def one(self, function: LiteralString, item: Item, *, on: Connection | None = None) -> Row:
        """One call for one item."""
        [row] = await self.call(function, [item], on=on)
        return row

    async def rows(self, statement: LiteralString, *parameters: Any) -> list[Row]:
        """The rows of any other statement."""
        return await (await self.connection.execute(statement, parameters or None)).fetchall()

    @asynccontextmanager
    async def another(self, *, autocommit: bool = True) -> AsyncIterator[Connection]:
        """One more connection. Without autocommit, what was done on it is rolled back at the end."""
        connection = await _connect(self.dsn, autocommit=autocommit)
        try:
            yield connection
        finally:
            await connection.close()

    async def waits(self, call: asyncio.Task[Any]) -> None:
        """Returns when the call waits for a lock, or has its answer already."""
        waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        async with self.another() as watcher:

            async def there() -> bool:
                return call.done() or await (await watcher.execute(waiting)).fetchone() is not None

            await eventually(there)

    # -- a scheduler --------------------------------------------------------------------------------------------

    async def create(self, run_id: str = "", **fields: Any) -> str:
        """A new run, owned by this scheduler."""
        made = await self.one("create_runs_v1", items.created(run_id or str(uuid.uuid4()), **fields))
        assert made["outcome"] == "ok", made
        return str(made["run_id"])

    async def client_run(self, *keys: str, fast: bool = True, reuse_from: str | None = None, **columns: Any) -> str:
        """A new client-driven run whose client, of epoch 1, has asked for these; `fast` as in `request`."""
        run_id = await self.create(
            client_driven=True, process="", start_id="first", idle_timeout_s=3600.0, reuse_from=reuse_from
        )
        if keys:
            session_no = self.session_no if fast else None
            asked = items.client_request(run_id, *keys, session_no=session_no, **columns)
            assert (await self.one("client_requests_v1", asked))["outcome"] == "ok"
        return run_id

    async def silence(self, run_id: str) -> Row:
        """The client of a run is silent for too long, and the run's owner sees it."""
        await self.connection.execute(
            "UPDATE backburner.client_runs SET idle_at = clock_timestamp() WHERE run_id = %s", [run_id]
        )
        return await self.one("halt_idle_v1", items.idle(run_id, self.epoch(run_id)))

    def epoch(self, run_id: str) -> int:
        """Epoch of the run's shard."""
        return self.epochs[int(run_id[-2:], 16) % 16]

    def iteration(self, run_id: str) -> int:
        """Number of the run's last iteration."""
        return self.iterations.get(run_id, 0)

    def appending(self, run_id: str, *rows: Item, **fields: Any) -> Item:
        """The item of the run's next iteration."""
        following = {"epoch": self.epoch(run_id), "iteration": self.iteration(run_id) + 1, "actor": "scheduler/s1"}
        return {"run_id": run_id, "rows": list(rows)} | following | fields

    async def append(self, run_id: str, *rows: Item, **fields: Any) -> Row:
        """The run's next iteration."""
        outcome = await self.one("append_v1", self.appending(run_id, *rows, **fields))
        if outcome["outcome"] == "ok":
            self.iterations[run_id] = self.iteration(run_id) + 1
        return outcome

    async def request(self, run_id: str, *keys: str, fast: bool = False, **columns: Any) -> Row:
        """Requests effects; `fast` sends them to the executor in the same commit."""
        given = [columns | ({"dispatch": items.dispatch(run_id, key, self.session_no)} if fast else {}) for key in keys]
        rows = [items.requested(run_id, key, **x) for key, x in zip(keys, given, strict=True)]
        outcome = await self.append(run_id, *rows)
        assert outcome["outcome"] == "ok", outcome
        return outcome

    async def running(self, *keys: str, **columns: Any) -> str:
        """A run whose effects are with the executor."""
        run_id = await self.create()
        answered = await self.request(run_id, *keys, fast=True, **columns)
        assert len(answered["extra"]) == len(keys), answered
        return run_id

    async def claim(self, count: int = 10, *, known: bool = False, on: Connection | None = None, **f: Any) -> list[Row]:
        """Claims for the session. `known` gives the claimed attempts the tokens of `items.token_of`."""
        hashes = [items.hash_of(secrets.token_bytes(16)) for _ in range(count)]
        argument = items.claiming(f.pop("session_no", self.session_no), hashes, **f)
        cursor = await (on or self.connection).execute(items.calling("claim_v1"), [json.dumps(argument)])
        taken = await cursor.fetchall()
        if known:
            await self._give_known_tokens(taken)
        return taken

    async def _give_known_tokens(self, taken: Sequence[Row]) -> None:
        for row in taken:
            token = items.token_of(str(row["run_id"]), row["effect_key"], row["attempt"])
            await self.connection.execute(
                "UPDATE backburner.effects SET token_hash = sha256(%s) WHERE effect_id = %s", [token, row["effect_id"]]
            )

    # -- an executor --------------------------------------------------------------------------------------------

    async def hello(self, executor_id: str = items.EXECUTOR, **fields: Any) -> int:
        """A new session of an executor; answers with its number."""
        argument = items.hello(executor_id, **fields)
        cursor = await self.connection.execute(items.calling("executor_hello_v1"), [json.dumps(argument)])
        return int((await cursor.fetchall())[0]["session_no"])

    async def settle(self, run_id: str, key: str, outcome: str = "succeeded", attempt: int = 1, **fields: Any) -> Row:
        """Settles one attempt."""
        return await self.one("attempts_settle_v1", items.settled(run_id, key, outcome, attempt, **fields))

    async def lose(self, run_id: str, key: str, attempt: int = 1, **fields: Any) -> Row:
        """Declares one attempt lost."""
        return await self.one("attempts_lost_v1", items.lost(run_id, key, self.epoch(run_id), attempt, **fields))

    # -- what is there ------------------------------------------------------------------------------------------

    async def journal(self, run_id: str) -> list[Row]:
        """The run's rows."""
        return await self.rows("SELECT * FROM backburner.journal WHERE run_id = %s ORDER BY seq", run_id)

    async def types(self, run_id: str, after: int = 1) -> list[str]:
        """Types of the run's rows, without RUN_CREATED."""
        return [row["type"] for row in await self.journal(run_id) if row["seq"] > after]

    async def effect(self, run_id: str, key: str) -> Row:
        """Projection of an effect."""
        statement: LiteralString = "SELECT * FROM backburner.effects WHERE effect_id = %s"
        [row] = await self.rows(statement, items.effect_id(run_id, key))
        return row

    async def head(self, run_id: str) -> Row:
        """The run's head row."""
        [row] = await self.rows("SELECT * FROM backburner.run_heads WHERE run_id = %s", run_id)
        return row

    async def queued(self) -> set[str]:
        """Ids of the effects in the queue."""
        return {str(row["effect_id"]) for row in await self.rows("SELECT effect_id FROM backburner.dispatch_queue")}


@asynccontextmanager
async def desk(dsn: str) -> AsyncIterator[Desk]:
    """A desk over a migrated database."""
    connection = await _connect(dsn)
    try:
        made = Desk(dsn, connection)
        statement: LiteralString = "SELECT * FROM backburner.claim_shards_v1(%s, '', 't', 3600, 16)"
        made.epochs = {row["shard"]: row["epoch"] for row in await made.rows(statement, items.SCHEDULER)}
        made.session_no = await made.hello()
        yield made
    finally:
        await connection.close()


async def _connect(dsn: str, *, autocommit: bool = True) -> Connection:
    return await psycopg.AsyncConnection.connect(dsn, autocommit=autocommit, row_factory=dict_row)
