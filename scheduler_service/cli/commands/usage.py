"""`backburner usage`: what runs, processes, harnesses, models or labels have consumed."""

from __future__ import annotations

import datetime as dt

import click
from rich.markup import escape

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.agents import describe_cost
from scheduler_service.cli.client import CALL_SECONDS, connect
from scheduler_service.cli.errors import UsageProblem
from scheduler_service.cli.names import read_labels
from scheduler_service.cli.options import asynchronous, seconds, with_json, with_target
from scheduler_service.cli.output import console, put, table

_BY = ("run", "process", "harness", "model", "label")


@click.command("usage")
@click.option("--by", type=click.Choice(_BY), default="harness", show_default=True, help="What to add up by.")
@click.argument("name", metavar="[LABEL]", default="")
@click.option("--since", "since_s", type=seconds, metavar="TIME", help="Only what ended so long ago or later: 1h, 7d.")
@click.option("--run", "run", metavar="RUN", default="", help="Only this run.")
@click.option("--label", "labels", metavar="NAME=VALUE", multiple=True, help="Only with this label. Repeatable.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many rows.")
@with_json
@with_target
@asynchronous
async def usage_command(
    *, by: str, name: str, since_s: float | None, run: str, labels: tuple[str, ...], limit: int, as_json: bool,
    target: Target,
) -> None:  # fmt: skip
    """Add up tokens, costs, turns and running time: of all attempts that have ended, and of open ones so far.

    A cost that is not known is counted, not guessed: `$1.20 + 3 attempts of unknown cost`. The labels of a run count
    for its effects. What `prune` has removed stays in the sums, by days (UTC) and not by run.

    \b
    Examples:
      backburner usage
      backburner usage --by model --since 24h
      backburner usage --by label team --since 7d
      backburner usage --by run --label team=web --json
    """
    if (by == "label") != bool(name):
        raise UsageProblem("name the label to add up by: `--by label team`; without --by label there is none to name")
    group = pb.ListUsageRequest.GroupBy.Value(f"GROUP_BY_{by.upper()}")
    request = pb.ListUsageRequest(
        namespace=target.namespace, group_by=group, label=name, labels=read_labels(labels), page_size=limit
    )
    if since_s is not None:
        request.since.FromDatetime(dt.datetime.now(dt.UTC) - dt.timedelta(seconds=since_s))
    async with connect(target) as client:
        if run:
            request.run_id = (await client.find_run(run)).run_id
        answer = await client.runs.ListUsage(request, timeout=CALL_SECONDS)
    if as_json:
        for total in (*answer.groups, answer.total):
            click.echo(text.json_line(total))
        return
    _print(answer, name or by)


def _print(answer: pb.ListUsageResponse, heading: str) -> None:
    right = ("ATTEMPTS", "OPEN", "IN", "CACHED", "OUT", "TURNS", "RAN")
    rows = table(heading.upper(), "ATTEMPTS", "OPEN", "IN", "CACHED", "OUT", "TURNS", "RAN", "COST", right=right)
    for group in answer.groups:
        rows.add_row(escape(text.plain(group.key) or "-"), *_cells(group))
    if answer.groups_left_out:
        rows.add_row(f"({answer.groups_left_out} more)")
    rows.add_row("total", *_cells(answer.total))
    put(console(), rows)


def _cells(total: pb.UsageTotal) -> tuple[str, ...]:
    usage = total.usage
    consumed = usage.input_tokens or usage.output_tokens or usage.turns
    return (
        str(total.attempts),
        str(total.open_attempts or ""),
        text.count(usage.input_tokens),
        text.count(usage.cached_input_tokens),
        text.count(usage.output_tokens),
        str(usage.turns),
        text.span(text.seconds(total.wall_time)),
        describe_cost(usage) if consumed or usage.costs_unknown or usage.HasField("cost_usd") else "",
    )
