"""`backburner cancel`: durable once it answers."""

from __future__ import annotations

import click

from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli.address import Target
from scheduler_service.cli.bulk import Selection, Terms, change_runs, say
from scheduler_service.cli.client import CALL_SECONDS, Client, connect
from scheduler_service.cli.complete import effect_names
from scheduler_service.cli.filters import with_filter
from scheduler_service.cli.options import (
    asynchronous,
    with_actor,
    with_dry_run,
    with_json,
    with_reason,
    with_target,
    with_yes,
)


@click.command("cancel")
@click.argument("names", metavar="[RUN|EFFECT]...", nargs=-1, shell_complete=effect_names)
@with_filter
@with_reason
@with_actor
@with_dry_run
@with_yes
@with_json
@with_target
@asynchronous
async def cancel_command(
    *, reason: str, actor: str, dry_run: bool, yes: bool, as_json: bool, target: Target, **which: tuple[str, ...]
) -> int:
    """Cancel runs with their open effects, or single effects.

    When the command returns, the request is in the journal and cannot get lost; `backburner watch` shows the end. With
    --state, --process or --label instead of names, all runs that match and have not ended are meant.

    \b
    Examples:
      backburner cancel key:release-1.4.2 --reason "wrong branch"
      backburner cancel 0198f2c4a1b2/tests
      backburner cancel --process nightly --yes
    """
    async with connect(target) as client:

        async def cancel(run_id: str) -> pb.Run:
            request = pb.CancelRunRequest(run_id=run_id, namespace=client.namespace, reason=reason)
            return (await client.runs.CancelRun(request, timeout=CALL_SECONDS)).run

        selection = Selection(**which)
        if selection.is_filter or dry_run or not selection.names:
            terms = Terms(reason, actor, sure=yes, dry_run=dry_run, as_json=as_json)
            return await change_runs(client, selection, op.BulkActionRequest.ACTION_CANCEL, cancel, terms)
        # All names are looked up first: a mistyped one must not leave half of the work done.
        for found in [await client.find(name) for name in selection.names]:
            changed = await (cancel(found.run_id) if isinstance(found, pb.Run) else _effect(client, found, reason))
            say(changed, as_json=as_json)
        return 0


async def _effect(client: Client, effect: pb.Effect, reason: str) -> pb.Effect:
    request = pb.CancelEffectRequest(
        effect=pb.EffectName(effect_id=effect.effect_id), namespace=client.namespace, reason=reason
    )
    return (await client.runs.CancelEffect(request, timeout=CALL_SECONDS)).effect
