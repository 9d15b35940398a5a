"""Checks of a budget, wherever it is given."""

from typing import Any

from google.protobuf import json_format

from backburner.journal.v1 import journal_pb2
from scheduler_service.api.checks import Checks
from scheduler_service.authoring.budgets import AMOUNT_MAX
from scheduler_service.authoring.durations import DURATION_SECONDS_MAX


def check_budget(check: Checks, path: str, budget: journal_pb2.Budget) -> None:
    """Notes everything that is wrong with a budget."""
    for field in ("tokens", "cost_usd", "turns"):
        amount = getattr(budget, field)
        if not 0 <= amount <= AMOUNT_MAX:  # NaN is neither
            check.refuse(f"{path}.{field}", f"must be from 0, which is no bound, to {AMOUNT_MAX:g}")
    if budget.HasField("wall_time") and not check.seconds(f"{path}.wall_time", budget.wall_time, DURATION_SECONDS_MAX):
        budget.ClearField("wall_time")  # no bound, or refused: a malformed one cannot be read as anything
    check.enum(f"{path}.on_spent", budget.on_spent, journal_pb2.BudgetAction)
    if not (budget.tokens or budget.cost_usd or budget.turns or budget.HasField("wall_time")):
        check.refuse(path, "bounds nothing: give tokens, cost_usd, wall_time or turns")


def stored_budget(budget: journal_pb2.Budget) -> dict[str, Any]:
    """A budget as the journal has it."""
    stored: dict[str, Any] = json_format.MessageToDict(budget, preserving_proto_field_name=True)
    return stored
