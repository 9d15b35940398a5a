"""`backburner run`: start a process, follow it, print its result."""

from __future__ import annotations

import asyncio
from typing import Final

import click
import grpc.aio
from rich.console import Console

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.budgets import with_budget
from scheduler_service.cli.client import CALL_SECONDS, Client, connect
from scheduler_service.cli.complete import process_names, run_names
from scheduler_service.cli.ending import say_end
from scheduler_service.cli.errors import CliError, reason_of
from scheduler_service.cli.exit_codes import ExitCode
from scheduler_service.cli.follow import Following
from scheduler_service.cli.names import read_input, read_labels
from scheduler_service.cli.options import asynchronous, seconds, with_json, with_target
from scheduler_service.cli.outcome import run_exit_code
from scheduler_service.cli.output import console
from scheduler_service.cli.suggest import did_you_mean, near

_PROCESSES_NAMED: Final = 20


@click.command("run")
@click.argument("process", shell_complete=process_names)
@click.argument("pairs", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--input", "source", metavar="JSON|@FILE|-", help="Input object; KEY=VALUE pairs are set on top of it.")
@click.option("--key", metavar="KEY", default="", help="Makes the call idempotent: the same key is the same run.")
@click.option("--label", "labels", metavar="NAME=VALUE", multiple=True, help="Label of the run. Repeatable.")
@click.option("--reuse-from", "earlier", metavar="RUN", default="", shell_complete=run_names(),
              help="Take over what succeeded in an earlier run: effects with the same key and work.")  # fmt: skip
@with_budget("budget-", required=False)
@click.option("--detach", "-d", is_flag=True, help="Print the run's id and do not follow it.")
@click.option("--timeout", type=seconds, metavar="TIME",
              help="Follow no longer than this; the run goes on (exit code 5).")  # fmt: skip
@click.option("--process-module", "module", metavar="MODULE",
              help="Module that defines PROCESS, for the error that names it when it is not loaded.")  # fmt: skip
@with_json
@with_target
@asynchronous
async def run_command(
    *,
    process: str,
    pairs: tuple[str, ...],
    source: str | None,
    key: str,
    labels: tuple[str, ...],
    earlier: str,
    budget: journal.Budget,
    detach: bool,
    timeout: float | None,
    module: str | None,
    as_json: bool,
    target: Target,
) -> int:
    """Start PROCESS and follow it to its result.

    KEY=VALUE pairs are its input: values are JSON where they parse as JSON, else text. The result goes to stdout,
    everything else to stderr. Ctrl-C stops the following, not the run.

    \b
    Examples:
      backburner run release-check repo=. 'files=["a.py", "b.py"]'
      backburner run deploy --input @deploy.json --key deploy-1.4.2 --label team=web
      backburner run report --detach
      backburner run review --budget-usd 5 --budget-ask
      backburner run release-check --reuse-from 01890a5d repo=.
    """
    request = pb.CreateRunRequest(namespace=target.namespace, process=process, key=key, labels=read_labels(labels))
    request.input.update(read_input(source, pairs))
    if budget != journal.Budget():
        request.budget.CopyFrom(budget)
    async with connect(target) as client:
        if earlier:
            request.reuse_from = (await client.find_run(earlier)).run_id
        created = await _create(client, request, module)
        if detach:
            click.echo(text.json_line(created.run) if as_json else created.run.run_id)
            return ExitCode.OK
        out = console(stderr=True)
        out.print(f"run {created.run.run_id} {'created' if created.created else 'exists already'}", markup=False)
        following = Following(client, created.run.run_id, out)
        # From the first event for a new run; a run that may have a long past starts from a snapshot.
        run = await _to_the_end(following, out, 0 if created.created else None, timeout)
        await say_end(client, run, explained=following.explained, as_json=as_json)
    return run_exit_code(run)


async def _create(client: Client, request: pb.CreateRunRequest, module: str | None) -> pb.CreateRunResponse:
    try:
        return await client.runs.CreateRun(request, timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        if reason_of(error) != "PROCESS_NOT_FOUND":
            raise
        raise await _unknown_process(client, request.process, module) from error


async def _unknown_process(client: Client, process: str, module: str | None) -> CliError:
    info = await client.runs.GetServerInfo(pb.GetServerInfoRequest(), timeout=CALL_SECONDS)
    some = sorted(info.processes)[:_PROCESSES_NAMED]
    known = ", ".join([*some, *(["…"] if len(info.processes) > len(some) else [])]) or "none"
    # A client cannot load code into a running server: the server has to be started with it.
    restart = f"restart it with the module that defines it: `backburner dev --process-module {module or 'MODULE'}`"
    meant = did_you_mean(near(process, info.processes))
    return CliError(
        f"the scheduler at {client.target.address} has no process {process!r} (it has: {known})",
        f"{meant} Or {restart}" if meant else restart,
        ExitCode.USAGE,
    )


async def _to_the_end(following: Following, out: Console, after: int | None, timeout: float | None) -> pb.Run:
    """Draw the run until it ends or is parked; Ctrl-C and --timeout leave it running, and say how to come back."""
    try:
        async with asyncio.timeout(timeout):
            return await following.to_the_end(after)
    except asyncio.CancelledError:
        out.print(f"detached: the run goes on. {_come_back(following.run_id)}", markup=False)
        raise
    except TimeoutError as error:
        remedy = _come_back(following.run_id)
        raise CliError(f"the run did not end within {timeout:g} s", remedy, ExitCode.TIMED_OUT) from error


def _come_back(run_id: str) -> str:
    return f"Follow it with `backburner watch {run_id}`, end it with `backburner cancel {run_id}`"
