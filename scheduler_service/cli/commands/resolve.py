"""`backburner resolve`: a person's answer."""

from __future__ import annotations

import getpass

import click
from google.protobuf import json_format, struct_pb2

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import CALL_SECONDS, connect
from scheduler_service.cli.errors import UsageProblem
from scheduler_service.cli.names import read_value
from scheduler_service.cli.options import asynchronous, with_json, with_target


@click.command("resolve")
@click.argument("effect", metavar="EFFECT")
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
    """Answer an approval, or settle other external work.

    `backburner ps --effects --state waiting` lists what waits for somebody.

    \b
    Examples:
      backburner resolve key:deploy-1.4.2/approve --choice yes
      backburner resolve RUN/webhook --value '{"status": "done"}'
      backburner resolve RUN/review --fail "not before Monday"
    """
    if fail is not None and (choice is not None or value is not None):
        raise UsageProblem("--fail goes with neither --choice nor --value")
    async with connect(target) as client:
        found = await client.find_effect(effect)
        _check_choice(found, choice, answered=choice is not None or value is not None or fail is not None)
        request = pb.ResolveEffectRequest(
            effect=pb.EffectName(effect_id=found.effect_id),
            namespace=client.namespace,
            actor=actor or getpass.getuser(),
        )
        _set_outcome(request, choice, value, fail)
        settled = (await client.runs.ResolveEffect(request, timeout=CALL_SECONDS)).effect
    state = text.effect_state(settled.state).lower()
    click.echo(text.json_line(settled) if as_json else f"effect {settled.key}: {state}")


def _check_choice(found: pb.Effect, choice: str | None, *, answered: bool) -> None:
    choices = list(found.spec.external.choices)
    if not answered:
        offered = f"--choice {'|'.join(choices)}" if choices else "--value JSON"
        prompt = found.spec.external.prompt
        raise UsageProblem(f"no answer given{f' to: {prompt}' if prompt else ''}", f"give {offered}, or --fail MESSAGE")
    if choice is not None and choices and choice not in choices:
        raise UsageProblem(f"{choice!r} was not offered", f"choose one of {', '.join(choices)}")


def _set_outcome(request: pb.ResolveEffectRequest, choice: str | None, value: str | None, fail: str | None) -> None:
    if fail is not None:
        request.failed.message = fail
        return
    request.succeeded.choice = choice or ""
    if value is not None:
        request.succeeded.value.CopyFrom(json_format.ParseDict(read_value(value), struct_pb2.Value()))
