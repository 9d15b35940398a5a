"""`backburner audit`: what operators did."""

from __future__ import annotations

import click
from rich.markup import escape

from backburner.scheduler.v1 import operator_service_pb2 as op
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import CALL_SECONDS, connect
from scheduler_service.cli.options import asynchronous, with_json, with_pages, with_target
from scheduler_service.cli.output import console, put, say_limit, table


@click.command("audit")
@click.option("--subject", default="", metavar="ID", help="Only of this hold, executor or effect.")
@with_pages
@with_json
@with_target
@asynchronous
async def audit_command(*, subject: str, limit: int, as_json: bool, target: Target) -> None:
    """List what operators did, newest first: who, what, to what, and why.

    \b
    Examples:
      backburner audit
      backburner audit --subject executor-1 --json
    """
    out, rows = console(), table("TIME", "WHO", "DID", "TO", "WHY")
    async with connect(target) as client:
        request = op.ListAuditRequest(subject=subject, page_size=min(limit, 1000))
        shown = 0
        while shown < limit:
            answer = await client.operators.ListAudit(request, timeout=CALL_SECONDS)
            for entry in answer.entries[: limit - shown]:
                shown += 1
                if as_json:
                    click.echo(text.json_line(entry))
                    continue
                cells = (
                    text.local_time(entry.record_time),
                    entry.actor,
                    entry.action.lower(),
                    entry.subject,
                    entry.reason,
                )
                rows.add_row(*map(escape, cells))
            request.page_token = answer.next_page_token
            if not request.page_token:
                break
    if not as_json:
        put(out, rows if rows.row_count else "operators have done nothing yet")
        say_limit(shown, limit)
