"""Drives the demo: starts everything, runs the process, shows its report and the evidence from the journal."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import CALL_SECONDS, connect
from scheduler_service.cli.demo.report import print_evidence, print_report
from scheduler_service.cli.demo.running import follow_run, say, say_warning, supervised
from scheduler_service.cli.exit_codes import ExitCode
from scheduler_service.cli.outcome import run_exit_code, say_outcome
from scheduler_service.cli.output import console
from scheduler_service.cli.signals import StopRequested, StopSignals
from scheduler_service.cli.stack import Stack, StackOptions, free_port
from scheduler_service.journal.evidence import OVERLAP_SQL_IN_SHORT, Overlap, overlaps

_RUN_SECONDS_MAX: Final = 600.0


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
    stack = Stack(_options(data_dir, keep=keep), say, say_warning)
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
        say(f"kept: {data_dir}; look around with `backburner dev --data-dir {data_dir}` and `backburner ps`")
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
        say(f"run {run_id}: process `demo` on {repository}\n")
        await supervised(stack, follow_run(client, run_id))
        run = await client.get_run(run_id)
    return Outcome(run, await overlaps(stack.dsn, run_id))


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
