"""usage, budget and run --budget-* against a played scheduler."""

import json
from typing import Any

import pytest

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.unit.cli.conftest import Shell


def asked(shell: Shell, kind: type) -> list[Any]:
    return [request for request in shell.fake.asked if isinstance(request, kind)]


def test_usage_says_what_is_known_of_the_cost(shell: Shell) -> None:
    code, out, _ = shell("usage", "--by", "label", "team", "--since", "1h", "--label", "kind=review")
    assert (code, "$1.20 + 3 attempts of unknown cost" in out, "cost unknown" in out, "(4 more)" in out) == (
        0, True, True, True,
    )  # fmt: skip
    [request] = asked(shell, pb.ListUsageRequest)
    assert (request.group_by, request.label) == (pb.ListUsageRequest.GROUP_BY_LABEL, "team")
    assert (request.HasField("since"), dict(request.labels)) == (True, {"kind": "review"})
    lines = shell("usage", "--json")[1].splitlines()
    assert [json.loads(line)["attempts"] for line in lines] == [1, 5]


def test_label_is_named_where_it_is_added_up_by(shell: Shell) -> None:
    assert [shell("usage", *words)[0] for words in (("--by", "label"), ("team",))] == [2, 2]


def test_budget_of_a_label(shell: Shell) -> None:
    code, out, _ = shell(
        "budget", "set", "--label", "team=a", "--usd", "50", "--wall", "2h", "--per", "day", "--ask", "--reason", "r"
    )
    assert (code, out) == (0, "team=a: $50.00, 2h 00m of running time a day\n")
    [request] = asked(shell, op.SetBudgetRequest)
    assert (request.budget.label, request.budget.per_day, request.budget.reason) == ("team=a", True, "r")
    assert request.budget.budget.on_spent == journal.BUDGET_ACTION_ASK
    code, out, _ = shell("budget", "list")
    assert (code, "$1.20 + 2 attempts of unknown cost" in out, "$50.00 a day" in out) == (0, True, True)
    assert shell("budget", "clear", "--label", "team=a")[:2] == (0, "team=a has no budget any more\n")


@pytest.mark.parametrize("words", [("set", "--label", "team=a"), ("raise", "01890a5d")])
def test_budget_without_a_figure_is_refused(shell: Shell, words: tuple[str, ...]) -> None:
    code, _, err = shell("budget", *words)
    assert (code, "say how much" in err) == (2, True)
