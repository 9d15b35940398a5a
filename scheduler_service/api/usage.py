"""ListUsage: what attempts have consumed, added up by a group."""

from collections.abc import Mapping
from typing import Any

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api import limits
from scheduler_service.api.checks import checked
from scheduler_service.api.convert import duration
from scheduler_service.journal.client_reads import ClientReads
from scheduler_service.journal.connecting import Row


class UsageReport:
    """What ListUsage answers."""

    def __init__(self, reads: ClientReads) -> None:
        self._reads = reads

    async def list(self, asked: Mapping[str, Any]) -> pb.ListUsageResponse:
        """Groups, those of the greatest cost first, and the total of all of them."""
        total, *groups = await self._reads.usage(**asked)
        answer = pb.ListUsageResponse(total=_message(total))
        if asked["group_by"]:
            answer.groups.extend(map(_message, groups))
            answer.groups_left_out = total["groups"] - len(groups)
        return answer


def parse(request: pb.ListUsageRequest) -> dict[str, Any]:
    """Parses ListUsage into the parameters of the read."""
    with checked() as check:
        group_by = check.enum("group_by", request.group_by, pb.ListUsageRequest.GroupBy)
        by_label = group_by == pb.ListUsageRequest.GROUP_BY_LABEL
        if bool(request.label) != by_label:
            check.refuse("label", "is required for GROUP_BY_LABEL" if by_label else "is only for GROUP_BY_LABEL")
        names = pb.ListUsageRequest.GroupBy
        known = group_by if group_by in names.values() else 0
        return {
            "namespace": check.namespace(request.namespace),
            "group_by": names.Name(known).removeprefix("GROUP_BY_") if known else "",  # type: ignore[arg-type]
            "label": check.text("label", request.label, limits.LABEL_NAME_BYTES_MAX),
            "run_id": check.optional_uuid("run_id", request.run_id) or None,
            "since": check.time("since", request.since) if request.HasField("since") else None,
            "until": check.time("until", request.until) if request.HasField("until") else None,
            "labels": check.labels("labels", request.labels),
            "limit": check.page_size(request.page_size) + 1,
        }


def _message(row: Row) -> pb.UsageTotal:
    usage = journal_pb2.Usage(
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        cached_input_tokens=row["cached_input_tokens"],
        cost_usd=row["cost_usd"],
        turns=int(row["turns"]),
        costs_unknown=int(row["costs_unknown"]),
    )
    return pb.UsageTotal(
        key=row["key"] or "",
        attempts=int(row["attempts"]),
        open_attempts=int(row["open"]),
        usage=usage,
        wall_time=duration(row["wall_s"]),
    )
