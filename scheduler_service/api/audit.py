"""What operators did, for those who ask later."""

from dataclasses import dataclass

from backburner.scheduler.v1 import operator_service_pb2 as pb
from scheduler_service.api import limits, pages
from scheduler_service.api.checks import checked
from scheduler_service.api.convert import timestamp
from scheduler_service.api.events import parse_into
from scheduler_service.api.sizes import page_of
from scheduler_service.journal import AuditEntry
from scheduler_service.journal.client_reads import ClientReads


@dataclass(frozen=True, slots=True)
class AuditPage:
    """ListAudit."""

    subject: str
    before: int | None
    page_size: int


class Audit:
    """Reads the audit."""

    def __init__(self, reads: ClientReads) -> None:
        self._reads = reads

    async def page(self, asked: AuditPage) -> pb.ListAuditResponse:
        """A page of it, newest first."""
        rows = await self._reads.audit(before=asked.before, subject=asked.subject, limit=asked.page_size + 1)
        messages = page_of([_message(row) for row in rows[: asked.page_size]])
        answer = pb.ListAuditResponse(entries=messages)
        if len(rows) > len(messages):
            answer.next_page_token = pages.encode_token([messages[-1].audit_id], asked.subject)
        return answer


def parse(request: pb.ListAuditRequest) -> AuditPage:
    """Parses ListAudit."""
    with checked() as check:
        subject = check.text("subject", request.subject, limits.NAME_BYTES_MAX)
        position = pages.decode_token(check, request.page_token, subject)
        return AuditPage(subject, int(position[0]) if position else None, check.page_size(request.page_size))


def _message(row: AuditEntry) -> pb.AuditEntry:
    entry = pb.AuditEntry(
        audit_id=str(row.audit_id),
        record_time=timestamp(row.recorded_at),
        action=row.action,
        subject=row.subject,
        actor=row.actor,
        reason=row.reason,
    )
    parse_into(entry.detail, dict(row.detail))
    return entry
