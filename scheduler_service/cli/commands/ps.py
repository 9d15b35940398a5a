"""`backburner ps`: what runs, and what it waits for."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import TypeVar

import click
from rich.markup import escape
from rich.text import Text

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import Client, connect
from scheduler_service.cli.errors import UsageProblem
from scheduler_service.cli.names import read_labels
from scheduler_service.cli.options import asynchronous, with_json, with_target
from scheduler_service.cli.output import console, put, table
from scheduler_service.cli.run_view import describe_progress, describe_report

_WIDE = 130
_REASONS_MAX = 100
Value = TypeVar("Value", bound=int)


@click.command("ps")
@click.option("--effects", is_flag=True, help="List open effects of all runs instead of runs.")
@click.option("--state", "states", multiple=True, metavar="STATE", help="Only this state, such as running. Repeatable.")
@click.option("--process", "processes", multiple=True, metavar="PROCESS", help="Only runs of it. Repeatable.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Only with this label. Repeatable.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="At most so many rows.")
@with_json
@with_target
@asynchronous
async def ps_command(
    *,
    effects: bool,
    states: tuple[str, ...],
    processes: tuple[str, ...],
    labels: tuple[str, ...],
    limit: int,
    as_json: bool,
    target: Target,
) -> None:
    """List runs, newest first, or with --effects the effects that are open, each with what it waits for.

    \b
    Examples:
      backburner ps --state running --state process_error
      backburner ps --effects --state waiting       approvals that nobody has answered
      backburner ps --json | jq -r .run_id
    """
    if effects and processes:
        raise UsageProblem("--process is for runs", "leave out --effects, or use --label")
    async with connect(target) as client:
        if effects:
            asked = pb.ListEffectsRequest(open_only=True, labels=read_labels(labels), view=pb.VIEW_FULL)
            asked.states.extend(_parse(states, journal.EffectState.items(), "EFFECT_STATE_"))
            await _list_effects(client, asked, limit, as_json=as_json)
        else:
            wanted = pb.ListRunsRequest(processes=processes, labels=read_labels(labels))
            wanted.states.extend(_parse(states, journal.RunState.items(), "RUN_STATE_"))
            await _list_runs(client, wanted, limit, as_json=as_json)


async def _list_runs(client: Client, request: pb.ListRunsRequest, limit: int, *, as_json: bool) -> None:
    request.page_size = min(limit, 1000)
    runs = await _with_reasons(client, [run async for run in client.list_runs(request, limit)])
    if as_json:
        for run in runs:
            click.echo(text.json_line(run))
        return
    out, now = console(), dt.datetime.now(dt.UTC)
    rows = table("RUN", "STATE", "PROCESS", "KEY", "AGE", "EFFECTS", "WAITING ON", right=("AGE",))
    for run in runs:
        state = text.run_state(run.state)
        cells = (run.process or "(client)", run.key, text.since(run.create_time, now), _counts(run.effect_counts))
        name = _short_id(run.run_id, out.width)
        rows.add_row(name, Text(state, text.style(state)), *map(escape, cells), escape(_waits(run)))
    put(out, rows if runs else "no runs; start one with `backburner run PROCESS`")


async def _with_reasons(client: Client, runs: list[pb.Run]) -> list[pb.Run]:
    # What a run waits for is computed for single runs only. Bounded: a longer list is for machines.
    waiting = [run for run in runs if run.state not in text.RUN_ENDED | text.RUN_PARKED][:_REASONS_MAX]
    answers = await asyncio.gather(*(client.get_run(run.run_id, view=pb.VIEW_BASIC) for run in waiting))
    for run, answer in zip(waiting, answers, strict=True):
        run.CopyFrom(answer)
    return runs


async def _list_effects(client: Client, request: pb.ListEffectsRequest, limit: int, *, as_json: bool) -> None:
    out, now = console(), dt.datetime.now(dt.UTC)
    request.page_size = min(limit, 1000)
    rows = table("EFFECT", "STATE", "CLASS", "AGE", "PROGRESS", "WAITING ON", right=("AGE",))
    async for effect in client.list_effects(request, limit):
        if as_json:
            click.echo(text.json_line(effect))
            continue
        state = text.effect_state(effect.state)
        kind = "background" if effect.background else "foreground"
        name = f"{_short_id(effect.run_id, out.width)}/{effect.key}"
        cells = (kind, text.since(effect.request_time, now), describe_progress(effect.progress), _why(effect))
        rows.add_row(escape(name), Text(state, text.style(state)), *map(escape, cells))
    if not as_json:
        put(out, rows if rows.row_count else "no open effects")


def _short_id(run_id: str, width: int) -> str:
    # The end of a UUIDv7 is random, so it is unique where its beginning, a time, is not. Commands take either.
    return run_id if width >= _WIDE else run_id.rpartition("-")[2]


def _parse(names: tuple[str, ...], known: list[tuple[str, Value]], prefix: str) -> list[Value]:
    values = {name.removeprefix(prefix): value for name, value in known if value}
    for name in names:
        if name.upper() not in values:
            raise UsageProblem(f"--state {name}: no such state", f"one of {', '.join(values).lower()}")
    return [values[name.upper()] for name in names]


def _counts(counts: pb.EffectCounts) -> str:
    named = (
        (counts.running, "running"),
        (counts.waiting, "waiting"),
        (counts.succeeded, "ok"),
        (counts.failed, "failed"),
        (counts.cancelled, "cancelled"),
    )
    return " ".join(f"{number} {name}" for number, name in named if number)


def _waits(run: pb.Run) -> str:
    if run.HasField("error"):
        return text.one_line(f"{run.error.kind}: {run.error.message}", 120)
    said = [item.message for item in run.waiting_on[:2]]
    more = len(run.waiting_on) - len(said)
    report = describe_report(run.report)
    return "; ".join([*([report] if report and not run.HasField("end_time") else []), *said]) + (
        f"; and {more} more" if more > 0 else ""
    )


def _why(effect: pb.Effect) -> str:
    asked = effect.spec.external
    if asked.prompt:  # more telling than that somebody has to answer
        return f"{asked.prompt} [{'/'.join(asked.choices)}]" if asked.choices else asked.prompt
    return effect.waiting_on.message
