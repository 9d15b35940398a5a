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

from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.client import CALL_SECONDS, Client
from scheduler_service.cli.errors import CliError, UsageProblem, from_rpc
from scheduler_service.cli.exit_codes import ExitCode
from scheduler_service.cli.filters import run_filter

_AT_A_TIME: Final = 16

Change = Callable[[str], Awaitable[pb.Run]]
"""Changes the run with this id; gives it as it is afterwards."""


@dataclass(frozen=True)
class Selection:
    """Runs by name, or by filter."""

    names: Sequence[str]
    states: Sequence[str]
    processes: Sequence[str]
    labels: Sequence[str]

    @property
    def is_filter(self) -> bool:
        """True when runs are meant by what they are."""
        return bool(self.states or self.processes or self.labels)

    async def run_ids(self, client: Client) -> list[str]:
        """Ids of the runs that are named."""
        return list(dict.fromkeys([(await client.find_run(name)).run_id for name in self.names]))


@dataclass(frozen=True)
class Terms:
    """How many runs are changed: why, by whom, whether that is meant, whether it is only counted."""

    reason: str
    actor: str
    sure: bool
    dry_run: bool
    as_json: bool


async def change_runs(
    client: Client, selection: Selection, action: op.BulkActionRequest.Action.ValueType, change: Change, terms: Terms
) -> int:
    """Make the change, say how the runs are afterwards; the exit code is that of the first refusal."""
    if selection.is_filter == bool(selection.names):
        raise UsageProblem("name runs, or give --state, --process or --label to mean many", "not both, not neither")
    if selection.is_filter:
        return await _change_matching(client, selection, action, terms)
    if terms.dry_run:
        raise UsageProblem("--dry-run counts runs that match", "give --state, --process or --label")
    run_ids = await selection.run_ids(client)
    room, refusals = asyncio.Semaphore(_AT_A_TIME), list[CliError]()

    async def one(run_id: str) -> None:
        async with room:
            try:
                say(await change(run_id), as_json=terms.as_json)
            except grpc.aio.AioRpcError as error:
                refusals.append(from_rpc(error, client.target.address, client.target.source))

    await asyncio.gather(*map(one, run_ids))
    return _report(refusals, len(run_ids))


async def _change_matching(
    client: Client, selection: Selection, action: op.BulkActionRequest.Action.ValueType, terms: Terms
) -> int:
    """Count, ask, then step by step; Ctrl-C ends it between two steps, and the same command goes on."""
    which = run_filter(selection.states, selection.processes, selection.labels)
    request = op.BulkActionRequest(
        action=action, namespace=client.namespace, states=which.states, processes=which.processes,
        labels=dict(which.labels), reason=terms.reason, actor=terms.actor, dry_run=True,
    )  # fmt: skip
    count = (await client.operators.BulkAction(request, timeout=CALL_SECONDS)).applied
    verb = op.BulkActionRequest.Action.Name(action).removeprefix("ACTION_").lower()
    if terms.dry_run:
        click.echo(f"would {verb} {count} runs")
        return ExitCode.OK
    _ask(f"{verb} {count} runs", count, sure=terms.sure)
    request.dry_run, total = False, op.BulkActionResponse()
    while count:
        step = await client.operators.BulkAction(request, timeout=CALL_SECONDS)
        total.applied, total.refused = total.applied + step.applied, total.refused + step.refused
        if not step.next_page_token:
            break
        click.echo(f"{total.applied} done, {step.remaining} left", err=True)
        request.page_token = step.next_page_token
    refused = f", {total.refused} had changed meanwhile" if total.refused else ""
    click.echo(text.json_line(total) if terms.as_json else f"{verb}: {total.applied} runs{refused}")
    return ExitCode.OK


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
