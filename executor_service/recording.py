"""Stage 8, RESULT: what attempts write to the journal. The executor's only importer of psycopg.

Two lanes, each a connection and one writer: outcomes on one, everything else (starts, progress, output) on the other, so
that a flood of output never delays a result. A writer sends everything that waits in one call, which is one commit;
while a commit is in flight the next batch gathers. Every call may be repeated, so that after any doubt it is.

While Postgres is away outcomes wait here: an attempt keeps its slot until its outcome is recorded, which bounds them.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final, LiteralString, Protocol

import orjson
import psycopg

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.errors import StartError
from executor_service.invocation import Invocation
from executor_service.outcome import Outcome, settle_item
from executor_service.output import CHUNK_BYTES_MAX

log = logging.getLogger(__name__)

#: The contract of the journal functions that this release calls.
CONTRACT: Final = 1

BATCH_MAX: Final = 500
#: Bytes of outcomes in one call; one that is larger travels alone.
BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
#: At most one commit of progress in so many seconds.
PROGRESS_SECONDS: Final = 1.0
#: How long output gathers before it is written.
OUTPUT_SECONDS: Final = 0.2
OUTPUT_BYTES_MAX: Final = 1024 * 1024

_CONNECT_SECONDS: Final = 5
_BACKOFF_SECONDS: Final = (0.05, 2.0)
#: SQLSTATE classes after which the same call may succeed: connection, resources, operator intervention, a read-only
#: phase of a failover, and refusals that only say "again". Rights and missing functions are an operator's to mend.
_TRANSIENT: Final = ("08", "25006", "40", "42501", "42883", "3F000", "53", "55P03", "57")

_ROW: Final = "ord, outcome, seq, type, (extract(epoch FROM recorded_at) * 1000000)::bigint, data, effect_key"
_STARTED: Final[LiteralString] = f"SELECT {_ROW} FROM backburner.attempts_started_v1(%b)"
_PROGRESS: Final[LiteralString] = f"SELECT {_ROW} FROM backburner.attempts_progress_v1(%b)"
_SETTLE: Final[LiteralString] = f"SELECT {_ROW} FROM backburner.attempts_settle_v1(%b)"
_OUTPUT: Final[LiteralString] = (
    "SELECT backburner.output_append_v1(%s::uuid[], %s::uuid[], %s::int[], %s::bytea[], %s::smallint[], %s::bigint[], "
    "%s::bytea[])"
)

Row = tuple[int, str, int | None, str | None, int | None, str | None, str | None]
