"""Drives the demo: starts everything, runs the process, shows its report and the evidence from the journal."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.child import is_warning
from scheduler_service.cli.client import CALL_SECONDS, Client, connect
from scheduler_service.cli.demo.report import print_evidence, print_report
from scheduler_service.cli.exit_codes import ExitCode
from scheduler_service.cli.follow import follow, screen
from scheduler_service.cli.outcome import run_exit_code, say_outcome
from scheduler_service.cli.output import console
from scheduler_service.cli.run_view import RunView
from scheduler_service.cli.signals import StopRequested, StopSignals
from scheduler_service.cli.stack import Stack, StackOptions, free_port
from scheduler_service.cli.watching import watch_run
from scheduler_service.journal.evidence import OVERLAP_SQL_IN_SHORT, Overlap, overlaps

T = TypeVar("T")

_RUN_SECONDS_MAX: Final = 600.0
_SUPERVISE_SECONDS: Final = 0.5


@dataclass(frozen=True)
class Outcome:
    """The run as it ended, and what the journal says of it."""

    run: pb.Run
    evidence: list[Overlap]

    @property
    def holds(self) -> bool:
        """True when the loop went on under every background effect."""
        completed = self.run.state == journal.RUN_STATE_COMPLETED
        return completed and bool(self.evidence) and all(item.foreground > 0 for item in self.evidence)


def run_demo(repository: Path, data_dir: Path, *, keep: bool, as_json: bool) -> int:
    """Run the demo on a folder; the exit code is 0 only if the evidence holds."""
    stack = Stack(_options(data_dir, keep=keep), _say, _say_warning)
    with StopSignals(stack.force) as signals:
        try:
            stack.start()
            outcome = asyncio.run(_run(stack, repository))
        except StopRequested:
            return ExitCode.INTERRUPTED
        finally:
            signals.defer()
            stack.stop()
    if keep:
        _say(f"kept: {data_dir}; look around with `backburner dev --data-dir {data_dir}` and `backburner ps`")
    return _conclude(outcome, as_json=as_json)


def _options(data_dir: Path, *, keep: bool) -> StackOptions:
    return StackOptions(
        data_dir=data_dir,
        listen=f"127.0.0.1:{free_port()}",  # beside whatever runs on this machine
        ephemeral=not keep,
        database_url=os.environ.get("DATABASE_URL"),
        process_modules=("scheduler_service.cli.demo.process",),
        function_modules=("scheduler_service.cli.demo.functions",),
    )


async def _run(stack: Stack, repository: Path) -> Outcome:
    target = Target(stack.options.listen, "the scheduler of the demo")
    async with connect(target) as client, asyncio.timeout(_RUN_SECONDS_MAX):
        request = pb.CreateRunRequest(process="demo")
        request.input.update({"repository": str(repository)})
        run_id = (await client.runs.CreateRun(request, timeout=CALL_SECONDS)).run.run_id
        _say(f"run {run_id}: process `demo` on {repository}\n")
        await _supervised(stack, _follow(client, run_id))
        run = await client.get_run(run_id)
    return Outcome(run, await overlaps(stack.dsn, run_id))


async def _follow(client: Client, run_id: str) -> None:
    view = RunView(run_id)
    with screen(console(stderr=True), view) as on:
        await follow(watch_run(client, run_id, 0, on.note, (pb.WatchRunRequest.INCLUDE_PROGRESS,)), view, on)


async def _supervised(stack: Stack, work: Coroutine[Any, Any, T]) -> T:
    """Await the work, or raise ChildDied as soon as a service ends."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            stack.raise_if_died()
            await asyncio.wait([task], timeout=_SUPERVISE_SECONDS)
    except BaseException:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        raise
    return task.result()


def _conclude(outcome: Outcome, *, as_json: bool) -> int:
    if as_json:
        click.echo(_as_json(outcome))
    elif outcome.run.state == journal.RUN_STATE_COMPLETED:
        out = console()
        print_report(out, text.payload(outcome.run.result), outcome.run)
        print_evidence(out, OVERLAP_SQL_IN_SHORT, outcome.run.run_id, outcome.evidence, holds=outcome.holds)
    else:
        say_outcome(outcome.run)
    if outcome.run.state != journal.RUN_STATE_COMPLETED:
        return run_exit_code(outcome.run)
    return ExitCode.OK if outcome.holds else ExitCode.FAILED


def _as_json(outcome: Outcome) -> str:
    return text.compact_json({
        "run": text.as_dict(outcome.run),
        "evidence": [asdict(item) for item in outcome.evidence],
        "holds": outcome.holds,
    })  # fmt: skip


def _say(message: str) -> None:
    click.echo(message, err=True)


def _say_warning(name: str, line: str) -> None:
    if is_warning(line):
        click.echo(f"{name}: {line}", err=True)
