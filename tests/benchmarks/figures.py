"""What the benchmarks read off the journals, by SQL."""

import statistics
from dataclasses import dataclass

import psycopg

#: Request to request of foreground effects that follow one another: request, dispatch, work, settlement, resumption.
_CYCLES = """
    SELECT extract(epoch FROM recorded_at - lag(recorded_at) OVER (ORDER BY seq)) * 1000, seq
    FROM backburner.journal
    WHERE run_id = %s AND type = 'EFFECT_REQUESTED' AND effect_key NOT LIKE 'nap/%%'
    ORDER BY seq
"""
_SPAN = """
    SELECT extract(epoch FROM max(recorded_at) FILTER (WHERE type = 'EFFECT_RESOLVED')
                            - min(recorded_at) FILTER (WHERE type = 'RUN_CREATED')),
           count(*) FILTER (WHERE type = 'EFFECT_RESOLVED')
    FROM backburner.journal WHERE run_id = ANY(%s::uuid[])
"""


@dataclass(frozen=True)
class Cycle:
    """One effect of a serial run: milliseconds from its request to the next one, and the seq of that one."""

    ms: float
    seq: int


async def cycles(dsn: str, run_id: str) -> list[Cycle]:
    """The cycles of a serial run, in order."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        rows = await (await connection.execute(_CYCLES, [run_id])).fetchall()
    return [Cycle(float(ms), seq) for ms, seq in rows if ms is not None]


async def effects_per_second(dsn: str, run_ids: list[str]) -> float:
    """Effects of the runs by the time from the first run's creation to the last settlement."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        row = await (await connection.execute(_SPAN, [run_ids])).fetchone()
    assert row is not None
    return float(row[1]) / float(row[0])


def median_ms(measured: list[Cycle]) -> float:
    """Median of the cycles."""
    return statistics.median(cycle.ms for cycle in measured)
