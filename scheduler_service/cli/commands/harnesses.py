"""`backburner harnesses`: which agent CLIs there are, and what to do about those that cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import click
from google.protobuf import json_format
from rich.markup import escape

from backburner.scheduler.v1 import dispatch_service_pb2 as dispatch
from backburner.scheduler.v1 import operator_service_pb2 as op
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.client import CALL_SECONDS, connect
from scheduler_service.cli.errors import CliError
from scheduler_service.cli.exit_codes import ExitCode
from scheduler_service.cli.options import asynchronous, with_json, with_target
from scheduler_service.cli.output import console, put, table
from scheduler_service.cli.service_options import AGENT_CLIS, as_env, with_settings

_LOGINS: Final = {dispatch.HARNESS_LOGIN_FOUND: "yes", dispatch.HARNESS_LOGIN_MISSING: "no"}
#: Kinds of work that every executor has by itself.
_OWN: Final = ("shell", "function")
#: Longest that the CLIs of this machine may take to tell their versions.
_LOCAL_SECONDS: Final = 60.0
_LOCAL: Final = "(here)"


class _Found(NamedTuple):
    executor: str
    check: dispatch.HarnessCheck


@click.command("harnesses")
@click.option("--local", is_flag=True, help="Look on this machine, without any service.")
@with_settings(AGENT_CLIS)
@with_json
@with_target
@asynchronous
async def harnesses_command(*, local: bool, as_json: bool, target: Target, **given: Any) -> None:
    """List what executors found of the agent CLIs that they know: version, login, and what to do about it.

    TESTED, KNOWN TO WORK has the versions that the tests of this release run, and the range that is known to work; one
    outside is used all the same. LOGIN is what can be told without a call to the provider, with a fingerprint of the
    account: who shows the same one shares it. Executors look when they start, every ten minutes, and after an attempt
    that failed as one does when a CLI is not there, broken or logged out; the options say where to look with --local.

    \b
    Examples:
      backburner harnesses
      backburner harnesses --local --harness-path codex=/opt/codex/bin/codex
      backburner harnesses --json | jq -r 'select(.found | not) | .remedy'
    """
    settings = as_env(AGENT_CLIS, given)
    if settings and not local:
        raise click.UsageError("an executor has settings of its own: those given are for --local")
    found = list(_here(settings) if local else await _of_executors(target))
    if as_json:
        for item in found:
            click.echo(text.compact_json(_as_dict(item)))
        return
    rows = table("EXECUTOR", "HARNESS", "FOUND", "VERSION", "TESTED, KNOWN TO WORK", "LOGIN", "WHAT TO DO", right=())
    for executor, check in found:
        cells = (_found(check), _version(check), _known(check), _login(check), check.remedy)
        rows.add_row(*(escape(text.plain(cell)) for cell in (executor, check.name, *cells)))
    put(console(), rows if rows.row_count else _nothing(local=local))


def _nothing(*, local: bool) -> str:
    if local:
        return "no agent CLI was looked for: see --agent"
    return "no executor looks for agent CLIs: start one, or look here with `backburner harnesses --local`"


def _found(check: dispatch.HarnessCheck) -> str:
    return "looking" if check.looking else "yes" if check.found else "no"


def _version(check: dispatch.HarnessCheck) -> str:
    """The version, and how well it is known."""
    if not check.version or (check.version_known and not check.known_versions):
        return check.version
    if not check.version_known:
        return f"{check.version} (not known to work)"
    return f"{check.version} ({'tested' if check.version in check.tested_versions else 'in the known range'})"


def _known(check: dispatch.HarnessCheck) -> str:
    tested = ", ".join(check.tested_versions)
    return "; ".join(filter(None, [tested and f"tested: {tested}", check.known_versions]))


def _login(check: dispatch.HarnessCheck) -> str:
    login = _LOGINS.get(check.login, "cannot be told") if check.found else ""
    return f"{login} ({check.account})" if check.account else login


def _as_dict(item: _Found) -> Mapping[str, Any]:
    fields = json_format.MessageToDict(
        item.check, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return {"executor_id": item.executor, **fields}


async def _of_executors(target: Target) -> Iterator[_Found]:
    async with connect(target) as client:
        answer = await client.operators.ListExecutors(op.ListExecutorsRequest(page_size=1000), timeout=CALL_SECONDS)
    return (found for executor in answer.executors for found in _of(executor))


def _of(executor: op.Executor) -> Iterator[_Found]:
    """What it found, and what harness modules have brought, of which it knows no more than that it has them."""
    away = "" if executor.state == op.Executor.STATE_CONNECTED else f" ({_state(executor)})"
    name = f"{executor.executor_id}{away}"
    checked = {check.name for check in executor.harness_checks}
    for check in executor.harness_checks:
        yield _Found(name, check)
    for harness in executor.harnesses:
        if harness.name not in checked and harness.name not in _OWN:
            check = dispatch.HarnessCheck(name=harness.name, found=True, version=harness.version, version_known=True)
            yield _Found(name, check)


def _state(executor: op.Executor) -> str:
    return op.Executor.State.Name(executor.state).removeprefix("STATE_").lower()


def _here(settings: Mapping[str, str]) -> Iterator[_Found]:
    """What an executor that is started here would find: asked of one, which looks and ends."""
    command = [sys.executable, "-m", "executor_service", "harnesses"]
    try:
        asked = subprocess.run(
            command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=_LOCAL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        remedy = "does one of them hang? `backburner harnesses --local --agent NAME` asks only that one"
        raise CliError(f"the agent CLIs here did not answer within {_LOCAL_SECONDS:g} s", remedy) from error
    if asked.returncode:
        message = asked.stderr.strip().removeprefix("executor: ") or f"exit code {asked.returncode}"
        raise CliError(message, code=ExitCode.USAGE if asked.returncode == 2 else ExitCode.FAILED)
    for line in asked.stdout.splitlines():
        yield _Found(_LOCAL, json_format.Parse(line, dispatch.HarnessCheck(), ignore_unknown_fields=True))
