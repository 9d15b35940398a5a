"""Evidence by SQL: what happened in the foreground of a run while each background effect was open.

Reads the journal only, so anybody can run the same query with psql and get the same answer.
"""

import time
from dataclasses import dataclass
from typing import Final, LiteralString

from scheduler_service.journal.link import Link

_PATIENCE_SECONDS: Final = 10.0

OVERLAP_SQL: Final[LiteralString] = """
WITH span AS (
    SELECT asked.effect_key, asked.seq AS requested, ended.seq AS settled,
           ended.recorded_at - asked.recorded_at AS took,
           COALESCE((asked.data #>> '{spec,background}')::boolean, false) AS background,
           asked.data #> '{spec,external}' IS NOT NULL AS external
      FROM backburner.journal AS asked
      JOIN backburner.journal AS ended
        ON ended.run_id = asked.run_id AND ended.effect_id = asked.effect_id
       AND ended.type IN ('EFFECT_RESOLVED', 'EFFECT_CANCELLED')
     WHERE asked.run_id = %(run_id)s AND asked.type = 'EFFECT_REQUESTED'
)
SELECT slow.effect_key AS key, slow.requested, slow.settled,
       extract(epoch FROM slow.took)::float8 AS seconds,
       count(quick.effect_key)::int AS foreground,
       COALESCE((array_agg(quick.effect_key ORDER BY quick.settled))[1:3], '{}') AS first_keys,
       COALESCE((array_agg(quick.effect_key ORDER BY quick.settled DESC))[1], '') AS last_key
  FROM span AS slow
  LEFT JOIN span AS quick
    ON NOT quick.background AND quick.requested > slow.requested AND quick.settled < slow.settled
 WHERE slow.background AND NOT slow.external
 GROUP BY slow.effect_key, slow.requested, slow.settled, slow.took
 ORDER BY slow.settled
"""

#: The same with its trimmings left out, for people to read.
OVERLAP_SQL_IN_SHORT: Final = """
WITH span AS (
    SELECT asked.effect_key, asked.seq AS requested, ended.seq AS settled, …
      FROM backburner.journal AS asked
      JOIN backburner.journal AS ended …
       AND ended.type IN ('EFFECT_RESOLVED', 'EFFECT_CANCELLED')
     WHERE asked.run_id = %(run_id)s AND asked.type = 'EFFECT_REQUESTED'
)
SELECT slow.effect_key …
       count(quick.effect_key)…
  FROM span AS slow
  LEFT JOIN span AS quick
    ON NOT quick.background AND quick.requested > slow.requested AND quick.settled < slow.settled
 WHERE slow.background …
"""


@dataclass(frozen=True, slots=True)
class Overlap:
    """A background effect, and the foreground effects that were both requested and settled while it was open.

    `requested` and `settled` are its seqs; `first_keys` are the first three of them to settle, `last_key` the last.
    """

    key: str
    requested: int
    settled: int
    seconds: float
    foreground: int
    first_keys: list[str]
    last_key: str


async def overlaps(dsn: str, run_id: str) -> list[Overlap]:
    """The settled background effects of a run in the order in which they settled. External ones are left out.

    Raises JournalUnavailable or JournalRefused.
    """
    link = Link(dsn, "backburner evidence")
    try:
        rows = await link.call(
            OVERLAP_SQL, {"run_id": run_id}, name="evidence", deadline=time.monotonic() + _PATIENCE_SECONDS
        )
    finally:
        await link.close()
    return [Overlap(**row) for row in rows]
