"""`backburner doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import click
import grpc.aio
from rich.markup import escape
from rich.text import Text

from backburner.scheduler.v1 import operator_service_pb2 as op
from scheduler_service.cli import text
from scheduler_service.cli.address import Target, find_database
from scheduler_service.cli.client import CALL_SECONDS, connect
from scheduler_service.cli.options import asynchronous, with_json, with_target
from scheduler_service.cli.output import console, put, table

_STYLES: Final = {"CRITICAL": "bold red", "WARNING": "yellow", "INFO": ""}


@click.command("doctor")
@click.option("--database-url", envvar="DATABASE_URL", metavar="URL", help="Asked when no scheduler answers. "
              "[DATABASE_URL; default: that of the `backburner dev` here]")  # fmt: skip
@with_json
@with_target
@asynchronous
async def doctor_command(*, database_url: str | None, as_json: bool, target: Target) -> int:
    """Say what is wrong and what to do: stuck runs, growing queues, lost executors, shards without owner, holds, ...

    Asks a scheduler; when none answers, the database itself, and that is a finding too.

    \b
    Exit codes: 0 nothing to worry about, 1 something will hurt (WARNING), 2 something hurts (CRITICAL).

    \b
    Examples:
      backburner doctor
      backburner doctor --json | jq -r 'select(.severity == "SEVERITY_CRITICAL") | .code'
    """
    findings = await _findings(target, database_url or find_database())
    if as_json:
        for finding in findings:
            click.echo(text.json_line(finding))
    else:
        _show(findings)
    worst = max((finding.severity for finding in findings), default=op.Finding.SEVERITY_INFO)
    return {op.Finding.SEVERITY_WARNING: 1, op.Finding.SEVERITY_CRITICAL: 2}.get(worst, 0)


async def _findings(target: Target, dsn: str | None) -> Sequence[op.Finding]:
    async with connect(target) as client:
        try:
            return (await client.operators.Diagnose(op.DiagnoseRequest(), timeout=CALL_SECONDS)).findings
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE or dsn is None:
                raise
    return [_no_scheduler(target), *await _straight(dsn)]


async def _straight(dsn: str) -> Sequence[op.Finding]:
    from scheduler_service.api.diagnosis import diagnose
    from scheduler_service.cli.errors import CliError
    from scheduler_service.cli.exit_codes import ExitCode
    from scheduler_service.journal.diagnosis import open_reads
    from scheduler_service.journal.errors import JournalError

    try:
        async with open_reads(dsn) as reads:
            return await diagnose(reads)
    except JournalError as error:
        remedy = "neither a scheduler nor the database can be asked: is DATABASE_URL right, and that Postgres up?"
        raise CliError(str(error), remedy, ExitCode.UNREACHABLE) from error


def _no_scheduler(target: Target) -> op.Finding:
    return op.Finding(
        severity=op.Finding.SEVERITY_CRITICAL, code="NO_SCHEDULER", subjects=[target.address],
        message=f"no scheduler answers at {target.address} ({target.source}); the rest is what the database says",
        remedy="start `backburner scheduler`, or give its --address",
    )  # fmt: skip


def _show(findings: Sequence[op.Finding]) -> None:
    rows = table("", "CODE", "WHAT", "WHAT TO DO")
    for finding in findings:
        name = op.Finding.Severity.Name(finding.severity).removeprefix("SEVERITY_")
        rows.add_row(Text(name, _STYLES.get(name, "")), finding.code, escape(finding.message), escape(finding.remedy))
    put(console(), rows)
