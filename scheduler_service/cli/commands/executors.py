"""`backburner executors`: who does the work."""

from __future__ import annotations

import datetime as dt

import click
from rich.markup import escape
from rich.text import Text

from backburner.scheduler.v1 import operator_service_pb2 as op
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import CALL_SECONDS, connect
from scheduler_service.cli.options import asynchronous, with_json, with_target
from scheduler_service.cli.output import console, put, table


@click.command("executors")
@click.option("--all", "everyone", is_flag=True, help="Also those whose attempts were declared lost.")
@with_json
@with_target
@asynchronous
async def executors_command(*, everyone: bool, as_json: bool, target: Target) -> None:
    """List executors: state, slots taken of slots by pool, what they can run.

    \b
    Examples:
      backburner executors
      backburner executors --all --json | jq -r .executor_id
    """
    out, now = console(), dt.datetime.now(dt.UTC)
    rows = table("EXECUTOR", "STATE", "SLOTS", "HARNESSES", "FUNCTIONS", "SEEN", right=("SEEN",))
    request = op.ListExecutorsRequest(page_size=1000, states=op.Executor.State.values()[1:] if everyone else ())
    async with connect(target) as client:
        for executor in (await client.operators.ListExecutors(request, timeout=CALL_SECONDS)).executors:
            if as_json:
                click.echo(text.json_line(executor))
                continue
            state = op.Executor.State.Name(executor.state).removeprefix("STATE_")
            cells = (_slots(executor), _harnesses(executor), _functions(executor), _seen(executor, now))
            rows.add_row(escape(executor.executor_id), Text(state, text.style(state)), *map(escape, cells))
    if not as_json:
        put(out, rows if rows.row_count else "no executors: start one with `backburner executor`")


def _slots(executor: op.Executor) -> str:
    return " ".join(f"{pool.name} {executor.slots_taken.get(pool.name, 0)}/{pool.slots}" for pool in executor.pools)


def _harnesses(executor: op.Executor) -> str:
    return " ".join(harness.name for harness in executor.harnesses)


def _functions(executor: op.Executor) -> str:
    names = sorted(executor.functions)
    return " ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _seen(executor: op.Executor, now: dt.datetime) -> str:
    return f"{text.since(executor.seen_time, now)} ago" if executor.HasField("seen_time") else ""
