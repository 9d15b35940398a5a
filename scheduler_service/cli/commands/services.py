"""`backburner scheduler` and `backburner executor`: one service, in the place of this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import click

from scheduler_service.cli.service_options import EXECUTOR, SCHEDULER, as_env, with_settings


@click.command("scheduler")
@with_settings(SCHEDULER)
def scheduler_command(**given: Any) -> None:
    """Start one scheduler service. Options go before the environment variables named beside them.

    Run `backburner migrate` first. Several schedulers may share a database: each run is owned by one of them.

    \b
    Example:
      DATABASE_URL=postgresql://… backburner scheduler --process-module myapp.processes
    """
    _become("scheduler_service", as_env(SCHEDULER, given))


@click.command("executor")
@with_settings(EXECUTOR)
def executor_command(**given: Any) -> None:
    """Start one executor service. Options go before the environment variables named beside them.

    It dials a scheduler, so it may stand behind NAT; start as many as there is work for. Of several schedulers,
    give all or a name that resolves to all: it connects to any that answers, and to another one when that goes.

    \b
    Examples:
      DATABASE_URL=postgresql://… backburner executor --scheduler scheduler:7233 --slots-agents 2
      DATABASE_URL=postgresql://… backburner executor --scheduler 10.0.0.1:7233,10.0.0.2:7233
      DATABASE_URL=postgresql://… backburner executor --scheduler dns:///schedulers.prod.svc.cluster.local:7233
    """
    _become("executor_service", as_env(EXECUTOR, given))


def _become(module: str, settings: Mapping[str, str]) -> NoReturn:
    # With a random seed the order of a set of str would differ from one replay to the next (README, determinism).
    env = {**os.environ, **settings, "PYTHONHASHSEED": "0"}
    os.execve(sys.executable, [sys.executable, "-m", module], env)  # noqa: S606 - no shell is the point
