"""`backburner settle`: an effect that is stuck, settled by hand."""

from __future__ import annotations

import click
from google.protobuf import json_format, struct_pb2

from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.bulk import say
from scheduler_service.cli.client import CALL_SECONDS, connect
from scheduler_service.cli.complete import effect_names
from scheduler_service.cli.errors import UsageProblem
from scheduler_service.cli.names import read_value
from scheduler_service.cli.options import asynchronous, with_actor, with_json, with_reason, with_target


@click.command("settle")
@click.argument("name", metavar="EFFECT", shell_complete=effect_names)
@click.option("--value", metavar="JSON", help="It succeeded with this value.")
@click.option("--fail", metavar="MESSAGE", help="It failed, for good.")
@with_reason
@with_actor
@with_json
@with_target
@asynchronous
async def settle_command(
    *, name: str, value: str | None, fail: str | None, reason: str, actor: str, as_json: bool, target: Target
) -> None:
    """Settle an effect that is stuck with its executor or in the queue.

    Its attempt is declared lost and the outcome you give is final; what the executor says later is only kept as
    evidence. External work is answered with `backburner resolve`, runs are ended with `backburner cancel`.

    \b
    Examples:
      backburner settle 0198f2c4a1b2/tests --fail "the machine is gone" --reason "INC-7"
      backburner settle 0198f2c4a1b2/build --value '{"exit_code": 0}' --by ada
    """
    if (value is None) == (fail is None):
        raise UsageProblem("say how it ends", "give either --value JSON or --fail MESSAGE")
    async with connect(target) as client:
        effect = await client.find_effect(name)
        request = op.SettleEffectRequest(
            effect=pb.EffectName(effect_id=effect.effect_id), namespace=client.namespace, attempt=effect.attempt,
            reason=reason, actor=actor,
        )  # fmt: skip
        if fail is not None:
            request.failed.message = fail
        elif value is not None:
            request.succeeded.value.CopyFrom(json_format.ParseDict(read_value(value), struct_pb2.Value()))
        settled = (await client.operators.SettleEffect(request, timeout=CALL_SECONDS)).effect
    say(settled, as_json=as_json)
    if settled.state not in text.EFFECT_SETTLED:
        click.echo("the order stands; the owner of the run settles it as soon as there is one", err=True)
