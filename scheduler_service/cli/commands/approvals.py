"""`backburner approvals`: the inbox of a person. What waits for an answer in all runs, and the answer."""

from __future__ import annotations

import datetime as dt
import sys

import click
from click.core import ParameterSource
from rich.markup import escape

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.answers import Answer, resolve
from scheduler_service.cli.client import Client, connect
from scheduler_service.cli.complete import effect_names
from scheduler_service.cli.errors import UsageProblem
from scheduler_service.cli.options import asynchronous, with_json, with_pages, with_target
from scheduler_service.cli.output import console, put, say_limit, short_id, short_key, table

_SKIP = "skip"


@click.group("approvals", invoke_without_command=True)
@with_pages
@with_json
@with_target
@click.pass_context
def approvals_command(ctx: click.Context, *, limit: int, as_json: bool, target: Target) -> None:
    """List external effects of all runs that wait for an answer, newest first.

    \b
    Examples:
      backburner approvals
      backburner approvals --json | jq -r .spec.external.prompt
      backburner approvals answer 0123456789ab/approve yes --comment "checked the notes"
    """
    if ctx.invoked_subcommand is None:
        asynchronous(_list)(target, limit, as_json=as_json)
        return
    for option in ctx.command.params:
        if ctx.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE:
            raise UsageProblem(
                f"{option.opts[0]} is for the list here", f"give options after `{ctx.invoked_subcommand}`"
            )


@approvals_command.command("answer")
@click.argument("effect", metavar="[EFFECT]", required=False, shell_complete=effect_names)
@click.argument("choice", metavar="[CHOICE]", required=False)
@click.option("--comment", metavar="TEXT", default="", help="Goes with the answer: the process finds it in .value.")
@click.option("--by", metavar="NAME", help="Who answers, for the journal. Default: your user name.")
@with_json
@with_target
@asynchronous
async def answer_command(
    *, effect: str | None, choice: str | None, comment: str, by: str | None, as_json: bool, target: Target
) -> None:
    """Answer an approval with one of its choices.

    In a terminal it asks for what is missing; without EFFECT it goes through all that wait, one after the other.

    \b
    Examples:
      backburner approvals answer key:deploy-1.4.2/approve yes --by ada
      backburner approvals answer
    """
    async with connect(target) as client:
        asked = [await client.find_effect(effect)] if effect else await _inbox_of_a_terminal(client)
        for found in asked:
            given = choice or _prompt(found)
            if given != _SKIP:
                answer = Answer(choice=given, comment=comment or ("" if choice else _prompt_comment()), actor=by)
                settled = await resolve(client, found, answer)
                said = f"effect {settled.key}: {settled.result.choice or given}"
                click.echo(text.json_line(settled) if as_json else said)


async def _list(target: Target, limit: int, *, as_json: bool) -> None:
    out, now = console(), dt.datetime.now(dt.UTC)
    rows = table("EFFECT", "AGE", "ASKS", "CHOICES", "FOR", right=("AGE",))
    async with connect(target) as client:
        for effect in await _waiting(client, limit):
            if as_json:
                click.echo(text.json_line(effect))
                continue
            external = effect.spec.external
            name = f"{short_id(effect.run_id, out.width)}/{short_key(effect.key, out.width)}"
            choices = "/".join(external.choices) or "any (backburner resolve)"
            cells = (name, text.since(effect.request_time, now), external.prompt or effect.name, choices)
            rows.add_row(*map(escape, (*cells, ", ".join(external.assignees))))
    if not as_json:
        put(out, rows if rows.row_count else "nothing waits for an answer")
        say_limit(rows.row_count, limit)


async def _waiting(client: Client, limit: int) -> list[pb.Effect]:
    request = pb.ListEffectsRequest(
        kinds=[journal.EFFECT_KIND_EXTERNAL], states=[journal.EFFECT_STATE_WAITING], view=pb.VIEW_FULL,
        page_size=min(limit, 1000),
    )  # fmt: skip
    return [effect async for effect in client.list_effects(request, limit)]


async def _inbox_of_a_terminal(client: Client) -> list[pb.Effect]:
    if not sys.stdin.isatty():
        raise UsageProblem("no EFFECT given", "`backburner approvals` lists what waits for an answer")
    found = [effect for effect in await _waiting(client, 1000) if effect.spec.external.choices]
    if not found:
        click.echo("nothing waits for an answer", err=True)
    return found


def _prompt(effect: pb.Effect) -> str:
    external = effect.spec.external
    if not sys.stdin.isatty() or not external.choices:
        return ""  # refused by `resolve`, which names the choices
    click.echo(f"\n{click.style(external.prompt or effect.key, bold=True)}  {effect.run_id}/{effect.key}", err=True)
    if external.HasField("data"):
        click.echo(text.pretty_json(text.as_dict(external.data)), err=True)
    answer: str = click.prompt("answer", type=click.Choice([*external.choices, _SKIP]), default=_SKIP, err=True)
    return answer


def _prompt_comment() -> str:
    comment: str = click.prompt("comment", default="", show_default=False, err=True)
    return comment
