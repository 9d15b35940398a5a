"""`backburner breakers`: circuit breakers of providers, and their reset."""

from __future__ import annotations

import click
from rich.markup import escape

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import operator_service_pb2 as op
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import CALL_SECONDS, connect
from scheduler_service.cli.errors import UsageProblem
from scheduler_service.cli.options import asynchronous, with_actor, with_json, with_reason, with_target
from scheduler_service.cli.output import console, put, table


@click.group("breakers", invoke_without_command=True)
@with_json
@with_target
@click.pass_context
def breakers_command(ctx: click.Context, *, as_json: bool, target: Target) -> None:
    """List the circuit breakers: harnesses that get nothing, since their provider refuses the login or has no quota.

    An attempt that fails so opens one; the first success after closes it. When nobody knows the time of the reset, one
    attempt a minute may try once the breaker is half-open.

    \b
    Examples:
      backburner breakers
      backburner breakers reset --harness codex --reason "logged in again"
    """
    if ctx.invoked_subcommand is None:
        asynchronous(_list)(target, as_json=as_json)


@breakers_command.command("reset")
@click.option("--everything", is_flag=True, help="All breakers, in all namespaces.")
@click.option("--harness", default="", metavar="NAME", help="Only of this harness.")
@click.option("--account", default="", metavar="ACCOUNT", help="Only of this account.")
@click.option("--executor", "executor_id", default="", metavar="EXECUTOR", help="Only those of this executor.")
@with_reason
@with_actor
@with_json
@with_target
@asynchronous
async def reset_command(
    *, everything: bool, harness: str, account: str, executor_id: str, reason: str, actor: str, as_json: bool,
    target: Target,
) -> None:  # fmt: skip
    """Close circuit breakers: what waits for them is dispatched, in the namespace (-n) alone unless all are named.

    \b
    Examples:
      backburner breakers reset --harness claude-code --reason "paid"
      backburner breakers reset --everything
    """
    if everything == bool(harness or account or executor_id):
        raise UsageProblem("say which: --harness, --account, --executor, or --everything alone")
    asked = op.ResetBreakersRequest(
        namespace="" if everything else target.namespace, harness=harness, account=account, executor_id=executor_id,
        reason=reason, actor=actor,
    )  # fmt: skip
    async with connect(target) as client:
        answer = await client.operators.ResetBreakers(asked, timeout=CALL_SECONDS)
    for breaker in answer.breakers:
        click.echo(text.json_line(breaker) if as_json else f"closed {_scope(breaker)}")
    if not as_json and not answer.breakers:
        click.echo("no breaker matches")


async def _list(target: Target, *, as_json: bool) -> None:
    out = console()
    rows = table("BREAKER", "STATE", "UNTIL", "WHY")
    async with connect(target) as client:
        answer = await client.operators.ListBreakers(op.ListBreakersRequest(), timeout=CALL_SECONDS)
    for breaker in answer.breakers:
        if as_json:
            click.echo(text.json_line(breaker))
            continue
        state = op.Breaker.State.Name(breaker.state).removeprefix("STATE_").lower().replace("_", "-")
        until = text.local_time(breaker.until) + ("" if breaker.reset_known else " (a guess)")
        reason = journal.EffectReason.Name(breaker.reason).removeprefix("EFFECT_REASON_")
        rows.add_row(*map(escape, (_scope(breaker), state, until, f"{reason}: {breaker.message}")))
    if not as_json:
        put(out, rows if rows.row_count else "no breaker is open")


def _scope(breaker: op.Breaker) -> str:
    given = (
        ("namespace", breaker.namespace),
        ("account", breaker.account),
        ("executor", breaker.executor_id),
    )
    return ", ".join([f"harness {breaker.harness}", *(f"{name} {value}" for name, value in given if value)])
