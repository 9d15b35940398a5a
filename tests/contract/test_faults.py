"""Both services judge an error of Postgres alike: the tables stand twice, because neither imports the other."""

import ast
from pathlib import Path

import pytest

import executor_service
import scheduler_service
from executor_service import faults as of_executor
from scheduler_service.journal import faults as of_scheduler

PACKAGES = [Path(path) for package in (scheduler_service, executor_service) for path in package.__path__]


def test_the_tables_are_the_same() -> None:
    assert {state: (kind.value, remedy) for state, (kind, remedy) in of_scheduler.FAULTS.items()} == {
        state: (kind.value, remedy) for state, (kind, remedy) in of_executor.FAULTS.items()
    }
    assert of_scheduler.LOGIN_TEXTS == of_executor.LOGIN_TEXTS


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("53100", "transient"), ("53200", "transient"), ("53300", "transient"), ("40001", "transient"),
        ("40P01", "transient"), ("25006", "transient"), ("57P01", "transient"), ("57P03", "transient"),
        ("57014", "transient"), ("08006", "transient"), ("58030", "transient"), ("55P03", "busy"),
        ("28P01", "operator"), ("3D000", "operator"), ("57P04", "operator"), ("42883", "operator"),
        ("42501", "operator"), ("22P02", "refused"), ("23505", "refused"), ("XX000", "refused"), ("54000", "refused"),
    ],
)  # fmt: skip
def test_what_a_state_means(state: str, kind: str) -> None:
    assert of_executor.kind_of_state(state).value == kind


def test_what_only_an_operator_mends_says_how() -> None:
    for kind, remedy in of_scheduler.FAULTS.values():
        assert bool(remedy) == (kind is of_scheduler.Kind.OPERATOR)


def test_one_place_in_each_service_knows_the_codes() -> None:
    """Elsewhere only names of kinds are compared; a code or two may choose between remedies, in the journal itself."""
    codes = set(of_scheduler.FAULTS) | {"57P01", "57P03", "53300", "40001"}
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            if path.name in ("faults.py", "recording.py", "journal.py") or "postgres" in path.parts:
                continue
            text = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            found = {node.value for node in text if isinstance(node, ast.Constant) and node.value in codes}
            assert {code for code in found if len(str(code)) == 5} == set(), path
