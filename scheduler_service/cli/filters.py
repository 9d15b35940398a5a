"""Which runs a command means: by --state, --process and --label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, TypeVar

import click

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli.errors import UsageProblem
from scheduler_service.cli.names import read_labels

Command = Callable[..., Any]
Value = TypeVar("Value", bound=int)


def with_filter(command: Command) -> Command:
    """Add --state, --process and --label; the command gets `states`, `processes` and `labels`."""

    @click.option("--state", "states", multiple=True, metavar="STATE", help="Only this state, such as running. "
                  "Repeatable.")  # fmt: skip
    @click.option("--process", "processes", multiple=True, metavar="PROCESS", help="Only runs of it. Repeatable.")
    @click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Only with this label. Repeatable.")
    @wraps(command)
    def call(*args: Any, **kwargs: Any) -> Any:
        return command(*args, **kwargs)

    return call


def run_filter(states: Sequence[str], processes: Iterable[str], labels: Iterable[str]) -> pb.ListRunsRequest:
    """The list of the runs that are meant. Raises UsageProblem for a state that does not exist."""
    request = pb.ListRunsRequest(processes=processes, labels=read_labels(labels))
    request.states.extend(parse_states(states, journal.RunState.items(), "RUN_STATE_"))
    return request


def parse_states(names: Iterable[str], known: Iterable[tuple[str, Value]], prefix: str) -> list[Value]:
    """States by their names without prefix, in any case."""
    values = {name.removeprefix(prefix): value for name, value in known if value}
    for name in names:
        if name.upper() not in values:
            raise UsageProblem(f"--state {name}: no such state", f"one of {', '.join(values).lower()}")
    return [values[name.upper()] for name in names]
