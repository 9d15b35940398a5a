"""`backburner prune`: removes whole runs that ended long ago."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Final

import click

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import operator_service_pb2 as op
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import CALL_SECONDS, connect
from scheduler_service.cli.errors import UsageProblem
from scheduler_service.cli.filters import parse_states
from scheduler_service.cli.options import asynchronous, seconds, with_actor, with_reason, with_target

#: Another one prunes just now: a moment, then again.
_BUSY_SECONDS: Final = 0.5


@click.command("prune")
@click.option("--older-than", "age_s", type=seconds, required=True, metavar="TIME", help="Ended so long ago: 30d, 12h.")
@click.option(
    "--state", "states", multiple=True, metavar="STATE", help="Only ended as this, such as completed. Repeatable."
)
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@with_reason
@with_actor
@with_target
@asynchronous
async def prune_command(
    *, age_s: float, states: Sequence[str], dry_run: bool, yes: bool, reason: str, actor: str, target: Target
) -> None:
    """Remove whole runs of the namespace that ended long ago: journal, effects, output, large values.

    Never one that has an open effect or an open parent, or that an open run reuses. Their ids and keys are remembered:
    a client that is run again with such a key is told RUN_PRUNED and does not start over. Ctrl-C ends it between two
    steps; the same command goes on. BACKBURNER_RETENTION_DAYS has the scheduler do it by itself.

    \b
    Examples:
      backburner prune --older-than 30d --dry-run
      backburner prune --older-than 7d --state completed --yes
    """
    request = op.PruneRunsRequest(namespace=target.namespace, dry_run=True, reason=reason, actor=actor)
    request.older_than.FromNanoseconds(int(age_s * 1e9))
    request.states.extend(parse_states(states, journal.RunState.items(), "RUN_STATE_"))
    async with connect(target) as client:
        found = await client.operators.PruneRuns(request, timeout=CALL_SECONDS)
        said = f"remove {found.runs} runs with {found.journal_rows:,} rows of the journal"
        if dry_run:
            click.echo(f"would {said}")
            return
        if found.runs and not yes and not sys.stdin.isatty():
            raise UsageProblem(f"this would {said}", "give --yes if that is meant")
        if found.runs and not yes:
            click.confirm(f"{said}?", abort=True, err=True)
        request.dry_run, total = False, 0
        while found.runs:
            step = await client.operators.PruneRuns(request, timeout=CALL_SECONDS)
            total += step.runs
            if not step.more:
                break
            await asyncio.sleep(0 if step.runs else _BUSY_SECONDS)
    click.echo(f"removed {total} runs")
