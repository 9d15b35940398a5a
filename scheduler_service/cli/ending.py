"""The end of a run that was followed: its result, or why there is none, with the effects that are to blame."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import click

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli.client import CALL_SECONDS, Client
from scheduler_service.cli.failures import Failure
from scheduler_service.cli.outcome import describe_failure, say_outcome

_BLAMED_MAX: Final = 3
_ENDS_LATE_MAX: Final = 1000
_UNSUCCESSFUL: Final = (journal.EFFECT_STATE_FAILED, journal.EFFECT_STATE_TIMED_OUT)


async def say_end(client: Client, run: pb.Run, *, explained: Collection[str] = (), as_json: bool = False) -> None:
    """Print how the run ended; failed effects that are in `explained` are not explained again."""
    say_outcome(run, as_json=as_json)
    if as_json:
        return
    if run.unobserved_failures:
        said = f"{run.unobserved_failures} background effect(s) failed and nobody looked"
        click.echo(f"{said}: `backburner show {run.run_id}`", err=True)
    for failure in await blamed(client, run):
        if failure.key not in explained:
            for line in describe_failure(failure):
                click.echo(line, err=True)


async def blamed(client: Client, run: pb.Run) -> list[Failure]:
    """The few effects that explain the run's state: the one whose error it is, else the newest that failed."""
    if run.error.effect_key:
        name = pb.EffectName(run_id=run.run_id, key=run.error.effect_key)
        return [Failure.of(await client.get_effect(name))]
    if run.state != journal.RUN_STATE_FAILED and not run.unobserved_failures:
        return []
    request = pb.ListEffectsRequest(run_id=run.run_id, states=_UNSUCCESSFUL, view=pb.VIEW_FULL, page_size=_BLAMED_MAX)
    return [Failure.of(effect) async for effect in client.list_effects(request, _BLAMED_MAX)]


async def continuation(client: Client, run: pb.Run) -> str:
    """The run that this one continued as; empty when it did not."""
    if run.state != journal.RUN_STATE_CONTINUED:
        return ""
    # The row is near the end: only detached effects go on after it.
    after = max(run.head_seq - _ENDS_LATE_MAX, 0)
    request = pb.ReadJournalRequest(
        run_id=run.run_id, namespace=client.namespace, after_seq=after, page_size=_ENDS_LATE_MAX
    )
    page = await client.runs.ReadJournal(request, timeout=CALL_SECONDS)
    return next((e.run_continued.new_run_id for e in page.events if e.HasField("run_continued")), "")
