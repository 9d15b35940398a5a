"""PruneRuns: one step of retention, as an operator orders it."""

from typing import Final

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import operator_service_pb2 as pb
from scheduler_service.api import limits
from scheduler_service.api.checks import checked
from scheduler_service.api.engine import EngineApi
from scheduler_service.api.holds import OPERATOR
from scheduler_service.journal import Prune

_YEARS_MAX: Final = 100 * 366 * 86_400.0


async def prune(engine: EngineApi, asked: Prune) -> pb.PruneRunsResponse:
    """One step."""
    done = await engine.operations.prune(asked)
    return pb.PruneRunsResponse(runs=done.runs, journal_rows=done.journal_rows, more=done.more)


def parse(request: pb.PruneRunsRequest) -> Prune:
    """Parses PruneRuns."""
    with checked() as check:
        if not request.HasField("older_than"):
            check.refuse("older_than", "is required")
        return Prune(
            older_than_s=check.seconds("older_than", request.older_than, _YEARS_MAX),
            states=check.enums("states", request.states, journal_pb2.RunState, "RUN_STATE_"),
            namespace=check.namespace(request.namespace),
            dry_run=request.dry_run,
            reason=check.text("reason", request.reason, limits.REASON_BYTES_MAX),
            actor=check.text("actor", request.actor, limits.ACTOR_BYTES_MAX) or OPERATOR,
        )
