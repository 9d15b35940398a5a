"""`backburner blob`: a value that was too large to stand in the journal."""

from __future__ import annotations

import re
import sys

import click

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import connect
from scheduler_service.cli.complete import run_names
from scheduler_service.cli.errors import UsageProblem
from scheduler_service.cli.options import asynchronous, with_target

_DIGEST = re.compile(r"[0-9a-f]{64}")


@click.command("blob")
@click.argument("run", metavar="RUN", shell_complete=run_names())
@click.argument("digest", metavar="DIGEST")
@click.option("--offset", type=click.IntRange(min=0), default=0, help="First byte to print.")
@with_target
@asynchronous
async def blob_command(*, run: str, digest: str, offset: int, target: Target) -> None:
    """Write the content of a blob to stdout, byte for byte.

    Values above 64 KiB are kept as blobs of their run; `show` and `journal` print their digests.

    \b
    Examples:
      backburner blob key:release-1.4.2 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 > result.json
    """
    wanted = digest.removeprefix("sha256:").lower()
    if not _DIGEST.fullmatch(wanted):
        raise UsageProblem(f"{digest!r} is no digest", "give the 64 hexadecimal digits that `backburner show` prints")
    async with connect(target) as client:
        found = await client.find_run(run)
        request = pb.ReadBlobRequest(run_id=found.run_id, namespace=client.namespace, digest=wanted, offset=offset)
        async for frame in client.runs.ReadBlob(request):
            sys.stdout.buffer.write(frame.data)
        sys.stdout.buffer.flush()
