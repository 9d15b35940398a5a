"""`backburner run`: start a process, follow it, print its result."""

from __future__ import annotations

import asyncio

import click
import grpc.aio

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import CALL_SECONDS, Client, connect
from scheduler_service.cli.complete import process_names
from scheduler_service.cli.errors import CliError
from scheduler_service.cli.exit_codes import ExitCode
from scheduler_service.cli.follow import follow, screen
from scheduler_service.cli.names import read_input, read_labels
from scheduler_service.cli.options import asynchronous, seconds, with_json, with_target
from scheduler_service.cli.outcome import run_exit_code, say_outcome
from scheduler_service.cli.output import console
from scheduler_service.cli.run_view import RunView
from scheduler_service.cli.watching import watch_run


@click.command("run")
@click.argument("process", shell_complete=process_names)
@click.argument("pairs", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--input", "source", metavar="JSON|@FILE|-", help="Input object; KEY=VALUE pairs are set on top of it.")
@click.option("--key", metavar="KEY", default="", help="Makes the call idempotent: the same key is the same run.")
@click.option("--label", "labels", metavar="NAME=VALUE", multiple=True, help="Label of the run. Repeatable.")
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
    """
    request = pb.CreateRunRequest(namespace=target.namespace, process=process, key=key, labels=read_labels(labels))
    request.input.update(read_input(source, pairs))
    async with connect(target) as client:
        created = await _create(client, request, module)
        if detach:
            click.echo(text.json_line(created.run) if as_json else created.run.run_id)
            return ExitCode.OK
        run = await follow_to_end(client, created, timeout)
    say_outcome(run, as_json=as_json)
    return run_exit_code(run)


async def _create(client: Client, request: pb.CreateRunRequest, module: str | None) -> pb.CreateRunResponse:
    try:
        return await client.runs.CreateRun(request, timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.NOT_FOUND:
            raise
        raise await _unknown_process(client, request.process, module) from error


async def _unknown_process(client: Client, process: str, module: str | None) -> CliError:
    info = await client.runs.GetServerInfo(pb.GetServerInfoRequest(), timeout=CALL_SECONDS)
    known = ", ".join(sorted(info.processes)) or "none"
    # A client cannot load code into a running server: the server has to be started with it.
    return CliError(
        f"the scheduler at {client.target.address} has no process {process!r} (it has: {known})",
        f"restart it with the module that defines it: `backburner dev --process-module {module or 'MODULE'}`",
        ExitCode.USAGE,
    )


async def follow_to_end(client: Client, created: pb.CreateRunResponse, timeout: float | None) -> pb.Run:
    """Draw the run until it ends or is parked; Ctrl-C and --timeout leave it running, and say how to come back."""
    run_id = created.run.run_id
    err = console(stderr=True)
    err.print(f"run {run_id} {'created' if created.created else 'exists already: following it'}", markup=False)
    view = RunView(run_id)
    try:
        async with asyncio.timeout(timeout):
            with screen(err, view) as on:
                # From the first event for a new run; a run that may have a long past starts from a snapshot.
                after = 0 if created.created else None
                frames = watch_run(client, run_id, after, on.note, (pb.WatchRunRequest.INCLUDE_PROGRESS,))
                await follow(frames, view, on)
        return await client.get_run(run_id)
    except asyncio.CancelledError:
        err.print(f"detached: the run goes on. {_come_back(run_id)}", markup=False)
        raise
    except TimeoutError as error:
        raise CliError(f"the run did not end within {timeout:g} s", _come_back(run_id), ExitCode.TIMED_OUT) from error


def _come_back(run_id: str) -> str:
    return f"Follow it with `backburner watch {run_id}`, end it with `backburner cancel {run_id}`"
