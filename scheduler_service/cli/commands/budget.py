"""`backburner budget`: what labels, runs and effects may consume."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import click
from rich.markup import escape

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import operator_service_pb2 as op
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.budgets import budget_of, with_budget
from scheduler_service.cli.client import CALL_SECONDS, connect
from scheduler_service.cli.options import asynchronous, with_actor, with_json, with_reason, with_target
from scheduler_service.cli.output import console, put, table

Command = Callable[..., Any]


@click.group("budget")
def budget_command() -> None:
    """Bound what labels, runs and effects may consume: US dollars, tokens, turns, running time.

    Runs and effects get theirs when they are asked for (`backburner run --budget-usd`, `bb.budget`); labels get theirs
    here. At the limit what runs is ended with its partial result and reason BUDGET, and nothing more starts.

    \b
    Examples:
      backburner budget set --label team=web --usd 50 --per day
      backburner budget list
      backburner budget raise 01890a5d --usd 20
      backburner budget clear --label team=web
    """


@budget_command.command("set")
@click.option("--label", required=True, metavar="NAME=VALUE", help="Label of effects or of runs.")
@with_budget("")
@click.option("--per", type=click.Choice(["day"]), help="That much each day (UTC). Default: once and for all.")
@with_reason
@with_actor
@with_json
@with_target
@asynchronous
async def set_command(
    *, label: str, budget: journal.Budget, per: str | None, reason: str, actor: str, as_json: bool, target: Target
) -> None:
    """Set the budget of a label, in place of one that it has.

    It counts what ends from then on; per day, the whole day. Set again it keeps what it has counted.

    \b
    Examples:
      backburner budget set --label team=web --usd 50 --per day
      backburner budget set --label kind=experiment --tokens 2e6 --ask
    """
    asked = op.LabelBudget(
        namespace=target.namespace, label=label, budget=budget, per_day=per == "day", reason=reason, actor=actor
    )
    async with connect(target) as client:
        answer = await client.operators.SetBudget(op.SetBudgetRequest(budget=asked), timeout=CALL_SECONDS)
    click.echo(text.json_line(answer.budget) if as_json else f"{label}: {_limits(answer.budget)}")


@budget_command.command("list")
@click.option("--run", "run", metavar="RUN", default="", help="That of this run too.")
@with_json
@with_target
@asynchronous
async def list_command(*, run: str, as_json: bool, target: Target) -> None:
    """List the budgets of labels, and what ended attempts have used of them.

    \b
    Examples:
      backburner budget list
      backburner budget list --run 01890a5d
    """
    rows = table("NAMESPACE", "OF", "BUDGET", "USED", "AT THE LIMIT", "BY", "SINCE", "WHY")
    now = dt.datetime.now(dt.UTC)
    async with connect(target) as client:
        request = op.ListBudgetsRequest()
        if run:
            request.run_id = (await client.find_run(run)).run_id
        budgets = (await client.operators.ListBudgets(request, timeout=CALL_SECONDS)).budgets
    for budget in budgets:
        if as_json:
            click.echo(text.json_line(budget))
            continue
        asks = budget.budget.on_spent == journal.BUDGET_ACTION_ASK
        cells = (
            budget.namespace, budget.label or f"run {budget.run_id}", _limits(budget), _used(budget),
            "asks" if asks else "fails", budget.actor, f"{text.since(budget.create_time, now)} ago", budget.reason,
        )  # fmt: skip
        rows.add_row(*map(escape, cells))
    if not as_json:
        put(console(), rows if rows.row_count else "no label has a budget")


@budget_command.command("clear")
@click.option("--label", required=True, metavar="NAME=VALUE", help="The label.")
@with_reason
@with_actor
@with_target
@asynchronous
async def clear_command(*, label: str, reason: str, actor: str, target: Target) -> None:
    """Take the budget of a label away.

    \b
    Examples:
      backburner budget clear --label team=web --reason "trial is over"
    """
    request = op.ClearBudgetRequest(namespace=target.namespace, label=label, reason=reason, actor=actor)
    async with connect(target) as client:
        await client.operators.ClearBudget(request, timeout=CALL_SECONDS)
    click.echo(f"{label} has no budget any more")


@budget_command.command("raise")
@click.argument("run", metavar="RUN")
@click.option("--effect", metavar="KEY", default="", help="The budget of this effect, by its key.")
@with_budget("", asks=False)
@with_reason
@with_actor
@with_target
@asynchronous
async def raise_command(
    *, run: str, effect: str, budget: journal.Budget, reason: str, actor: str, target: Target
) -> None:
    """Give a run, or an effect, new limits; those that are not given stay. What waits for the budget goes on.

    \b
    Examples:
      backburner budget raise 01890a5d --usd 20
      backburner budget raise 01890a5d --effect review/3 --tokens 500000
    """
    async with connect(target) as client:
        run_id = (await client.find_run(run)).run_id
        request = op.RaiseBudgetRequest(
            namespace=target.namespace, run_id=run_id, effect_key=effect, budget=budget, reason=reason, actor=actor
        )
        await client.operators.RaiseBudget(request, timeout=CALL_SECONDS)
    click.echo(f"{f'effect {effect} of ' if effect else ''}run {run_id}: {budget_of(budget)}")


def _limits(budget: op.LabelBudget) -> str:
    return budget_of(budget.budget) + (" a day" if budget.per_day else "")


def _used(budget: op.LabelBudget) -> str:
    plural = "s" if budget.costs_unknown > 1 else ""
    unknown = f" + {budget.costs_unknown} attempt{plural} of unknown cost" if budget.costs_unknown else ""
    return (budget_of(budget.used, only=budget.budget) or "nothing") + unknown
