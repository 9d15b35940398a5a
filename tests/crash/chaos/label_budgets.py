"""A budget of a label under chaos: never spent, so that all it does is count, and every attempt once.

While there is one, nothing takes the fast path: so it is set for some of the batches of rounds only, when nothing runs.
"""

from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from backburner.scheduler.v1 import operator_service_pb2 as operator_pb
from tests.crash.chaos.clients import Caller, Refused

#: Runs with it are counted.
NAME, VALUE = "team", "chaos"
_LABEL: Final = f"{NAME}={VALUE}"
_COUNTED: Final = """
    SELECT b.used[1] AS used, coalesce(sum(u.input_tokens + u.output_tokens), 0) AS tokens,
           b.used[4] AS used_turns, coalesce(sum(u.turns), 0) AS turns
    FROM backburner.label_budgets b LEFT JOIN backburner.attempt_usage u
         ON u.labels->>b.label = b.value AND u.ended_at >= b.created_at
    WHERE b.label = %s AND b.value = %s GROUP BY b.budget_id
"""


async def set_one(caller: Caller) -> None:
    """Sets it."""
    budget = operator_pb.LabelBudget(label=_LABEL, reason="chaos", actor="chaos")
    budget.budget.tokens = budget.budget.turns = 10**9
    await caller.call("SetBudget", operator_pb.SetBudgetRequest(budget=budget))


async def taken_away(dsn: str, caller: Caller) -> list[str]:
    """Takes it away when all has ended, if there is one; what is wrong with what it has counted."""
    async with await psycopg.AsyncConnection.connect(dsn, row_factory=dict_row, autocommit=True) as connection:
        rows: list[dict[str, Any]] = await (await connection.execute(_COUNTED, [NAME, VALUE])).fetchall()
    found = []
    for row in rows:
        if abs(row["used"] - row["tokens"]) > 0.5 or row["used_turns"] != row["turns"]:
            found.append(f"the budget of label {_LABEL} has not counted each attempt once: {row}")
        clear = operator_pb.ClearBudgetRequest(label=_LABEL, reason="chaos", actor="chaos")
        try:
            await caller.call("ClearBudget", clear)
        except Refused as refused:
            if refused.reason != "BUDGET_NOT_FOUND":  # the answer to the first call was lost
                raise
    return found
