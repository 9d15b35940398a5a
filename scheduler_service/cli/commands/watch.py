"""`backburner watch`: follow what runs already."""

from __future__ import annotations

import asyncio
import datetime as dt

import click

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import Client, connect
from scheduler_service.cli.complete import effect_names
from scheduler_service.cli.ending import continuation, say_end
from scheduler_service.cli.errors import CliError
from scheduler_service.cli.exit_codes import ExitCode
from scheduler_service.cli.follow import LIVE, Following
from scheduler_service.cli.options import asynchronous, seconds, with_json, with_target
from scheduler_service.cli.outcome import effect_exit_code, run_exit_code, say_effect_outcome
from scheduler_service.cli.output import console
from scheduler_service.cli.watching import watch_effect, watch_run


@click.command("watch")
@click.argument("name", metavar="RUN|EFFECT", shell_complete=effect_names)
@click.option("--after", type=click.IntRange(min=0), metavar="SEQ", help="Show the journal after SEQ, from 0, instead "
              "of beginning with the state as it is.")  # fmt: skip
@click.option("--timeout", type=seconds, metavar="TIME",
              help="Watch no longer than this (exit code 5).")  # fmt: skip
@with_json
@with_target
@asynchronous
async def watch_command(*, name: str, after: int | None, timeout: float | None, as_json: bool, target: Target) -> int:
    """Follow a run or an effect until it ends, and exit with its outcome.

    A connection that breaks is opened again where it broke: every event is shown once. A run that continued as another
    is followed there. With --json each line is a frame of WatchRun or WatchEffect.

    \b
    Examples:
      backburner watch key:release-1.4.2
      backburner watch 0198f2c4a1b2/tests
      backburner watch RUN --after 0 --json | jq .event.type
    """
    async with connect(target) as client:
        found = await client.find(name)
        try:
            async with asyncio.timeout(timeout):
                if isinstance(found, pb.Run):
                    return await _watch_run(client, found, after, as_json=as_json)
                return await _watch_effect(client, found, after, as_json=as_json)
        except TimeoutError as error:
            raise CliError(f"{name} did not end within {timeout:g} s", "it goes on", ExitCode.TIMED_OUT) from error


async def _watch_run(client: Client, run: pb.Run, after: int | None, *, as_json: bool) -> int:
    if as_json:
        return await _print_frames(client, run.run_id, after)
    following = Following(client, run.run_id, console(stderr=True))
    ended = await following.to_the_end(after)
    await say_end(client, ended, explained=following.explained)
    return run_exit_code(ended)


async def _print_frames(client: Client, run_id: str, after: int | None) -> int:
    while True:
        async for frame in watch_run(client, run_id, after, _note, LIVE):
            click.echo(text.json_line(frame))
        ended = await client.get_run(run_id)
        run_id, after = await continuation(client, ended), 0
        if not run_id:
            return run_exit_code(ended)


async def _watch_effect(client: Client, effect: pb.Effect, after: int | None, *, as_json: bool) -> int:
    from scheduler_service.cli.run_view import describe_progress

    progress, usage = effect.progress, effect.usage
    async for frame in watch_effect(client, effect.effect_id, after, _note):
        if as_json:
            click.echo(text.json_line(frame))
        elif frame.WhichOneof("frame") == "progress":
            now, live = dt.datetime.now().astimezone().strftime("%H:%M:%S"), frame.progress
            progress = live.progress if live.HasField("progress") else progress
            usage = live.usage if live.HasField("usage") else usage
            click.echo(f"{now}  {describe_progress(progress, usage)}", err=True)
        elif frame.WhichOneof("frame") == "event":
            event = frame.event
            click.echo(f"{text.clock(event.recorded_at)}  {text.event_type(event.type)}", err=True)
    settled = await client.get_effect(pb.EffectName(effect_id=effect.effect_id))
    if not as_json:
        say_effect_outcome(settled)
    return effect_exit_code(settled)


def _note(message: str) -> None:
    click.echo(message, err=True)
