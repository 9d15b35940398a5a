"""Budgets: what operators do about those of labels, runs and effects."""

from collections.abc import Mapping
from typing import Any, Final

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import operator_service_pb2 as pb
from scheduler_service.api import limits
from scheduler_service.api.budget_checks import check_budget, stored_budget
from scheduler_service.api.checks import Checks, checked
from scheduler_service.api.convert import duration, timestamp
from scheduler_service.api.engine import EngineApi
from scheduler_service.api.holds import OPERATOR
from scheduler_service.api.run_requests import RunRef
from scheduler_service.api.runs import Runs
from scheduler_service.errors import BudgetNotFound, TooManyBudgets
from scheduler_service.journal import SetBudget
from scheduler_service.journal.client_reads import ClientReads
from scheduler_service.journal.connecting import Row

_LABEL_AS: Final = "must be name=value"


class Budgets:
    """What operators ask about budgets."""

    def __init__(self, engine: EngineApi, reads: ClientReads, runs: Runs) -> None:
        self._engine = engine
        self._reads = reads
        self._runs = runs

    async def set(self, asked: SetBudget) -> pb.SetBudgetResponse:
        """Sets the budget of a label."""
        if await self._engine.operations.set_budget(asked) == "too_many":
            raise TooManyBudgets
        rows = await self._reads.budgets(asked.namespace, None)
        label = f"{asked.label}={asked.value}"
        return pb.SetBudgetResponse(budget=next((_message(row) for row in rows if row["label"] == label), None))

    async def list(self, namespace: str | None, run_id: str | None) -> pb.ListBudgetsResponse:
        """The budgets of labels, and of a run when it is named."""
        return pb.ListBudgetsResponse(budgets=[_message(row) for row in await self._reads.budgets(namespace, run_id)])

    async def clear(self, asked: SetBudget) -> pb.ClearBudgetResponse:
        """Takes the budget of a label away."""
        if await self._engine.operations.set_budget(asked) != "ok":
            raise BudgetNotFound(f"label {asked.label}={asked.value}")
        return pb.ClearBudgetResponse()

    async def raise_(self, asked: SetBudget) -> pb.RaiseBudgetResponse:
        """Changes limits of the budget of a run, or of an effect."""
        assert asked.run_id is not None  # noqa: S101 - it was required
        await self._runs.read(RunRef(asked.namespace, asked.run_id), full=False)
        if await self._engine.operations.set_budget(asked) != "ok":
            effect = f"effect {asked.effect_key} of " if asked.effect_key else ""
            raise BudgetNotFound(f"{effect}run {asked.run_id}")
        return pb.RaiseBudgetResponse()


def parse_set(request: pb.SetBudgetRequest) -> SetBudget:
    """Parses SetBudget."""
    asked = request.budget
    with checked() as check:
        check_budget(check, "budget.budget", asked.budget)
        if asked.run_id:
            check.refuse("budget.run_id", "is not for labels: RaiseBudget changes the budget of a run")
        return SetBudget(
            budget=stored_budget(asked.budget),
            reason=check.text("budget.reason", asked.reason, limits.REASON_BYTES_MAX),
            actor=check.text("budget.actor", asked.actor, limits.ACTOR_BYTES_MAX) or OPERATOR,
            namespace=check.namespace(asked.namespace, "budget.namespace"),
            per_day=asked.per_day,
            **_label(check, "budget.label", asked.label),
        )


def parse_list(request: pb.ListBudgetsRequest) -> tuple[str | None, str | None]:
    """Parses ListBudgets: namespace and run, None for all and for none."""
    with checked() as check:
        namespace = check.namespace(request.namespace) if request.namespace else None
        return namespace, check.optional_uuid("run_id", request.run_id) or None


def parse_clear(request: pb.ClearBudgetRequest) -> SetBudget:
    """Parses ClearBudget."""
    with checked() as check:
        return SetBudget(
            budget={},
            reason=check.text("reason", request.reason, limits.REASON_BYTES_MAX),
            actor=check.text("actor", request.actor, limits.ACTOR_BYTES_MAX) or OPERATOR,
            namespace=check.namespace(request.namespace),
            clear=True,
            **_label(check, "label", request.label),
        )


def parse_raise(request: pb.RaiseBudgetRequest) -> SetBudget:
    """Parses RaiseBudget."""
    with checked() as check:
        check_budget(check, "budget", request.budget)
        if request.budget.on_spent:
            check.refuse("budget.on_spent", "cannot be changed")
        return SetBudget(
            budget=stored_budget(request.budget),
            reason=check.text("reason", request.reason, limits.REASON_BYTES_MAX),
            actor=check.text("actor", request.actor, limits.ACTOR_BYTES_MAX) or OPERATOR,
            namespace=check.namespace(request.namespace),
            run_id=check.uuid("run_id", request.run_id),
            effect_key=check.optional_key("effect_key", request.effect_key) or None,
        )


def _label(check: Checks, field: str, label: str) -> Mapping[str, Any]:
    name, equals, value = label.partition("=")
    if not name or not equals:
        check.refuse(field, _LABEL_AS)
        return {}
    check.labels(field, {name: value})
    return {"label": name, "value": value}


def _message(row: Row) -> pb.LabelBudget:
    return pb.LabelBudget(
        namespace=row["namespace"],
        label=row["label"],
        budget=_budget(row["limits"], asks=row["asks"]),
        per_day=row["per_day"],
        used=_budget(row["used"]),
        costs_unknown=row["costs_unknown"],
        reason=row["reason"],
        actor=row["actor"],
        create_time=timestamp(row["created_at"]),
        run_id=str(row["run_id"] or ""),
    )


def _budget(figures: list[float | None], *, asks: bool = False) -> journal_pb2.Budget:
    tokens, cost, wall, turns = figures
    budget = journal_pb2.Budget(tokens=tokens or 0.0, cost_usd=cost or 0.0, turns=int(turns or 0))
    if wall is not None:
        budget.wall_time.CopyFrom(duration(wall))
    if asks:
        budget.on_spent = journal_pb2.BUDGET_ACTION_ASK
    return budget
