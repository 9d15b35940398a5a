"""`backburner ps`: what runs, and what it waits for."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import click
from rich.markup import escape
from rich.text import Text

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import Client, connect
from scheduler_service.cli.errors import UsageProblem
from scheduler_service.cli.filters import parse_states, run_filter, with_filter
from scheduler_service.cli.names import read_labels
from scheduler_service.cli.options import asynchronous, with_json, with_pages, with_target
from scheduler_service.cli.output import console, put, say_limit, short_id, short_key, table
from scheduler_service.cli.run_view import describe_progress, describe_report, last_heard


@click.command("ps")
@click.option("--effects", is_flag=True, help="List open effects of all runs instead of runs.")
@click.option("--ended", "ended_too", is_flag=True, help="With --effects: those that have ended, too.")
@click.option("--harness", "harnesses", multiple=True, metavar="NAME", help="With --effects: only of it. Repeatable.")
@click.option("--tree", is_flag=True, help="Child runs below the runs that started them.")
@with_filter
@with_pages
@with_json
@with_target
@asynchronous
async def ps_command(
    *,
    effects: bool,
    ended_too: bool,
    harnesses: tuple[str, ...],
    tree: bool,
    states: tuple[str, ...],
    processes: tuple[str, ...],
    labels: tuple[str, ...],
    limit: int,
    as_json: bool,
    target: Target,
) -> None:
    """List runs, newest first, or with --effects the effects that are open, each with what it waits for.

    HARNESS has the model behind it, where that is known, PROGRESS the tokens and the cost so far. `backburner usage`
    adds them up.

    REPORT is what the process said of itself with `ctx.report`; HEARD when a running effect last gave a sign of life.

    \b
    Examples:
      backburner ps --state running --state process_error
      backburner ps --tree --process supervisor --process worker
      backburner ps --effects --state waiting       approvals that nobody has answered
      backburner ps --effects --ended --harness codex --harness claude-code
      backburner ps --json | jq -r .run_id
    """
    if effects and (processes or tree):
        raise UsageProblem("--process and --tree are for runs", "leave out --effects, or use --label")
    if (ended_too or harnesses) and not effects:
        raise UsageProblem("--ended and --harness are for effects", "add --effects")
    async with connect(target) as client:
        if effects:
            asked = pb.ListEffectsRequest(open_only=not ended_too, labels=read_labels(labels), view=pb.VIEW_FULL)
            asked.harnesses.extend(harnesses)
            asked.states.extend(parse_states(states, journal.EffectState.items(), "EFFECT_STATE_"))
            await _list_effects(client, asked, limit, as_json=as_json)
        else:
            asked_runs = run_filter(states, processes, labels)
            asked_runs.page_size = min(limit, 1000)
            runs = [(0, run) async for run in client.list_runs(asked_runs, limit)]
            _print_runs(families([run for _, run in runs]) if tree else runs, limit, as_json=as_json)


def families(runs: Sequence[pb.Run]) -> list[tuple[int, pb.Run]]:
    """The runs with their depth, each followed by its children, the oldest of them first.

    A run whose parent is not among them stands at the top.
    """
    known = {run.run_id for run in runs}
    children: dict[str, list[pb.Run]] = {}
    for run in runs:
        children.setdefault(run.parent_run_id if run.parent_run_id in known else "", []).append(run)
    placed, rest = list[tuple[int, pb.Run]](), [(0, run) for run in reversed(children.get("", []))]
    while rest:
        depth, run = rest.pop()
        placed.append((depth, run))
        rest += [(depth + 1, child) for child in children.get(run.run_id, [])]
    return placed


def _print_runs(runs: Sequence[tuple[int, pb.Run]], limit: int, *, as_json: bool) -> None:
    out, now = console(), dt.datetime.now(dt.UTC)
    rows = table("RUN", "STATE", "PROCESS", "KEY", "AGE", "EFFECTS", "REPORT", "WAITING ON", right=("AGE",))
    for depth, run in runs:
        if as_json:
            click.echo(text.json_line(run))
            continue
        state = text.run_state(run.state)
        cells = (run.process or "(client)", run.key, text.since(run.create_time, now), _counts(run.effect_counts))
        name, said = short_id(run.run_id, out.width), (describe_report(run.report), _waits(run))
        rows.add_row(
            f"{'   ' * (depth - 1)}└─ {name}" if depth else name,
            Text(state, text.style(state)),
            *map(escape, (*cells, *said)),
        )
    if not as_json:
        put(out, rows if rows.row_count else "no runs; start one with `backburner run PROCESS`")
        say_limit(rows.row_count, limit)


async def _list_effects(client: Client, request: pb.ListEffectsRequest, limit: int, *, as_json: bool) -> None:
    out, now = console(), dt.datetime.now(dt.UTC)
    request.page_size = min(limit, 1000)
    rows = table(
        "EFFECT", "STATE", "HARNESS", "CLASS", "AGE", "PROGRESS", "HEARD", "WAITING ON", right=("AGE", "HEARD")
    )
    async for effect in client.list_effects(request, limit):
        if as_json:
            click.echo(text.json_line(effect))
            continue
        state = text.effect_state(effect.state)
        kind = "background" if effect.background else "foreground"
        name = f"{short_id(effect.run_id, out.width)}/{short_key(effect.key, out.width)}"
        said = describe_progress(effect.progress, effect.usage)
        cells = (
            _harness(effect),
            kind,
            text.since(effect.request_time, now),
            said,
            last_heard(effect, now),
            _why(effect),
        )
        rows.add_row(escape(name), Text(state, text.style(state)), *map(escape, cells))
    if not as_json:
        put(out, rows if rows.row_count else "no open effects" if request.open_only else "no effects")
        say_limit(rows.row_count, limit)


def _harness(effect: pb.Effect) -> str:
    return " ".join(filter(None, [effect.harness, effect.usage.model and f"({text.plain(effect.usage.model)})"]))


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
    return "; ".join([*said, *(["and more"] if more > 0 else [])])


def _why(effect: pb.Effect) -> str:
    asked = effect.spec.external
    if asked.prompt:  # more telling than that somebody has to answer
        return f"{asked.prompt} [{'/'.join(asked.choices)}]" if asked.choices else asked.prompt
    return effect.waiting_on.message
