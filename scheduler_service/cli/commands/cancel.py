"""`backburner cancel`: durable once it answers."""

from __future__ import annotations

import click

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import CALL_SECONDS, connect
from scheduler_service.cli.options import asynchronous, with_json, with_target


@click.command("cancel")
@click.argument("name", metavar="RUN|EFFECT")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the journal.")
@with_json
@with_target
@asynchronous
async def cancel_command(*, name: str, reason: str, as_json: bool, target: Target) -> None:
    """Cancel a run with its open effects, or one effect.

    When the command returns, the request is in the journal and cannot get lost; `backburner watch` shows the end.

    \b
    Examples:
      backburner cancel key:release-1.4.2 --reason "wrong branch"
      backburner cancel 0198f2c4a1b2/tests
    """
    async with connect(target) as client:
        found = await client.find(name)
        if isinstance(found, pb.Run):
            run_request = pb.CancelRunRequest(run_id=found.run_id, namespace=client.namespace, reason=reason)
            run = (await client.runs.CancelRun(run_request, timeout=CALL_SECONDS)).run
            said, answer = f"run {run.run_id}: {text.run_state(run.state).lower()}", text.json_line(run)
        else:
            request = pb.CancelEffectRequest(
                effect=pb.EffectName(effect_id=found.effect_id), namespace=client.namespace, reason=reason
            )
            effect = (await client.runs.CancelEffect(request, timeout=CALL_SECONDS)).effect
            said, answer = f"effect {effect.key}: {text.effect_state(effect.state).lower()}", text.json_line(effect)
    click.echo(answer if as_json else said)
