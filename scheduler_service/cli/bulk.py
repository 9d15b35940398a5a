"""One change to many runs: named one by one, or by a filter with a count and a question."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import click
import grpc.aio
from google.protobuf.message import Message

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.client import Client
from scheduler_service.cli.errors import CliError, UsageProblem, from_rpc
from scheduler_service.cli.exit_codes import ExitCode
from scheduler_service.cli.filters import run_filter

_RUNS_MAX: Final = 100_000
_AT_A_TIME: Final = 16

Change = Callable[[str], Awaitable[pb.Run]]
"""Changes the run with this id; gives it as it is afterwards."""


@dataclass(frozen=True)
class Selection:
    """Runs by name, or by filter. `fitting` are the states that the change can be made in: the filter's default."""

    names: Sequence[str]
    states: Sequence[str]
    processes: Sequence[str]
    labels: Sequence[str]
    fitting: Sequence[journal.RunState.ValueType]

    @property
    def is_filter(self) -> bool:
        """True when runs are meant by what they are."""
        return bool(self.states or self.processes or self.labels)

    async def run_ids(self, client: Client) -> list[str]:
        """Ids of the runs that are meant. Raises UsageProblem for none and for both ways at once."""
        if self.is_filter == bool(self.names):
            raise UsageProblem("name runs, or give --state, --process or --label to mean many", "not both, not neither")
        if self.names:
            return list(dict.fromkeys([(await client.find_run(name)).run_id for name in self.names]))
        request = run_filter(self.states, self.processes, self.labels)
        request.page_size = 1000
        if not request.states:
            request.states.extend(self.fitting)
        return [run.run_id async for run in client.list_runs(request, _RUNS_MAX)]


async def change_runs(
    client: Client, selection: Selection, verb: str, change: Change, *, sure: bool, as_json: bool
) -> int:
    """Make the change, say how each run is afterwards; the exit code is that of the first refusal."""
    run_ids = await selection.run_ids(client)
    if selection.is_filter:
        _ask(f"{verb} {len(run_ids)} runs", len(run_ids), sure=sure)
    room, refusals = asyncio.Semaphore(_AT_A_TIME), list[CliError]()

    async def one(run_id: str) -> None:
        async with room:
            try:
                say(await change(run_id), as_json=as_json)
            except grpc.aio.AioRpcError as error:
                refusals.append(from_rpc(error, client.target.address, client.target.source))

    await asyncio.gather(*map(one, run_ids))
    return _report(refusals, len(run_ids))


def say(changed: Message, *, as_json: bool) -> None:
    """Print a changed run or effect: a line for people, or as JSON."""
    if as_json:
        click.echo(text.json_line(changed))
    elif isinstance(changed, pb.Run):
        click.echo(f"run {changed.run_id}: {text.run_state(changed.state).lower()}")
    elif isinstance(changed, pb.Effect):
        click.echo(f"effect {changed.key}: {text.effect_state(changed.state).lower()}")


def _ask(what: str, count: int, *, sure: bool) -> None:
    if sure or not count:
        click.echo(what, err=True)
    elif not sys.stdin.isatty():
        raise UsageProblem(f"this would {what}", "give --yes if that is meant")
    else:
        click.confirm(f"{what}?", abort=True, err=True)


def _report(refusals: Sequence[CliError], count: int) -> int:
    if not refusals:
        return ExitCode.OK
    if count == 1:
        raise refusals[0]
    for refusal in refusals:
        click.echo(f"error: {refusal}", err=True)
    click.echo(f"{len(refusals)} of {count} were refused", err=True)
    return refusals[0].code
