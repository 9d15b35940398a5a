"""`backburner logs`: what a child wrote."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import BinaryIO, Final

import click

from backburner.executor.v1 import executor_service_pb2 as executor
from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import Client, connect
from scheduler_service.cli.complete import effect_names
from scheduler_service.cli.options import asynchronous, with_json, with_target
from scheduler_service.cli.output import console

_STREAMS: Final = {
    "both": executor.OUTPUT_STREAM_UNSPECIFIED,
    "stdout": executor.OUTPUT_STREAM_STDOUT,
    "stderr": executor.OUTPUT_STREAM_STDERR,
    "transcript": executor.OUTPUT_STREAM_TRANSCRIPT,
}


@click.command("logs")
@click.argument("effect", metavar="EFFECT", shell_complete=effect_names)
@click.option("--follow", "-f", is_flag=True, help="Go on until the attempt has ended.")
@click.option("--stream", type=click.Choice(list(_STREAMS)), default="both", show_default=True)
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="Attempt. Default: the newest.")
@click.option("--offset", type=click.IntRange(min=0), default=0, help="First byte to print; with one --stream.")
@click.option("--pretty", is_flag=True, help="Of an agent: what it said and did, for people, instead of its output.")
@with_json
@with_target
@asynchronous
async def logs_command(
    *,
    effect: str,
    follow: bool,
    stream: str,
    attempt: int | None,
    offset: int,
    pretty: bool,
    as_json: bool,
    target: Target,
) -> None:
    """Print the output of an effect's child, as it was written: stdout to stdout, stderr to stderr.

    With --pretty the transcript of an agent is drawn: its words, its tools and what they gave, shortened, its errors,
    and what it used. The transcript itself is JSON lines: --stream transcript.

    \b
    Examples:
      backburner logs 0198f2c4a1b2/tests -f
      backburner logs RUN/build --stream stderr --attempt 1 > build.err
      backburner logs RUN/review --pretty -f
    """
    if pretty and (as_json or offset or stream != "both"):
        raise click.UsageError("--pretty draws the whole transcript: leave out --json, --stream and --offset")
    if offset and stream == "both":
        raise click.UsageError(
            "--offset counts bytes of one stream: give --stream stdout, --stream stderr or --stream transcript"
        )
    async with connect(target) as client:
        found = await client.find_effect(effect)
        request = pb.StreamOutputRequest(
            effect=pb.EffectName(effect_id=found.effect_id),
            namespace=client.namespace,
            attempt=attempt or 0,
            stream=executor.OUTPUT_STREAM_TRANSCRIPT if pretty else _STREAMS[stream],
            offset=offset,
            follow=follow,
        )
        if pretty:
            await _draw(_frames(client, request), found)
            return
        async for frame in _frames(client, request):
            _print(frame, as_json=as_json)


async def _frames(client: Client, request: pb.StreamOutputRequest) -> AsyncIterator[pb.StreamOutputResponse]:
    call = client.runs.StreamOutput(request)
    try:
        async for frame in call:
            yield frame
    finally:
        call.cancel()


async def _draw(frames: AsyncIterator[pb.StreamOutputResponse], effect: pb.Effect) -> None:
    from scheduler_service.cli.pretty import Pretty

    drawn = Pretty(console())
    async for frame in frames:
        if frame.WhichOneof("frame") == "chunk":
            drawn.feed(frame.chunk.data)
        elif frame.WhichOneof("frame") == "omitted":
            drawn.gap(frame.omitted.bytes)
    drawn.close()
    if not drawn.events.seen:
        what = "nothing is in its transcript" if effect.kind == journal.EFFECT_KIND_AGENT else "it is no agent"
        click.echo(f"{what}: its output is shown by `backburner logs {effect.run_id}/{effect.key}`", err=True)


def _print(frame: pb.StreamOutputResponse, *, as_json: bool) -> None:
    kind = frame.WhichOneof("frame")
    if as_json:
        click.echo(text.json_line(frame))
    elif kind == "chunk":
        # Bytes as they are: a terminal, a file and a pipe get what the child wrote.
        out = _binary(frame.chunk.stream)
        out.write(frame.chunk.data)
        out.flush()
    elif kind == "omitted":
        click.echo(f"\n[{frame.omitted.bytes} bytes were not kept]", err=True)


def _binary(stream: executor.OutputStream.ValueType) -> BinaryIO:
    return sys.stderr.buffer if stream == executor.OUTPUT_STREAM_STDERR else sys.stdout.buffer
