"""`backburner halt` and `backburner resume`: pause runs, and let halted or parked ones go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli.address import Target
from scheduler_service.cli.bulk import Selection, Terms, change_runs
from scheduler_service.cli.client import CALL_SECONDS, connect
from scheduler_service.cli.complete import run_names
from scheduler_service.cli.filters import with_filter
from scheduler_service.cli.options import (
    asynchronous,
    with_actor,
    with_dry_run,
    with_json,
    with_reason,
    with_target,
    with_yes,
)

_HALTS = (journal.RUN_STATE_RUNNING, journal.RUN_STATE_CANCELLING, journal.RUN_STATE_CLOSING)
_RESUMES = (journal.RUN_STATE_HALTED, journal.RUN_STATE_PROCESS_ERROR)

Command = Callable[..., Any]


@click.command("halt")
@click.argument("names", metavar="[RUN]...", nargs=-1, shell_complete=run_names(*_HALTS))
@with_filter
@with_reason
@with_actor
@with_dry_run
@with_yes
@with_json
@with_target
@asynchronous
async def halt_command(
    *, reason: str, actor: str, dry_run: bool, yes: bool, as_json: bool, target: Target, **which: tuple[str, ...]
) -> int:
    """Pause runs: no iteration and nothing new is dispatched until `backburner resume`.

    What runs already goes on to its end. With --state, --process or --label instead of names, all runs that match are
    meant: the number is shown and confirmed.

    \b
    Examples:
      backburner halt key:release-1.4.2 --reason "the registry is down"
      backburner halt --process nightly --yes
    """
    async with connect(target) as client:

        async def halt(run_id: str) -> pb.Run:
            request = pb.HaltRunRequest(run_id=run_id, namespace=client.namespace, reason=reason)
            return (await client.runs.HaltRun(request, timeout=CALL_SECONDS)).run

        terms = Terms(reason, actor, sure=yes, dry_run=dry_run, as_json=as_json)
        return await change_runs(client, Selection(**which), op.BulkActionRequest.ACTION_HALT, halt, terms)


@click.command("resume")
@click.argument("names", metavar="[RUN]...", nargs=-1, shell_complete=run_names(*_RESUMES))
@with_filter
@with_reason
@with_actor
@with_dry_run
@with_yes
@with_json
@with_target
@asynchronous
async def resume_command(
    *, reason: str, actor: str, dry_run: bool, yes: bool, as_json: bool, target: Target, **which: tuple[str, ...]
) -> int:
    """Let runs go on that are halted, or parked by an error in process code.

    A run is replayed with the code that the scheduler has today: fix the process, start the scheduler with it, resume.
    With --state, --process or --label instead of names, all runs that match are meant.

    \b
    Examples:
      backburner resume key:release-1.4.2 --reason "fixed in 3f2a91c"
      backburner resume --state process_error --process nightly --yes
    """
    async with connect(target) as client:

        async def resume(run_id: str) -> pb.Run:
            request = pb.ResumeRunRequest(run_id=run_id, namespace=client.namespace, reason=reason)
            return (await client.runs.ResumeRun(request, timeout=CALL_SECONDS)).run

        terms = Terms(reason, actor, sure=yes, dry_run=dry_run, as_json=as_json)
        return await change_runs(client, Selection(**which), op.BulkActionRequest.ACTION_RESUME, resume, terms)
