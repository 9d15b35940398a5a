"""`backburner signal`: a message to a run."""

from __future__ import annotations

import uuid

import click
from google.protobuf import json_format, struct_pb2

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import CALL_SECONDS, connect
from scheduler_service.cli.complete import run_names
from scheduler_service.cli.names import lenient_value
from scheduler_service.cli.options import asynchronous, with_json, with_target


@click.command("signal")
@click.argument("run", metavar="RUN", shell_complete=run_names(journal.RUN_STATE_RUNNING))
@click.argument("name", metavar="NAME")
@click.argument("value", metavar="[VALUE]", required=False)
@click.option("--request-id", metavar="UUID", help="Makes it idempotent for 24 hours: the same id is the same signal.")
@with_json
@with_target
@asynchronous
async def signal_command(
    *, run: str, name: str, value: str | None, request_id: str | None, as_json: bool, target: Target
) -> None:
    """Send the message NAME with VALUE to a run: process code gets it from `ctx.signal(NAME)` or `ctx.signals(NAME)`.

    VALUE is JSON where it parses as JSON, else text. When the command returns, the signal is in the journal; a halted
    run takes it once it is resumed.

    \b
    Examples:
      backburner signal key:supervisor scale 3
      backburner signal 0198f2c4a1b2 note "look at the flaky test"
    """
    async with connect(target) as client:
        found = await client.find_run(run)
        request = pb.SignalRunRequest(
            run_id=found.run_id, namespace=client.namespace, name=name, request_id=request_id or str(uuid.uuid4())
        )
        if value is not None:
            request.value.CopyFrom(json_format.ParseDict(lenient_value(value), struct_pb2.Value()))
        answer = await client.runs.SignalRun(request, timeout=CALL_SECONDS)
    click.echo(text.json_line(answer) if as_json else f"signal {name} is event {answer.seq} of run {found.run_id}")
