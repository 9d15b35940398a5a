"""The README is part of the product: what it names exists, and what it draws and lists is made from the code.

`python -m tests.contract.test_readme` writes the generated parts anew.
"""

import re
from pathlib import Path

from scheduler_service.cli.entry import _COMMANDS
from tests.support.reference import with_parts

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def test_generated_parts_are_current() -> None:
    assert README.read_text() == with_parts(README.read_text()), "run: python -m tests.contract.test_readme"


def test_every_path_exists() -> None:
    paths = re.findall(r"`((?:scheduler_service|executor_service|proto|deploy|tests)/[\w./-]*)`", README.read_text())
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", README.read_text())
    assert len(named) >= 5
    missing = [name for path, name in named if f"def {name}(" not in (ROOT / path).read_text()]
    assert missing == []


def test_each_row_of_what_fails_names_the_tests_that_hold_it() -> None:
    _, found, rest = README.read_text().partition("| what fails | what happens | tests |\n|---|---|---|\n")
    assert found
    rows = rest.partition("\n\n")[0].splitlines()
    assert len(rows) == 8, "as many as the design has"
    assert all(re.search(r"`tests/[\w/]+\.py::\w+`", row) for row in rows)


def test_every_command_is_there() -> None:
    text = README.read_text()
    assert [name for name in _COMMANDS if not re.search(rf"`(?:backburner )?{name}[` ]", text)] == []


if __name__ == "__main__":
    README.write_text(with_parts(README.read_text()))
