"""Budgets as process code gives them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

from scheduler_service.authoring.durations import Seconds, duration
from scheduler_service.authoring.errors import OptionError

#: Most of anything that a budget may allow.
AMOUNT_MAX: Final = 1e15


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be consumed. Build it with `bb.budget`."""

    usd: float | None = None
    tokens: float | None = None
    turns: int | None = None
    wall: Seconds | None = None
    on_spent: Literal["fail", "ask"] = "fail"


def budget(
    *,
    usd: float | None = None,
    tokens: float | None = None,
    turns: int | None = None,
    wall: Seconds | None = None,
    on_spent: Literal["fail", "ask"] = "fail",
) -> Budget:
    """What an effect may consume, all its attempts together: US dollars, tokens in and out, turns, running time.

    At the limit what runs is ended with its partial result. `fail`: the effect fails with reason BUDGET. `ask`: it is
    parked until somebody raises the budget (`backburner budget raise`) or cancels it. A cost that is not known counts
    as nothing: give tokens or turns where the price of a model is not known.
    """
    given = Budget(usd, tokens, turns, wall, on_spent)
    budget_fields(given)
    return given


def budget_fields(value: Budget) -> dict[str, Any]:
    """A budget as proto3 JSON. Raises OptionError for what cannot be one."""
    if not isinstance(value, Budget):
        raise OptionError(f"budget={value!r}: expected bb.budget(usd=..., tokens=..., turns=..., wall=...)")
    fields: dict[str, Any] = {}
    for name, field in (("usd", "cost_usd"), ("tokens", "tokens"), ("turns", "turns")):
        if getattr(value, name) is not None:
            fields[field] = _amount(name, getattr(value, name))
    if value.wall is not None:
        fields["wall_time"] = duration(value.wall, "budget: wall")
    if not fields:
        raise OptionError("budget: bounds nothing: give usd, tokens, turns or wall")
    if value.on_spent not in ("fail", "ask"):
        raise OptionError(f"budget: on_spent={value.on_spent!r}: expected fail or ask")
    if value.on_spent == "ask":
        fields["on_spent"] = "BUDGET_ACTION_ASK"
    return fields


def _amount(name: str, amount: Any) -> float | int:
    if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not math.isfinite(amount):
        raise OptionError(f"budget: {name}={amount!r} is no number")
    if not 0 < amount <= (2**31 - 1 if name == "turns" else AMOUNT_MAX):
        raise OptionError(f"budget: {name}={amount!r} must be more than 0: leave it out for no bound")
    if name == "turns" and amount != int(amount):
        raise OptionError(f"budget: turns={amount!r} is no whole number")
    return int(amount) if name == "turns" else float(amount)
