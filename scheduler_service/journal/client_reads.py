"""What clients see of runs and effects, read from the projections and the journal. Called by the servicers only.

Statements stand in `client_reads.sql`. Each read is one statement, so that it sees one moment of the database; the
snapshot of a run is one transaction for the same reason. Nothing here writes.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import psycopg
from psycopg import IsolationLevel
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from scheduler_service.journal.breakers import Breaker, breaker_of
from scheduler_service.journal.client_views import EffectView, ExecutorView, OpenWork, Page, RunSnapshot, RunView
from scheduler_service.journal.connecting import Row
from scheduler_service.journal.operators import AuditEntry, Hold, hold_of
from scheduler_service.journal.statements import load_statements
from scheduler_service.replay.events import Event

V = TypeVar("V")


class Connections(Protocol):
    """Where connections for reading come from."""

    def connection(self) -> AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]:
        """A connection for a short time."""


_SQL: Final = load_statements(Path(__file__).with_suffix(".sql"))


class ClientReads:
    """The reads of the servicers. Raises what its connections raise; the journal turns that into JournalUnavailable."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def run(self, namespace: str, *, run_id: str = "", key: str = "", full: bool = False) -> RunView | None:
        """One run by id or key; None when there is none in the namespace."""
        rows = await self._rows("run", _run_parameters(namespace, run_id, key, full))
        return _run(rows[0]) if rows else None

    async def progress_of(self, namespace: str, run_id: str) -> tuple[str, int] | None:
        """State and head of a run, and nothing that grows with it; None when there is none in the namespace."""
        rows = await self._rows("progress_of", {"namespace": namespace, "run_id": run_id})
        return (rows[0]["state"], rows[0]["head_seq"]) if rows else None

    async def runs(self, *, limit: int, bytes_max: int, full: bool, filters: Mapping[str, Any]) -> Page[RunView]:
        """A page of runs, newest first; shorter than `limit` when `bytes_max` is reached."""
        parameters = {"limit": limit + 1, "bytes_max": bytes_max, "full": full} | _run_filters(filters)
        return _page([(_run(row), row["found"]) for row in await self._rows("runs", parameters)], limit)

    async def snapshot(self, namespace: str, run_id: str, effects_max: int, effect_id: str = "") -> RunSnapshot | None:
        """A run and its open effects, or one effect of it, at one moment; None when there is no such run."""
        filters = {"namespace": namespace, "run_id": run_id, "effect_id": effect_id, "open_only": not effect_id}
        effects = _effect_parameters(filters, limit=effects_max, full=bool(effect_id))
        async with self._moment() as connection:
            runs = await _fetch(connection, "run", _run_parameters(namespace, run_id, "", full=True))
            if not runs:
                return None
            rows = await _fetch(connection, "effects", effects)
        return RunSnapshot(_run(runs[0]), [effect_of(row) for row in rows])

    async def effects(
        self, *, limit: int, bytes_max: int = 1 << 22, full: bool = False, filters: Mapping[str, Any]
    ) -> Page[EffectView]:
        """A page of effects, newest first; shorter than `limit` when `bytes_max` is reached.

        Filters: namespace, effect_id, run_id, keys, states, kinds, harnesses, labels, open_only, requested_after,
        requested_before, before_time, before_id.
        """
        parameters = _effect_parameters(filters, limit=limit + 1, bytes_max=bytes_max, full=full)
        return _page([(effect_of(row), row["found"]) for row in await self._rows("effects", parameters)], limit)

    async def open_work(self, run_ids: Sequence[str], each: int) -> Mapping[str, OpenWork]:
        """The open work of some runs, at most `each` effects of each: two statements for the whole list."""
        if not run_ids:
            return {}
        async with self._connections.connection() as connection:
            causes = await _fetch(connection, "causes", {"run_ids": list(run_ids), "each": each})
            tallies = await _fetch(connection, "tallies", {"run_ids": list(run_ids)})
        by_run: dict[str, list[EffectView]] = {}
        for effect in map(effect_of, causes):
            by_run.setdefault(effect.run_id, []).append(effect)
        return {
            str(row["run_id"]): OpenWork(by_run.get(str(row["run_id"]), ()), row["next_timer"], row["counts"])
            for row in tallies
        }

    async def unsettled(self, run_id: str, keys: Sequence[str]) -> tuple[int, int]:
        """How many of the named effects exist, and how many of them have not settled."""
        row = (await self._rows("unsettled", {"run_id": run_id, "keys": list(keys)}))[0]
        return row["known"], row["unsettled"]

    async def events(self, run_id: str, after_seq: int, *, limit: int, bytes_max: int) -> Page[Event]:
        """Journal rows after a position, in order; at least one when there is one, however large."""
        parameters = {"run_id": run_id, "after_seq": after_seq, "limit": limit + 1, "bytes_max": bytes_max}
        return _page([(_event(row), row["found"]) for row in await self._rows("events", parameters)], limit)

    async def next_timer(self, run_id: str) -> datetime | None:
        """When the next timer of a run comes due."""
        rows = await self._rows("timers", {"run_id": run_id})
        return rows[0]["fire_at"] if rows else None

    async def executors(
        self, *, after: str | None, states: Sequence[str] | None, limit: int, executor_id: str = ""
    ) -> Sequence[ExecutorView]:
        """Executors by name, connected or not; or only one."""
        parameters = {
            "after": after, "states": None if states is None else list(states), "limit": limit,
            "executor_id": executor_id or None,
        }  # fmt: skip
        return [_executor(row) for row in await self._rows("executors", parameters)]

    async def pruned(self, namespace: str, *, run_id: str = "", key: str = "") -> str | None:
        """Id of the run, by id or key, that retention has removed; None when it has removed none."""
        rows = await self._rows("pruned", {"namespace": namespace, "run_id": run_id or None, "key": key or None})
        return str(rows[0]["run_id"]) if rows else None

    async def matching(
        self, filters: Mapping[str, Any], *, before: str | None, uncancelled: bool, limit: int
    ) -> tuple[list[str], int]:
        """Runs for a bulk action, newest first, at most so many; and how many match, these included.

        Filters: namespace, states (at least one), processes, labels. `uncancelled`: none whose cancel was asked for.
        """
        wanted = {name: _run_filters(filters)[name] for name in ("namespace", "states", "processes", "labels")}
        rows = await self._rows("matching", wanted | {"before": before, "uncancelled": uncancelled, "limit": limit})
        return [str(row["run_id"]) for row in rows], rows[0]["found"] if rows else 0

    async def holds(self) -> Sequence[Hold]:
        """Holds in force, oldest first."""
        return [hold_of(row) for row in await self._rows("holds", {})]

    async def breakers(self) -> Sequence[Breaker]:
        """Circuit breakers by namespace, harness, account and executor."""
        return [breaker_of(row) for row in await self._rows("breakers", {})]

    async def usage(self, **which: Any) -> list[Row]:
        """What attempts consumed, by a group, at most `limit` rows; the first is the total, its key None.

        Parameters: namespace, group_by, label, run_id, since, until, labels, limit.
        """
        labels = which["labels"]
        return await self._rows("usage", which | {"labels": Jsonb(labels) if labels else None})

    async def budgets(self, namespace: str | None, run_id: str | None) -> list[Row]:
        """Budgets of labels, of a namespace or of all, and of a run when it is named."""
        return await self._rows("label_budgets", {"namespace": namespace, "run_id": run_id})

    async def audit(self, *, before: int | None, subject: str, limit: int) -> Sequence[AuditEntry]:
        """What operators did, newest first; of one subject, or with an empty one of all."""
        parameters = {"before": before, "subject": subject or None, "limit": limit}
        return [AuditEntry(**row) for row in await self._rows("audit", parameters)]

    async def live_shards(self) -> frozenset[int]:
        """Shards that a live replica owns."""
        return frozenset(row["shard"] for row in await self._rows("live_shards", {}))

    async def output(
        self, effect_id: str, attempt: int, stream: int, offset: int, limit: int
    ) -> Sequence[tuple[int, bytes]]:
        """Captured chunks of a stream that end after an offset, in order: (offset of the first byte, bytes)."""
        parameters = {
            "effect_id": effect_id, "attempt": attempt, "stream": stream, "offset": offset, "limit": limit,
        }  # fmt: skip
        return [(row["offset"], bytes(row["data"])) for row in await self._rows("output", parameters)]

    async def output_size(self, effect_id: str, attempt: int, stream: int) -> int:
        """First offset after everything that was recorded of a stream."""
        parameters = {"effect_id": effect_id, "attempt": attempt, "stream": stream}
        size: int = (await self._rows("output_size", parameters))[0]["size"]
        return size

    async def blob_size(self, run_id: str, digest: str) -> int | None:
        """Bytes of a blob of a run; None when there is none."""
        rows = await self._rows("blob_size", {"run_id": run_id, "digest": digest})
        return rows[0]["size"] if rows else None

    async def blob_piece(self, run_id: str, digest: str, offset: int, limit: int) -> bytes:
        """Bytes of a blob from an offset, at most so many."""
        parameters = {"run_id": run_id, "digest": digest, "offset": offset, "limit": limit}
        rows = await self._rows("blob_piece", parameters)
        return bytes(rows[0]["data"]) if rows else b""

    async def _rows(self, name: str, parameters: Mapping[str, Any]) -> list[Row]:
        async with self._connections.connection() as connection:
            return await _fetch(connection, name, parameters)

    @asynccontextmanager
    async def _moment(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """A connection whose statements all see the same moment."""
        async with self._connections.connection() as connection:
            autocommit = connection.autocommit
            await connection.set_autocommit(False)
            await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
            try:
                async with connection.transaction():
                    yield connection
            finally:
                if not connection.closed:
                    await connection.set_isolation_level(None)
                    await connection.set_autocommit(autocommit)


async def _fetch(connection: psycopg.AsyncConnection[Any], name: str, parameters: Mapping[str, Any]) -> list[Row]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_SQL[name], parameters)
        return await cursor.fetchall()


def _page(found: Sequence[tuple[V, int]], limit: int) -> Page[V]:
    rows = [view for view, _ in found[:limit]]
    return Page(rows, more=bool(found) and found[0][1] > len(rows))


def _run_parameters(namespace: str, run_id: str, key: str, full: bool) -> dict[str, Any]:
    return {"namespace": namespace, "run_id": run_id or None, "key": key or None, "full": full}


def _run_filters(filters: Mapping[str, Any]) -> dict[str, Any]:
    labels = filters.get("labels")
    return {
        "namespace": filters["namespace"],
        "before": filters.get("before"),
        "states": list(filters.get("states") or ()) or None,
        "processes": list(filters.get("processes") or ()) or None,
        "labels": Jsonb(labels) if labels else None,
        "created_after": filters.get("created_after"),
        "created_before": filters.get("created_before"),
    }


def _effect_parameters(
    filters: Mapping[str, Any], *, limit: int, bytes_max: int = 1 << 22, full: bool = False
) -> dict[str, Any]:
    labels = filters.get("labels")
    lists = {name: list(filters.get(name) or ()) or None for name in ("keys", "states", "kinds", "harnesses")}
    return lists | {
        "namespace": filters["namespace"],
        "effect_id": filters.get("effect_id") or None,
        "run_id": filters.get("run_id") or None,
        "labels": Jsonb(labels) if labels else None,
        "open_only": bool(filters.get("open_only")),
        "requested_after": filters.get("requested_after"),
        "requested_before": filters.get("requested_before"),
        "before_time": filters.get("before_time"),
        "before_id": filters.get("before_id"),
        "limit": limit,
        "bytes_max": bytes_max,
        "full": full,
    }


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _columns(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "found"}


def _run(row: Row) -> RunView:
    return RunView(**(_columns(row) | {name: _text(row[name]) for name in _RUN_TEXTS}))


_RUN_TEXTS: Final = (
    "run_id", "namespace", "key", "process", "state", "parent_run_id", "parent_effect_id", "cancel_reason",
    "halt_reason", "previous_run_id", "next_run_id",
)  # fmt: skip
_EFFECT_TEXTS: Final = (
    "effect_id", "run_id", "key", "namespace", "kind", "name", "harness", "pool", "state", "executor_id",
    "incarnation", "cancel_reason", "group_id", "run_state", "settled_type",
    "child_run_id", "child_state", "busy",
)  # fmt: skip


def effect_of(row: Row) -> EffectView:
    """An effect from its row."""
    texts = {name: _text(row[name]) for name in _EFFECT_TEXTS}
    rest = {
        "settled_seq": row["settled_seq"] or 0,
        "capabilities": row["capabilities"] or [],
        "executor_labels": row["executor_labels"] or {},
        "labels": row["labels"] or {},
        "poll_interval_s": float(row["poll_interval_s"] or 0.0),
    }
    return EffectView(**(_columns(row) | texts | rest))


def _executor(row: Row) -> ExecutorView:
    texts = ("executor_id", "incarnation", "holder", "address", "namespace", "version", "state")
    plain = (
        "session_no", "pools", "capabilities", "labels", "connected_at", "seen_at", "clock_skew_s", "harness_checks",
    )  # fmt: skip
    return ExecutorView(**({name: row[name] for name in plain} | {name: _text(row[name]) for name in texts}))


def _event(row: Row) -> Event:
    return Event(
        seq=row["seq"],
        type=row["type"],
        recorded_at=row["recorded_at"],
        cause=row["cause"],
        effect_id=_text(row["effect_id"]),
        effect_key=_text(row["effect_key"]),
        attempt=row["attempt"],
        actor=row["writer"],
        data=row["data"],
    )
