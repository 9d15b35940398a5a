"""The reads of metrics: what a diagnosis looks at, each statement once, and what else is counted."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from psycopg.rows import dict_row

from scheduler_service.clock import DatabaseClock
from scheduler_service.journal.client_reads import Connections, effect_of
from scheduler_service.journal.client_views import EffectView
from scheduler_service.journal.connecting import Row
from scheduler_service.journal.diagnosis import DiagnosisReads, OneConnection
from scheduler_service.journal.journal import Journal
from scheduler_service.journal.statements import load_statements

_SQL: Final = load_statements(Path(__file__).with_suffix(".sql"))


class MetricsReads(DiagnosisReads):
    """The reads of one moment: what was looked at for the diagnosis is not looked at again."""

    def __init__(self, connections: Connections, clock: DatabaseClock) -> None:
        super().__init__(connections, clock)
        self._known: dict[str, Sequence[Mapping[str, Any]]] = {}

    async def rows(self, name: str) -> Sequence[Mapping[str, Any]]:
        """The rows of a statement of the diagnosis."""
        if name not in self._known:
            self._known[name] = await super().rows(name)
        return self._known[name]

    async def figures(self, name: str, **parameters: Any) -> Sequence[Mapping[str, Any]]:
        """The rows of a statement in `metrics.sql`."""
        async with self._connections.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(_SQL[name], parameters)
            found: list[Row] = await cursor.fetchall()
            return found

    async def examples(self, effect_ids: Sequence[str]) -> Mapping[str, EffectView]:
        """Effects by id, as far as they still wait in the queue."""
        effects = [effect_of(dict(row)) for row in await self.figures("examples", effect_ids=list(effect_ids))]
        return {effect.effect_id: effect for effect in effects}


@asynccontextmanager
async def metrics_reads(journal: Journal) -> AsyncIterator[MetricsReads]:
    """Reads over one connection of the journal's. Raises JournalUnavailable or JournalRefused."""
    async with journal.connection() as connection:
        yield MetricsReads(OneConnection(connection), journal.clock)
