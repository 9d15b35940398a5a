"""BulkAction: one change to all runs that match, in bounded steps that may be repeated."""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import operator_service_pb2 as pb
from scheduler_service.api import limits, pages
from scheduler_service.api.checks import checked
from scheduler_service.api.engine import EngineApi
from scheduler_service.api.holds import OPERATOR
from scheduler_service.journal import AuditNote, CancelRequest, ControlRequest
from scheduler_service.journal.client_reads import ClientReads

RUNS_MAX: Final = 1000
_AT_A_TIME: Final = 64
#: States that an action can be made in.
_FITTING: Final[Mapping[str, tuple[str, ...]]] = {
    "CANCEL": ("RUNNING", "CLOSING", "HALTED", "PROCESS_ERROR"),
    "HALT": ("RUNNING", "CANCELLING", "CLOSING"),
    "RESUME": ("HALTED", "PROCESS_ERROR"),
}


@dataclass(frozen=True, slots=True)
class BulkFilter:
    """What is done, and to which runs. A token is bound to it."""

    action: str
    namespace: str
    states: tuple[str, ...]
    processes: tuple[str, ...]
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Bulk:
    """BulkAction."""

    filter: BulkFilter
    reason: str
    actor: str
    dry_run: bool
    limit: int
    before: str | None


class BulkActions:
    """Makes the changes, each of them as a call for that one run would."""

    def __init__(self, engine: EngineApi, reads: ClientReads) -> None:
        self._engine = engine
        self._reads = reads

    async def step(self, asked: Bulk) -> pb.BulkActionResponse:
        """One step; a dry run only counts."""
        run_ids, found = await self._reads.matching(
            asdict(asked.filter),
            before=asked.before,
            uncancelled=asked.filter.action == "CANCEL",
            limit=asked.limit,
        )
        if asked.dry_run or not run_ids:
            return pb.BulkActionResponse(applied=found)
        await self._engine.operations.note(_note(asked, run_ids))
        room = asyncio.Semaphore(_AT_A_TIME)

        async def one(run_id: str) -> bool:
            async with room:
                return await self._apply(asked, run_id) in ("ok", "already")

        done = await asyncio.gather(*map(one, run_ids))
        more = pages.encode_token([run_ids[-1]], asdict(asked.filter)) if found > len(run_ids) else ""
        return pb.BulkActionResponse(
            applied=sum(done), refused=len(done) - sum(done), remaining=found - len(run_ids), next_page_token=more
        )

    async def _apply(self, asked: Bulk, run_id: str) -> str:
        actor = f"operator/{asked.actor}"
        if asked.filter.action == "CANCEL":
            request = CancelRequest(
                run_id=run_id,
                effect_id=None,
                reason="EFFECT_REASON_CANCELLED_BY_USER",
                message=asked.reason,
                actor=actor,
            )
            return (await self._engine.request_cancel(request)).outcome
        change = self._engine.control.halt if asked.filter.action == "HALT" else self._engine.control.resume
        return (await change(ControlRequest(run_id=run_id, reason=asked.reason, actor=actor))).outcome


def parse(request: pb.BulkActionRequest) -> Bulk:
    """Parses BulkAction."""
    with checked() as check:
        check.enum("action", request.action, pb.BulkActionRequest.Action, required=True)
        known = pb.BulkActionRequest.Action
        action = known.Name(request.action) if request.action in known.values() else "ACTION_UNSPECIFIED"
        fitting = _FITTING.get(action.removeprefix("ACTION_"), ())
        states = check.enums("states", request.states, journal_pb2.RunState, "RUN_STATE_")
        which = BulkFilter(
            action=action.removeprefix("ACTION_"),
            namespace=check.namespace(request.namespace),
            states=tuple(state for state in fitting if state in (states or fitting)),
            processes=check.names("processes", request.processes),
            labels=check.labels("labels", request.labels),
        )
        if states and not which.states:
            check.refuse("states", f"are none in which this can be done: {', '.join(fitting)}")
        position = pages.decode_token(check, request.page_token, asdict(which))
        return Bulk(
            filter=which,
            reason=check.text("reason", request.reason, limits.REASON_BYTES_MAX),
            actor=check.text("actor", request.actor, limits.ACTOR_BYTES_MAX) or OPERATOR,
            dry_run=request.dry_run,
            limit=min(check.not_negative("limit", request.limit) or RUNS_MAX, RUNS_MAX),
            before=position[0] if position else None,
        )


def _note(asked: Bulk, run_ids: list[str]) -> AuditNote:
    which = asdict(asked.filter)
    detail = {name: which[name] for name in ("states", "processes", "labels")}
    detail |= {"runs": len(run_ids), "newest": run_ids[0], "oldest": run_ids[-1]}
    return AuditNote(
        action=f"{asked.filter.action}_RUNS",
        subject=asked.filter.namespace,
        actor=asked.actor,
        reason=asked.reason,
        detail=detail,
    )
