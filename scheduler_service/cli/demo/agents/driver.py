"""Drives `backburner demo agents`: starts everything, says who will do what, runs the process, shows its report."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import click

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import dispatch_service_pb2 as dispatch
from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import CALL_SECONDS, Client, connect
from scheduler_service.cli.demo.agents.guess import guess_test_command
from scheduler_service.cli.demo.agents.model_server import ModelServer
from scheduler_service.cli.demo.agents.plan import Part, choose
from scheduler_service.cli.demo.agents.process import Agent, Order
from scheduler_service.cli.demo.agents.report import Outcome, as_json, print_plan, print_result
from scheduler_service.cli.demo.agents.sample import TEST, make_sample
from scheduler_service.cli.demo.agents.seen import Seen, is_agent, seen_of
from scheduler_service.cli.demo.agents.stand_ins import describe_demo_agent, price_stand_ins, stand_in
from scheduler_service.cli.demo.running import follow_run, say, say_warning, supervised
from scheduler_service.cli.errors import CliError, UsageProblem
from scheduler_service.cli.exit_codes import ExitCode
from scheduler_service.cli.outcome import run_exit_code, say_outcome
from scheduler_service.cli.output import console
from scheduler_service.cli.signals import StopRequested, StopSignals
from scheduler_service.cli.stack import Stack, StackOptions, free_port
from scheduler_service.journal.evidence import overlaps

_RUN_SECONDS_MAX: Final = 7200.0
#: Longest that the executor may look for agent CLIs; what has not answered by then takes no part.
_LOOK_SECONDS_MAX: Final = 30.0
_LOOK_AGAIN_SECONDS: Final = 0.2


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for. `repository` None: the sample."""

    repository: Path | None
    test: str
    harnesses: Sequence[str]
    harness_paths: Sequence[str]
    accounts: bool
    budget_usd: float
    yes: bool
    keep: bool
    as_json: bool


def run_agents_demo(wanted: Wanted, data_dir: Path) -> int:
    """Run the demo; the exit code is 0 only if no agent failed and the evidence holds."""
    try:
        job = _job(wanted, data_dir)
    except CliError:
        shutil.rmtree(data_dir)
        raise
    stack = Stack(_options(wanted, data_dir), say, say_warning)
    kept = wanted.keep
    with StopSignals(stack.force) as signals, ModelServer() as server:
        try:
            stack.start()
            parts = _agreed(wanted, asyncio.run(_found(stack)), job)
            kept = kept or any(part.real for part in parts)
            agents = _agents(parts, server, wanted, data_dir)
            outcome = asyncio.run(_run(stack, wanted, parts, agents, job))
        except StopRequested:
            return ExitCode.INTERRUPTED
        finally:
            signals.defer()
            stack.options = _kept(stack.options, kept=kept)
            stack.stop()
            if kept:
                say(f"kept: {data_dir}; remove it when you have seen enough")
    return _conclude(outcome, wanted, data_dir if kept else None)


@dataclass(frozen=True)
class Job:
    """The repository, and the command of its tests."""

    repository: Path
    test: str


def _job(wanted: Wanted, data_dir: Path) -> Job:
    """What there is to do. Raises CliError."""
    if wanted.repository is None:
        try:
            return Job(make_sample(data_dir / "sample"), TEST)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CliError(f"the sample repository cannot be made: {error}", "git has to be installed") from error
    root = _git(wanted.repository, "rev-parse", "--show-toplevel")
    if not root or not _git(Path(root), "rev-parse", "--verify", "HEAD^{commit}"):
        raise UsageProblem(
            f"{wanted.repository} is no git repository with a commit",
            "give the path of one, or none: there is a sample",
        )
    test = wanted.test or guess_test_command(Path(root))
    if not test:
        raise UsageProblem(f"how the tests of {root} are run cannot be told", "say it: --test 'COMMAND'")
    if _git(Path(root), "status", "--porcelain"):
        say(f"{root} has uncommitted changes: the agents get its last commit, without them")
    return Job(Path(root), test)


def _options(wanted: Wanted, data_dir: Path) -> StackOptions:
    described = describe_demo_agent(data_dir / "harnesses.json")
    prices = price_stand_ins(data_dir / "prices.json", os.environ.get("BACKBURNER_PRICES", ""))
    return StackOptions(
        data_dir=data_dir,
        listen=f"127.0.0.1:{free_port()}",  # beside whatever runs on this machine
        ephemeral=not wanted.keep,
        database_url=os.environ.get("DATABASE_URL"),
        process_modules=("scheduler_service.cli.demo.agents.process",),
        function_modules=("scheduler_service.cli.demo.agents.functions",),
        env={
            "BACKBURNER_HARNESS_COMMANDS": str(described),
            "BACKBURNER_PRICES": str(prices),
            "BACKBURNER_HARNESS_PATHS": ",".join(wanted.harness_paths),
            "BACKBURNER_SLOTS_AGENTS": "8",
        },
    )


async def _found(stack: Stack) -> list[dispatch.HarnessCheck]:
    """What the executor has found of agent CLIs, in its order, once it has looked at each."""
    deadline = time.monotonic() + _LOOK_SECONDS_MAX
    async with connect(_target(stack)) as client:
        while True:
            answer = await client.operators.ListExecutors(op.ListExecutorsRequest(page_size=10), timeout=CALL_SECONDS)
            checks = [check for executor in answer.executors for check in executor.harness_checks]
            if not any(check.looking for check in checks) or time.monotonic() > deadline:
                return checks
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)


def _agreed(wanted: Wanted, checks: Sequence[dispatch.HarnessCheck], job: Job) -> list[Part]:
    """Who will do what, said, and agreed to where it costs money. Raises UsageProblem, click.Abort."""
    parts = choose(checks, wanted.harnesses, accounts=wanted.accounts)
    what = f"{job.repository}, which stays as it is" if wanted.repository else f"a small sample, {job.repository}"
    print_plan(console(stderr=True), parts, what, job.test, wanted.budget_usd)
    if wanted.yes or not any(part.real for part in parts):
        return parts
    if not sys.stdin.isatty():
        raise UsageProblem("accounts would be used, and nobody is there to ask", "--yes agrees, --stand-ins uses none")
    click.confirm("Go on?", abort=True, err=True)
    return parts


def _agents(parts: Sequence[Part], server: ModelServer, wanted: Wanted, data_dir: Path) -> list[Agent]:
    agents = []
    for part in parts:
        if part.real:
            agents.append(Agent(part.role, part.harness, wanted.budget_usd))
            continue
        home = data_dir / "stand-ins" / part.role
        home.mkdir(parents=True)
        in_sample = wanted.repository is None
        agents.append(stand_in(Agent(part.role, part.harness), server, home, in_sample=in_sample))
    return agents


async def _run(stack: Stack, wanted: Wanted, parts: list[Part], agents: Sequence[Agent], job: Job) -> Outcome:
    async with connect(_target(stack)) as client, asyncio.timeout(_RUN_SECONDS_MAX):
        request = pb.CreateRunRequest(process="demo-agents")
        place, branch = stack.options.data_dir / "work", f"backburner/agents-{secrets.token_hex(3)}"
        order = Order(str(job.repository), str(place), job.test, branch)
        request.input.update({"order": asdict(order), "agents": [asdict(agent) for agent in agents]})
        run_id = (await client.runs.CreateRun(request, timeout=CALL_SECONDS)).run.run_id
        say(f"run {run_id}: process `demo-agents`\n")
        await supervised(stack, follow_run(client, run_id))
        run = await client.get_run(run_id)
        seen = await _seen(client, run_id)
    return Outcome(run, parts, seen, await overlaps(stack.dsn, run_id))


async def _seen(client: Client, run_id: str) -> dict[str, Seen]:
    request = pb.ListEffectsRequest(run_id=run_id, page_size=500)
    effects = [effect async for effect in client.list_effects(request, limit=5000) if is_agent(effect)]
    return {effect.key: await seen_of(client, effect.effect_id) for effect in effects}


def _conclude(outcome: Outcome, wanted: Wanted, kept: Path | None) -> int:
    run = outcome.run
    if wanted.as_json:
        click.echo(as_json(outcome))
    elif run.state == journal.RUN_STATE_COMPLETED:
        print_result(console(), outcome, wanted.repository, kept)
    else:
        say_outcome(run)
    if run.state != journal.RUN_STATE_COMPLETED:
        return run_exit_code(run)
    return ExitCode.OK if outcome.holds else ExitCode.FAILED


def _target(stack: Stack) -> Target:
    return Target(stack.options.listen, "the scheduler of the demo")


def _kept(options: StackOptions, *, kept: bool) -> StackOptions:
    return replace(options, ephemeral=not kept)


def _git(folder: Path, *arguments: str) -> str:
    """What git says; empty when it refuses, or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
