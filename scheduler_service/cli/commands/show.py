"""`backburner show`: one run or one effect in full."""

from __future__ import annotations

import datetime as dt

import click
from google.protobuf import json_format
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.agents import describe_usage, describe_workspace
from scheduler_service.cli.client import Client, connect
from scheduler_service.cli.complete import effect_names
from scheduler_service.cli.ending import blamed
from scheduler_service.cli.failures import location
from scheduler_service.cli.options import asynchronous, with_json, with_target
from scheduler_service.cli.outcome import describe_effect_error, describe_failure, ways_on
from scheduler_service.cli.output import console, details, put, short_key, table
from scheduler_service.cli.run_view import describe_progress, describe_report, last_heard

_EFFECTS_SHOWN = 40


@click.command("show")
@click.argument("name", metavar="RUN|EFFECT", shell_complete=effect_names)
@with_json
@with_target
@asynchronous
async def show_command(*, name: str, as_json: bool, target: Target) -> None:
    """Show a run with its effects, or an effect with its work and its result.

    \b
    Examples:
      backburner show key:release-1.4.2
      backburner show 0198f2c4a1b2/tests
    """
    async with connect(target) as client:
        found = await client.find(name)
        if as_json:
            click.echo(text.json_line(found))
        elif isinstance(found, pb.Run):
            await _show_run(client, found)
        else:
            _show_effect(console(), found)


async def _show_run(client: Client, run: pb.Run) -> None:
    out = console()
    put(out, details(_run_details(run)))
    if run.error.traceback:
        out.print(Text(f"\n{text.plain(run.error.traceback).rstrip()}"))
    if run.state in text.RUN_PARKED:
        out.print(Text("\n".join(["", *ways_on(run)])))
    wanted = pb.ListEffectsRequest(run_id=run.run_id, page_size=_EFFECTS_SHOWN)
    effects = [effect async for effect in client.list_effects(wanted, _EFFECTS_SHOWN)]
    if effects:
        out.print()
        _print_effects(out, effects, dt.datetime.now(dt.UTC))
    if len(effects) == _EFFECTS_SHOWN:
        out.print(f"the newest {_EFFECTS_SHOWN}; all of them: backburner journal {run.run_id}", markup=False)
    for failure in await blamed(client, run):
        out.print(Text("\n".join(["", *describe_failure(failure)])))


def _run_details(run: pb.Run) -> list[tuple[str, object]]:
    state = text.run_state(run.state)
    waits = "\n".join(item.message for item in run.waiting_on)
    return [
        ("run", run.run_id),
        ("process", run.process or "(client-driven)"),
        ("key", run.key),
        ("state", Text(state, text.style(state))),
        ("report", describe_report(run.report)),
        ("waiting on", waits),
        ("cancel", run.cancel_reason if run.cancel_requested else ""),
        ("error", f"{run.error.kind}: {run.error.message}" if run.HasField("error") else ""),
        ("at", location(run.error.traceback)),
        ("created", text.local_time(run.create_time)),
        ("ended", text.local_time(run.end_time) if run.HasField("end_time") else ""),
        ("labels", " ".join(f"{name}={value}" for name, value in sorted(run.labels.items()))),
        ("parent", run.parent_run_id),
        ("journal", f"{run.head_seq} events"),
        ("input", text.pretty_json(json_format.MessageToDict(run.input)) if run.HasField("input") else ""),
        ("result", _payload(run.result) if run.HasField("result") else ""),
    ]


def _print_effects(out: Console, effects: list[pb.Effect], now: dt.datetime) -> None:
    rows = table("EFFECT", "STATE", "CLASS", "ATTEMPT", "TOOK", "WHAT", right=("ATTEMPT", "TOOK"))
    for effect in effects:
        state = text.effect_state(effect.state)
        kind = "background" if effect.background else "foreground"
        child = f"run {effect.child_run_id}" if effect.child_run_id else ""
        said = describe_effect_error(effect) or _now(effect)
        what = said if child in said else f"{child}: {said}" if said else child
        cells = (kind, str(effect.attempt), _took(effect, now), what)
        rows.add_row(escape(short_key(effect.key, out.width)), Text(state, text.style(state)), *map(escape, cells))
    put(out, rows)


def _now(effect: pb.Effect) -> str:
    """What it waits for; once it runs, what it does and has consumed."""
    told = describe_progress(effect.progress, effect.usage)
    return told if told and effect.state == journal.EFFECT_STATE_RUNNING else effect.waiting_on.message or told


def _took(effect: pb.Effect, now: dt.datetime) -> str:
    if effect.HasField("elapsed"):
        return text.span(text.seconds(effect.elapsed))
    return text.since(effect.start_time, now) if effect.HasField("start_time") else ""


def _show_effect(out: Console, effect: pb.Effect) -> None:
    put(out, details(_effect_details(effect)))
    for name, stream in (("stdout", effect.result.stdout), ("stderr", effect.result.stderr)):
        if stream.tail:
            omitted = f", {stream.total_bytes:.0f} bytes in all" if stream.total_bytes > len(stream.tail) else ""
            out.print(Text(f"\n{name}, the end of it{omitted}:", "bold"))
            out.print(Text(text.plain(stream.tail).rstrip()))
    if effect.error.traceback:
        out.print(Text(f"\n{text.plain(effect.error.traceback).rstrip()}"))


def _effect_details(effect: pb.Effect) -> list[tuple[str, object]]:
    state, result = text.effect_state(effect.state), effect.result
    death = journal.Death.Name(effect.death).removeprefix("DEATH_").lower() if effect.death else ""
    return [
        ("effect", effect.effect_id),
        ("key", effect.key),
        ("run", effect.run_id),
        ("child run", effect.child_run_id),
        ("name", effect.name),
        ("state", Text(state, text.style(state))),
        ("class", "background" if effect.background else "foreground"),
        ("why", describe_effect_error(effect)),
        ("waiting on", effect.waiting_on.message),
        ("progress", describe_progress(effect.progress)),
        ("used", describe_usage(effect.result.usage if result.HasField("usage") else effect.usage)),
        ("workspace", describe_workspace(result.workspace)),
        ("last heard", last_heard(effect, dt.datetime.now(dt.UTC))),
        ("attempt", f"{effect.attempt} on {effect.executor_id}" if effect.attempt else ""),
        ("requested", f"{text.local_time(effect.request_time)} (seq {effect.request_seq})"),
        ("started", text.local_time(effect.start_time) if effect.HasField("start_time") else ""),
        ("settled", f"{text.local_time(effect.settle_time)} (seq {effect.settle_seq})" if effect.settle_seq else ""),
        ("took", text.span(text.seconds(effect.elapsed)) if effect.HasField("elapsed") else ""),
        ("death", death),
        ("exit code", str(result.exit_code) if result.HasField("exit_code") else ""),
        ("signal", str(result.signal) if result.HasField("signal") else ""),
        ("choice", result.choice),
        ("work", text.pretty_json(_work(effect)) if effect.HasField("spec") else ""),
        ("result", _payload(result.value) if result.HasField("value") else ""),
    ]


def _work(effect: pb.Effect) -> object:
    work = effect.spec.WhichOneof("work")
    return text.as_dict(getattr(effect.spec, work)) if work else None


def _payload(value: journal.Payload) -> str:
    return text.pretty_json(text.payload(value))
