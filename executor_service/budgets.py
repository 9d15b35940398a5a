"""Live budgets: whether an attempt has consumed what its budgets leave it. Pure.

An attempt is ended at the first report that reaches a bound, or when its time is over. What it consumes between two
reports, and until it is dead, is over the bound: nobody knows of it earlier.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from executor_service.assignment import Bound
from executor_service.outcome import Ending

_WORDS: Final[Mapping[str, str]] = {
    "TOKENS": "{:,.0f} tokens",
    "COST_USD": "${:,.4g}",
    "WALL_SECONDS": "{:,.6g} s of running time",
    "TURNS": "{:,.0f} turns",
}


def consumed(usage: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a usage that budgets bound."""
    return {
        "TOKENS": usage.get("input_tokens", 0.0) + usage.get("output_tokens", 0.0),
        "COST_USD": usage.get("cost_usd", 0.0),
        "TURNS": float(usage.get("turns", 0)),
    }


def reached(bounds: Sequence[Bound], figures: Mapping[str, float]) -> Ending | None:
    """Why the attempt has to end; None while it is within its bounds."""
    for bound in bounds:
        used = figures.get(bound.what, 0.0)
        if used >= bound.left:
            return ending(bound, used)
    return None


def ending(bound: Bound, used: float) -> Ending:
    """The end at a bound."""
    words = _WORDS.get(bound.what, "{:g}")
    whole = words.format(bound.limit - bound.left + used)
    message = f"the budget of {bound.of} is spent: {whole} used of {words.format(bound.limit)}"
    return Ending("failed", "BUDGET", message, final=not bound.asks, asks=bound.asks)


def wall_bound(bounds: Sequence[Bound]) -> Bound | None:
    """The bound in time that comes first."""
    return min((bound for bound in bounds if bound.what == "WALL_SECONDS"), key=lambda bound: bound.left, default=None)
