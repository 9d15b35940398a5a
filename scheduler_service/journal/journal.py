"""Stage 2, JOURNAL: the scheduler's way into Postgres. Every write is a call of one SQL function, in one commit.

Writers have connections of their own and commit in groups; reads take theirs from a small pool. A caller that is
cancelled half-way loses its answer, never half a commit.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import orjson
import psycopg

from scheduler_service.clock import DatabaseClock
from scheduler_service.journal import items, operators
from scheduler_service.journal.client_reads import ClientReads
from scheduler_service.journal.clients import Clients
from scheduler_service.journal.connecting import Row
from scheduler_service.journal.controls import Controls
from scheduler_service.journal.errors import JournalBusy, JournalMisconfigured, SchemaMissing
from scheduler_service.journal.leases import Leases
from scheduler_service.journal.link import Link
from scheduler_service.journal.lives import Lives
from scheduler_service.journal.operators import Operators
from scheduler_service.journal.readers import Readers
from scheduler_service.journal.statements import load_statements
from scheduler_service.journal.writer import ITEM_SECONDS, GroupWriter
from scheduler_service.recent import Recent
from scheduler_service.replay.events import Event

_SQL: Final = load_statements(Path(__file__).with_name("queries.sql"))

#: Contract of the schema's functions that this release calls.
CONTRACT: Final = 1


def shard_of(run_id: str) -> int:
    """Shard of a run; the twin of the SQL function of the same name."""
    return int(run_id[-2:], 16) % 16


class Journal:
    """Writes and reads of one scheduler replica. Made by `open_journal`."""

    def __init__(self, dsn: str, scheduler_id: str) -> None:
        name = f"backburner scheduler {scheduler_id}"[:60]
        self._scheduler_id = scheduler_id
        #: Which life of the database counts; its listener forgets what was read in another one.
        self.lives = Lives()
        #: How long commits took, but for those of retention, which nobody waits for.
        self.commits = Recent()
        self._links = {
            part: Link(dsn, f"{name} {part}", self.lives, self.commits.note)
            for part in ("append", "request", "dispatch", "lease")
        }
        self._links["retention"] = Link(dsn, f"{name} retention", self.lives)
        self._append = self._fenced("append", "append", "append")
        self._create = GroupWriter(self._links["request"], _SQL["create_runs"], "create")
        self._cancel = GroupWriter(self._links["request"], _SQL["request_cancels"], "cancel")
        self._resolve = GroupWriter(self._links["request"], _SQL["resolve_external"], "resolve")
        self._lost = self._fenced("dispatch", "attempts_lost", "lost")
        self._readopt = self._fenced("dispatch", "readopt", "readopt")
        #: Run control from outside.
        self.controls = Controls(self._links["request"])
        #: Client-driven runs.
        self.clients = Clients(self._links["request"])
        #: What operators order.
        self.operators = Operators(self._links["request"])
        #: Replicas, their shards and the runs in them.
        self.leases = Leases(self._call, self._read)
        self._writers = (
            self._append, self._create, self._cancel, self._resolve, self._lost, self._readopt, *self.controls.writers,
            *self.clients.writers, *self.operators.writers,
        )  # fmt: skip
        #: Connections for reads.
        self.readers = Readers(dsn, f"{name} read", self.lives)
        self.clock = DatabaseClock()
        #: Version of the newest migration that the database had when it was opened.
        self.schema_version = 0
        #: What clients see, for the servicers.
        self.client_reads = ClientReads(self)

    # -- life --------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connects, and checks that the schema serves this release. Raises SchemaMissing or JournalUnavailable."""
        try:
            await self._check_contract()
        except BaseException:
            await self.readers.close()
            raise
        for writer in self._writers:
            writer.start()

    async def close(self) -> None:
        """Stops the writers and closes all connections; what is on its way gets no answer."""
        for link in self._links.values():
            link.hang_up()
        for writer in self._writers:
            await writer.stop()
        await asyncio.gather(*(link.close() for link in self._links.values()))
        await self.readers.close()

    def _fenced(self, link: str, statement: str, name: str) -> GroupWriter:
        """A writer of what was decided by what is known: it holds for the life of the database that it is known of."""
        return GroupWriter(self._links[link], _SQL[statement], name, lives=self.lives)

    async def _check_contract(self) -> None:
        try:
            served = (await self._read("contract"))[0]
        except JournalMisconfigured as error:
            if not error.sqlstate.startswith(("3F", "42883", "42P01")):
                raise
            raise SchemaMissing(
                "the database has no Backburner schema, or an older one: run `backburner migrate` first"
            ) from error
        if not served["lowest"] <= CONTRACT <= served["highest"]:
            raise SchemaMissing(
                f"the schema serves contracts {served['lowest']} to {served['highest']}, this release needs "
                f"{CONTRACT}: run `backburner migrate` with the newest release, or upgrade this service"
            )
        self.schema_version = served["schema_version"]

    # -- writes ------------------------------------------------------------------------------------------------

    async def create_run(self, run: items.CreateRun) -> items.CreateRunOutcome:
        """Creates a run, or finds the one with the same key."""
        row = await self._create.submit(dataclasses.asdict(run) | {"owner": {"scheduler_id": self._scheduler_id}})
        run_id = str(row["run_id"])
        # The id is fresh with every call: finding it means that our own commit's answer was lost.
        created = run_id == run.run_id
        return items.CreateRunOutcome(
            row["outcome"], run_id, created, row["head_seq"], row["epoch"], row["recorded_at"], row["detail"]
        )

    async def append(self, append: items.Append) -> items.AppendOutcome:
        """Appends the rows of one iteration."""
        row = await self._append.submit(
            {
                "run_id": append.run_id,
                "epoch": append.epoch,
                "iteration": append.iteration,
                "append_id": append.append_id,
                "actor": append.actor,
                "rows": append.rows,
            }
        )
        return items.AppendOutcome(
            row["outcome"], row["first_seq"], row["head_seq"], row["recorded_at"], row["extra"], row["detail"]
        )

    async def request_cancel(self, request: items.CancelRequest) -> items.CancelOutcome:
        """Makes a cancel durable."""
        row = await self._cancel.submit(dataclasses.asdict(request))
        return items.CancelOutcome(row["outcome"], row["head_seq"], row["recorded_at"], row["extra"], row["detail"])

    async def resolve_external(self, request: items.ResolveRequest) -> items.ResolveOutcome:
        """Settles an effect that no executor has."""
        row = await self._resolve.submit(dataclasses.asdict(request))
        return items.ResolveOutcome(row["outcome"], row["head_seq"], row["recorded_at"], row["extra"])

    async def attempts_lost(self, lost: items.LostAttempt) -> items.LostOutcome:
        """Declares an attempt lost, or never started."""
        row = await self._lost.submit(dataclasses.asdict(lost))
        return items.LostOutcome(row["outcome"], row["head_seq"], row["recorded_at"], row["extra"])

    async def readopt(self, readoption: items.Readoption) -> str:
        """Gives a running attempt to its executor's new session; answers `ok` or `stale_attempt`."""
        return str((await self._readopt.submit(dataclasses.asdict(readoption)))["outcome"])

    async def claim(self, request: items.ClaimRequest) -> items.Claimed:
        """Takes queued effects for one session."""
        rows = await self._call("dispatch", "claim", {"request": _json(dataclasses.asdict(request))})
        taken = [_claimed(row) for row in rows if row["token_index"] >= 0]
        return items.Claimed(taken, busy=len(taken) < len(rows))

    async def executor_hello(self, hello: items.ExecutorHello) -> items.HelloAnswer:
        """Registers a session of an executor."""
        row = (await self._call("dispatch", "executor_hello", {"hello": _json(dataclasses.asdict(hello))}))[0]
        return items.HelloAnswer(row["session_no"], row["previous_incarnation"])

    async def executor_found(self, found: items.ExecutorFound) -> None:
        """Notes what an executor has of harnesses, unless a newer session of it has said more."""
        await self._call("dispatch", "executor_found", {"found": _json(dataclasses.asdict(found))})

    async def executors_seen(self, seen: Sequence[items.ExecutorSeen]) -> None:
        """Notes signs of life."""
        await self._call("dispatch", "executors_seen", {"items": _json([dataclasses.asdict(item) for item in seen])})

    async def executor_gone(self, executor_id: str, session_no: int) -> None:
        """Notes that a session has ended."""
        await self._call("dispatch", "executor_gone", {"executor_id": executor_id, "session_no": session_no})

    async def strike(self, run_id: str, epoch: int) -> int | None:
        """Raises the run's strikes before a replay; None when the run is not ours."""
        rows = await self._call("request", "strike", {"run_id": run_id, "epoch": epoch})
        strikes: int | None = rows[0]["strikes"]
        return strikes

    async def clients_seen(self, run_ids: Sequence[str]) -> dict[str, float]:
        """Notes signs of life of clients; answers with how many seconds each may be silent."""
        rows = await self._call("request", "clients_seen", {"run_ids": list(run_ids)})
        return {str(row["run_id"]): row["idle_timeout_s"] for row in rows}

    async def prune(self, request: operators.Prune) -> operators.Pruned:
        """One step of retention: whole runs, in one commit."""
        row = (await self._call("retention", "prune_runs", {"request": _json(dataclasses.asdict(request))}))[0]
        return operators.Pruned(row["outcome"], row["runs"], row["journal_rows"], row["more"])

    # -- reads -------------------------------------------------------------------------------------------------

    async def read_clock(self) -> None:
        """Reads the database's clock."""
        self.clock.learn((await self._read("now"))[0]["now"])

    async def read_events(self, run_id: str, after_seq: int, most: int) -> list[Event]:
        """Journal rows after a position, in order."""
        rows = await self._read("events", run_id=run_id, after=after_seq, most=most)
        return [event_of(row) for row in rows]

    async def blobs(self, run_id: str, digests: Sequence[str]) -> dict[str, bytes]:
        """Contents of blobs of a run, by digest."""
        rows = await self._read("blobs", run_id=run_id, digests=list(digests))
        return {row["digest"]: bytes(row["content"]) for row in rows}

    async def iteration(self, run_id: str) -> int:
        """Number of the last iteration that was appended to a run."""
        number: int = (await self._read("iteration", run_id=run_id))[0]["iteration"]
        return number

    async def heads(self, run_ids: Sequence[str]) -> dict[str, int]:
        """Newest seq by run."""
        if not run_ids:
            return {}
        return {str(row["run_id"]): row["seq"] for row in await self._read("heads", run_ids=list(run_ids))}

    async def open_attempts(self, executor_id: str) -> list[items.OpenAttempt]:
        """Attempts that an executor has, or may have."""
        return [_open_attempt(row) for row in await self._read("open_attempts", executor_id=executor_id)]

    async def stranded_attempts(self, grace_s: float) -> list[items.OpenAttempt]:
        """Attempts whose executor has been away for longer than the grace."""
        return [_open_attempt(row) for row in await self._read("stranded_attempts", grace_s=grace_s)]

    async def flagged_attempts(self, executor_ids: Sequence[str]) -> list[items.FlaggedAttempt]:
        """Live attempts of these executors whose cancel was asked for."""
        if not executor_ids:
            return []
        rows = await self._read("flagged_attempts", executor_ids=list(executor_ids))
        return [items.FlaggedAttempt(**_texts(row)) for row in rows]

    async def executor_orders(self, executor_ids: Sequence[str]) -> list[operators.ExecutorOrder]:
        """What operators want of these executors."""
        if not executor_ids:
            return []
        rows = await self._read("executor_orders", executor_ids=list(executor_ids))
        return [operators.ExecutorOrder(**row) for row in rows]

    async def expired_attempts(self, shards: Sequence[int]) -> list[operators.ExpiredAttempt]:
        """Live attempts, in these shards, of incarnations that were declared dead."""
        if not shards:
            return []
        rows = await self._read("expired_attempts", shards=list(shards))
        return [operators.ExpiredAttempt(**_texts(row)) for row in rows]

    async def settle_orders(self, shards: Sequence[int]) -> list[tuple[str, str]]:
        """(run, effect) in these shards that operators want settled."""
        if not shards:
            return []
        rows = await self._read("settle_orders", shards=list(shards))
        return [(str(row["run_id"]), str(row["effect_id"])) for row in rows]

    async def deadlines_due(self, shards: Sequence[int]) -> list[items.DeadlineDue]:
        """Effects without live attempt in these shards whose time is over, or whose budget is spent and asks nobody."""
        if not shards:
            return []
        rows = await self._read("deadlines_due", shards=list(shards))
        return [items.DeadlineDue(**(_texts(row) | {"spent": row["spent"]})) for row in rows]

    async def idle_clients(self, shards: Sequence[int]) -> list[str]:
        """Client-driven runs in these shards that are due to be looked at, because their client is silent."""
        if not shards:
            return []
        return [str(row["run_id"]) for row in await self._read("idle_clients", shards=list(shards))]

    async def open_effects(self, run_id: str) -> list[items.OpenEffect]:
        """Effects of a run that have not settled, oldest first."""
        return [items.OpenEffect(**_texts(row)) for row in await self._read("open_effects", run_id=run_id)]

    async def known_durations(self) -> list[tuple[str, str, float]]:
        """(namespace, name, median seconds) of past successes."""
        return [(row["namespace"], row["name"], row["elapsed_s"]) for row in await self._read("known_durations")]

    def connection(self) -> AbstractAsyncContextManager[psycopg.AsyncConnection[Row]]:
        """A connection for a short read. Raises JournalUnavailable or JournalRefused for what goes wrong on it."""
        return self.readers.connection()

    async def _read(self, statement: str, **parameters: Any) -> list[Row]:
        async with self.connection() as connection:
            return await (await connection.execute(_SQL[statement], parameters)).fetchall()

    async def _call(self, link: str, statement: str, parameters: Mapping[str, Any]) -> list[Row]:
        # Shielded: a caller that goes away must not take the connection with it, which others share.
        call = asyncio.create_task(self._until_free(link, statement, parameters), name=f"{link}: {statement}")
        call.add_done_callback(_retrieved)
        return await asyncio.shield(call)

    async def _until_free(self, link: str, statement: str, parameters: Mapping[str, Any]) -> list[Row]:
        deadline, life = time.monotonic() + ITEM_SECONDS, self.lives.current
        while True:
            try:
                return await self._links[link].call(
                    _SQL[statement], parameters, name=statement, deadline=deadline, life=life
                )
            except JournalBusy:  # it has waited for its lock, and others that share the link go first now
                if time.monotonic() >= deadline:
                    raise


def _retrieved(call: asyncio.Task[Any]) -> None:
    """Whoever went away does not ask how it ended."""
    if not call.cancelled():
        call.exception()


@contextlib.asynccontextmanager
async def open_journal(dsn: str, *, scheduler_id: str) -> AsyncIterator[Journal]:
    """An open journal, closed at the end. Raises SchemaMissing or JournalUnavailable."""
    journal = Journal(dsn, scheduler_id)
    await journal.open()
    try:
        yield journal
    finally:
        await journal.close()


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _texts(row: Row) -> Row:
    """UUIDs as strings, and no None where a text is meant."""
    return {
        name: "" if value is None else (str(value) if name.endswith("_id") else value) for name, value in row.items()
    }


def _open_attempt(row: Row) -> items.OpenAttempt:
    return items.OpenAttempt(**(_texts(row) | {"executor_session": row["executor_session"]}))


def event_of(row: Row) -> Event:
    """An event from its row."""
    return Event(
        row["seq"],
        row["type"],
        row["recorded_at"],
        row["cause"],
        str(row["effect_id"] or ""),
        row["effect_key"] or "",
        row["attempt"],
        row["writer"],
        row["data"],
    )


def _claimed(row: Row) -> items.ClaimedAttempt:
    ids = {"run_id": str(row["run_id"]), "effect_id": str(row["effect_id"])}
    return items.ClaimedAttempt(**(row | ids | {"spec": row["spec"].encode()}))
