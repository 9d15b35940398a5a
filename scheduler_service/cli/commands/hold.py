"""`backburner hold`, `unhold` and `holds`: the kill-switch of dispatch."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import click
from rich.markup import escape

from backburner.scheduler.v1 import operator_service_pb2 as op
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import CALL_SECONDS, Client, connect
from scheduler_service.cli.errors import UsageProblem
from scheduler_service.cli.options import asynchronous, seconds, with_actor, with_json, with_reason, with_target
from scheduler_service.cli.output import console, put, table


@click.command("hold")
@click.option("--everything", is_flag=True, help="Everything, in all namespaces.")
@click.option("--all-of-namespace", is_flag=True, help="Everything in the namespace (-n).")
@click.option("--harness", default="", metavar="NAME", help="Only this harness: shell, function, codex, ...")
@click.option("--executor", "executor_id", default="", metavar="EXECUTOR", help="Only this executor.")
@click.option("--label", default="", metavar="NAME=VALUE", help="Only effects with this label.")
@click.option("--for", "lasts_s", type=seconds, metavar="TIME", help="Ends by itself after it, such as 30m.")
@with_reason
@with_actor
@with_json
@with_target
@asynchronous
async def hold_command(
    *, everything: bool, all_of_namespace: bool, harness: str, executor_id: str, label: str, lasts_s: float | None,
    reason: str, actor: str, as_json: bool, target: Target,
) -> None:  # fmt: skip
    """Hold dispatch: nothing that matches starts, on any scheduler, once this command has returned.

    What runs already goes on. All that is given has to match; foreground and background are held alike. Waiting effects
    say that they wait for the hold and why, and start when it is released or ends.

    \b
    Examples:
      backburner hold --everything --reason "runaway spend"
      backburner hold --harness codex --for 30m --reason "provider is down"
      backburner hold --all-of-namespace -n staging
    """
    narrow = bool(harness or executor_id or label)
    if everything == (narrow or all_of_namespace):
        raise UsageProblem(
            "say what to hold: --harness, --executor, --label, --all-of-namespace, or --everything alone"
        )
    hold = op.Hold(harness=harness, executor_id=executor_id, label=label, reason=reason, actor=actor)
    hold.namespace = "" if everything else target.namespace
    if lasts_s is not None:
        hold.until.FromDatetime(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=lasts_s))
    async with connect(target) as client:
        answer = await client.operators.SetHold(op.SetHoldRequest(hold=hold), timeout=CALL_SECONDS)
    click.echo(text.json_line(answer.hold) if as_json else f"hold {answer.hold.hold_id}: {_scope(answer.hold)}")


@click.command("unhold")
@click.argument("hold_ids", metavar="[HOLD]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that are in force.")
@with_reason
@with_actor
@with_target
@asynchronous
async def unhold_command(
    *, hold_ids: Sequence[str], everything: bool, reason: str, actor: str, target: Target
) -> None:  # fmt: skip
    """Release holds; what waited for them starts.

    \b
    Examples:
      backburner unhold 7b0f4f0e-2f0e-4f43-9d4c-1f3d2b7f0a11 --reason "provider is back"
      backburner unhold --all
    """
    if bool(hold_ids) == everything:
        raise UsageProblem("name holds, or give --all", "`backburner holds` lists them")
    async with connect(target) as client:
        for hold_id in hold_ids or [hold.hold_id for hold in await _holds(client)]:
            hold = op.Hold(hold_id=hold_id, reason=reason, actor=actor)
            answer = await client.operators.SetHold(op.SetHoldRequest(hold=hold, release=True), timeout=CALL_SECONDS)
            click.echo(f"released {answer.hold.hold_id}: {_scope(answer.hold)}")


@click.command("holds")
@with_json
@with_target
@asynchronous
async def holds_command(*, as_json: bool, target: Target) -> None:
    """List the holds that are in force.

    \b
    Examples:
      backburner holds
    """
    out, now = console(), dt.datetime.now(dt.UTC)
    rows = table("HOLD", "HOLDS", "BY", "SINCE", "UNTIL", "WHY")
    async with connect(target) as client:
        for hold in await _holds(client):
            if as_json:
                click.echo(text.json_line(hold))
                continue
            until = text.local_time(hold.until) if hold.HasField("until") else "released"
            cells = (
                hold.hold_id,
                _scope(hold),
                hold.actor,
                f"{text.since(hold.create_time, now)} ago",
                until,
                hold.reason,
            )
            rows.add_row(*map(escape, cells))
    if not as_json:
        put(out, rows if rows.row_count else "nothing is held")


async def _holds(client: Client) -> Sequence[op.Hold]:
    return (await client.operators.ListHolds(op.ListHoldsRequest(), timeout=CALL_SECONDS)).holds


def _scope(hold: op.Hold) -> str:
    given = (
        ("namespace", hold.namespace),
        ("harness", hold.harness),
        ("executor", hold.executor_id),
        ("label", hold.label),
    )
    return ", ".join(f"{name} {value}" for name, value in given if value) or "everything"
