"""Budgets on the command line: the options that give one, and one in words."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from backburner.journal.v1 import journal_pb2 as journal
from scheduler_service.cli import text
from scheduler_service.cli.errors import UsageProblem
from scheduler_service.cli.options import seconds

Command = Callable[..., Any]


def with_budget(prefix: str, *, asks: bool = True, required: bool = True) -> Callable[[Command], Command]:
    """Add --usd, --tokens, --turns, --wall and --ask, each with this prefix; the command gets `budget`."""

    def add(command: Command) -> Command:
        @wraps(command)
        def call(*args: Any, **given: Any) -> Any:
            names = ("usd", "tokens", "turns", "wall", "ask")
            usd, tokens, turns, wall, ask = (given.pop(f"budget_{name}", None) for name in names)
            budget = journal.Budget(cost_usd=usd or 0.0, tokens=tokens or 0.0, turns=turns or 0)
            if wall:
                budget.wall_time.FromNanoseconds(int(wall * 1e9))
            if budget == journal.Budget() and (required or ask):
                raise UsageProblem(f"say how much: --{prefix}usd, --{prefix}tokens, --{prefix}turns or --{prefix}wall")
            if ask:
                budget.on_spent = journal.BUDGET_ACTION_ASK
            return command(*args, budget=budget, **given)

        options = [
            ("usd", click.FLOAT, "N", "US dollars. What has no known price counts as nothing."),
            ("tokens", click.FLOAT, "N", "Input and output tokens together."),
            ("turns", click.IntRange(0), "N", "Turns of agents."),
            ("wall", seconds, "TIME", "Time that attempts run, added up: 90s, 2h."),
        ]
        decorated: Command = call
        if asks:
            decorated = click.option(
                f"--{prefix}ask", "budget_ask", is_flag=True, help="At the limit, wait for a raise instead of failing."
            )(decorated)
        for name, kind, shape, said in reversed(options):
            decorated = click.option(f"--{prefix}{name}", f"budget_{name}", type=kind, metavar=shape, help=said)(
                decorated
            )
        return decorated

    return add


def budget_of(budget: journal.Budget, only: journal.Budget | None = None) -> str:
    """A budget in words; `only` the figures that this other one bounds."""
    which = only or budget
    said = []
    if which.cost_usd:
        said.append(text.dollars(budget.cost_usd))
    if which.tokens:
        said.append(f"{text.count(budget.tokens)} tokens")
    if which.turns:
        said.append(f"{budget.turns} turns")
    if text.seconds(which.wall_time):
        said.append(f"{text.span(text.seconds(budget.wall_time))} of running time")
    return ", ".join(said)
