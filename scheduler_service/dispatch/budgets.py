"""What budgets leave to an attempt, and in words what is spent.

A figure is as `budget_verdict` in SQL gives it: {of, what, limit, left or used, ask}. `of` is `effect <key>`,
`run <id>` or `label <name>=<value>`, `what` is TOKENS, COST_USD, WALL_SECONDS or TURNS.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import dispatch_service_pb2 as pb

#: Field of a Budget, how a figure is written, and its option of `backburner budget`.
_WORDS: Final[Mapping[str, tuple[str, str]]] = {
    "TOKENS": ("{:,.0f} tokens", "--tokens N"),
    "COST_USD": ("${:,.4g}", "--usd N"),
    "WALL_SECONDS": ("{:,.6g} s of running time", "--wall TIME"),
    "TURNS": ("{:,.0f} turns", "--turns N"),
}


def bounds_of(budget: str | None) -> list[pb.BudgetBound]:
    """The bounds of a claimed attempt."""
    return [
        pb.BudgetBound(
            of=figure["of"],
            what=figure["what"],
            limit=figure["limit"],
            left=figure["left"],
            on_spent=journal_pb2.BUDGET_ACTION_ASK if figure["ask"] else journal_pb2.BUDGET_ACTION_FAIL,
        )
        for figure in json.loads(budget or "[]")
    ]


def least(bounds: Sequence[pb.BudgetBound]) -> journal_pb2.Budget:
    """What the attempt may consume under all of them."""
    left: dict[str, float] = {}
    for bound in bounds:
        left[bound.what] = min(bound.left, left.get(bound.what, bound.left))
    budget = journal_pb2.Budget(
        tokens=left.get("TOKENS", 0.0), cost_usd=left.get("COST_USD", 0.0), turns=int(left.get("TURNS", 0))
    )
    if "WALL_SECONDS" in left:
        budget.wall_time.CopyFrom(_duration(left["WALL_SECONDS"]))
    return budget


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


def spent(figure: Mapping[str, Any]) -> str:
    """A budget that is spent, in words."""
    words, _ = _WORDS[figure["what"]]
    return (
        f"the budget of {figure['of']} is spent: {words.format(figure['used'])} used of {words.format(figure['limit'])}"
    )


def budget_awaited(run_id: str, figure: Mapping[str, Any]) -> str:
    """What an effect waits for, from `budget_awaited_v1`."""
    if figure["verdict"] == "wait":
        return "what is left of its budget is reserved, or in use, by others that run"
    if figure["verdict"] == "raise":
        return (
            "its last attempt has spent a budget that asks, and it may start once more only when that one is raised "
            "(`backburner budget`; its last error names it); or `backburner cancel` it"
        )
    kind, _, name = figure["of"].partition(" ")
    option = _WORDS[figure["what"]][1]
    change = {
        "run": f"backburner budget raise {name} {option}",
        "effect": f"backburner budget raise {run_id} --effect {name} {option}",
        "label": f"backburner budget set --label {name} {option}",
    }[kind]
    return f"{spent(figure)}; raise it with `{change}`, or `backburner cancel` it"
