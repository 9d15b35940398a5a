"""`backburner drain`, `undrain` and `expire`: executors that shall take nothing new, or are dead."""

from __future__ import annotations

import datetime as dt
import sys

import click

from backburner.scheduler.v1 import operator_service_pb2 as op
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import CALL_SECONDS, Client, connect
from scheduler_service.cli.errors import UsageProblem
from scheduler_service.cli.options import asynchronous, with_actor, with_json, with_reason, with_target


@click.command("drain")
@click.argument("executor_id", metavar="EXECUTOR")
@with_reason
@with_actor
@with_json
@with_target
@asynchronous
async def drain_command(*, executor_id: str, reason: str, actor: str, as_json: bool, target: Target) -> None:
    """Let an executor take nothing new; what it runs goes on. It stays so, over restarts, until `backburner undrain`.

    \b
    Examples:
      backburner drain executor-1 --reason "kernel update"
    """
    await _drain(executor_id, reason, actor, target, drain=True, as_json=as_json)


@click.command("undrain")
@click.argument("executor_id", metavar="EXECUTOR")
@with_reason
@with_actor
@with_json
@with_target
@asynchronous
async def undrain_command(*, executor_id: str, reason: str, actor: str, as_json: bool, target: Target) -> None:
    """Let an executor take new work again.

    \b
    Examples:
      backburner undrain executor-1
    """
    await _drain(executor_id, reason, actor, target, drain=False, as_json=as_json)


@click.command("expire")
@click.argument("executor_id", metavar="EXECUTOR")
@with_reason
@with_actor
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@with_target
@asynchronous
async def expire_command(*, executor_id: str, reason: str, actor: str, yes: bool, target: Target) -> None:
    """Declare an executor dead now, without waiting for the grace: you vouch for it.

    What it had is lost: retried or failed by its policy, and what it says later is only kept as evidence. If it lives
    after all, it stops that work when it reports.

    \b
    Examples:
      backburner expire executor-1 --reason "the machine is gone" --yes
    """
    async with connect(target) as client:
        executor = await _find(client, executor_id)
        seen = text.since(executor.seen_time, dt.datetime.now(dt.UTC))
        state = op.Executor.State.Name(executor.state).removeprefix("STATE_").lower()
        said = f"declare executor {executor_id} dead ({state}, last heard of {seen} ago)"
        if not yes and not sys.stdin.isatty():
            raise UsageProblem(f"this would {said}", "give --yes if that is meant")
        if not yes:
            click.confirm(f"{said}?", abort=True, err=True)
        request = op.ExpireExecutorRequest(
            executor_id=executor_id, incarnation=executor.incarnation, reason=reason, actor=actor
        )
        lost = (await client.operators.ExpireExecutor(request, timeout=CALL_SECONDS)).attempts_lost
    click.echo(f"executor {executor_id}: lost, with {lost} attempts")


async def _drain(executor_id: str, reason: str, actor: str, target: Target, *, drain: bool, as_json: bool) -> None:
    async with connect(target) as client:
        request = op.DrainExecutorRequest(executor_id=executor_id, drain=drain, reason=reason, actor=actor)
        executor = (await client.operators.DrainExecutor(request, timeout=CALL_SECONDS)).executor
    state = op.Executor.State.Name(executor.state).removeprefix("STATE_").lower()
    click.echo(text.json_line(executor) if as_json else f"executor {executor_id}: {state}")


async def _find(client: Client, executor_id: str) -> op.Executor:
    request = op.ListExecutorsRequest(page_size=1000, states=op.Executor.State.values()[1:])
    while True:
        answer = await client.operators.ListExecutors(request, timeout=CALL_SECONDS)
        for executor in answer.executors:
            if executor.executor_id == executor_id:
                return executor
        if not answer.next_page_token:
            raise UsageProblem(f"no executor is called {executor_id}", "`backburner executors --all` lists them")
        request.page_token = answer.next_page_token
