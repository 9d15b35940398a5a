"""`backburner resolve`: any outcome for work outside the system."""

from __future__ import annotations

import click

from scheduler_service.cli.address import Target
from scheduler_service.cli.answers import Answer, resolve
from scheduler_service.cli.bulk import say
from scheduler_service.cli.client import connect
from scheduler_service.cli.complete import effect_names
from scheduler_service.cli.errors import UsageProblem
from scheduler_service.cli.options import asynchronous, with_json, with_target


@click.command("resolve")
@click.argument("effect", metavar="EFFECT", shell_complete=effect_names)
@click.option("--choice", metavar="CHOICE", help="One of the choices that were offered.")
@click.option("--value", metavar="JSON", help="A value to deliver, also together with --choice.")
@click.option("--fail", metavar="MESSAGE", help="Settle it as failed.")
@click.option("--actor", metavar="NAME", help="Who answers, for the journal. Default: your user name.")
@with_json
@with_target
@asynchronous
async def resolve_command(
    *,
    effect: str,
    choice: str | None,
    value: str | None,
    fail: str | None,
    actor: str | None,
    as_json: bool,
    target: Target,
) -> None:
    """Settle external work: deliver a value, a choice, or a failure.

    `backburner approvals` lists what waits for somebody, and answers it in fewer words.

    \b
    Examples:
      backburner resolve RUN/webhook --value '{"status": "done"}'
      backburner resolve key:deploy-1.4.2/approve --choice yes
      backburner resolve RUN/review --fail "not before Monday"
    """
    if fail is not None and (choice is not None or value is not None):
        raise UsageProblem("--fail goes with neither --choice nor --value")
    async with connect(target) as client:
        answer = Answer(choice=choice, value=value, fail=fail, actor=actor)
        say(await resolve(client, await client.find_effect(effect), answer), as_json=as_json)
