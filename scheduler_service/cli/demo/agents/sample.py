"""The sample repository: a Python package with failing tests, missing docs and a smell; and how each of that is mended.

`edits` are what the stand-ins do to it. A model that is asked the same finds its own way.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

TEST: Final = f"PYTHONDONTWRITEBYTECODE=1 {sys.executable} -m unittest discover -q -s tests -t ."

_MONEY: Final = """\
def split_bill(cents, people):
    share = cents // people
    return [share] * people


def parse_amount(text):
    whole, _, fraction = text.partition(".")
    return int(whole) * 100 + int(fraction or 0)
"""

_SPLIT_FIXED: Final = """\
def split_bill(cents, people):
    share, rest = divmod(cents, people)
    return [share + 1] * rest + [share] * (people - rest)


def parse_amount(text):
    whole, _, fraction = text.partition(".")
    return int(whole) * 100 + int(fraction or 0)
"""

_BOTH_FIXED: Final = """\
def split_bill(cents, people):
    share, rest = divmod(cents, people)
    return [share + 1] * rest + [share] * (people - rest)


def parse_amount(text):
    whole, _, fraction = text.replace(",", "").partition(".")
    return int(whole) * 100 + int(f"{fraction:0<2}")
"""

_LEDGER: Final = """\
from tally.money import parse_amount


class Ledger:
    def __init__(self, entries=[]):
        self.entries = entries

    def add(self, name, amount):
        self.entries.append((name, parse_amount(amount)))

    def total(self):
        return sum(cents for _, cents in self.entries)
"""

_LEDGER_DOCUMENTED: Final = '''\
"""A ledger of named amounts."""

from tally.money import parse_amount


class Ledger:
    """Entries with a name and an amount in cents, in the order in which they were added."""

    def __init__(self, entries=[]):
        self.entries = entries

    def add(self, name, amount):
        """Add an amount given as text, such as "1,234.50"."""
        self.entries.append((name, parse_amount(amount)))

    def total(self):
        """The sum of all entries, in cents."""
        return sum(cents for _, cents in self.entries)
'''

_TESTS: Final = """\
import unittest

from tally.ledger import Ledger
from tally.money import parse_amount, split_bill


class Money(unittest.TestCase):
    def test_even_split(self):
        self.assertEqual(split_bill(900, 3), [300, 300, 300])

    def test_no_cent_is_lost(self):
        self.assertEqual(sum(split_bill(1000, 3)), 1000)

    def test_plain_amount(self):
        self.assertEqual(parse_amount("12.34"), 1234)

    def test_amount_with_thousands(self):
        self.assertEqual(parse_amount("1,234.50"), 123450)


class Total(unittest.TestCase):
    def test_total(self):
        ledger = Ledger([])
        ledger.add("lunch", "12.50")
        ledger.add("tea", "3")
        self.assertEqual(ledger.total(), 1550)
"""

_README: Final = "# tally\n\nSplits bills.\n"
_README_DOCUMENTED: Final = (
    "# tally\n\nSplits bills.\n\n## Use\n\n"
    '    from tally.money import split_bill\n\n    split_bill(1000, 3)  # cents; no cent is lost\n\n'
    "Tests: `python -m unittest discover -s tests -t .`\n"
)  # fmt: skip

FILES: Final[Mapping[str, str]] = {
    "README.md": _README,
    "tally/__init__.py": "",
    "tally/money.py": _MONEY,
    "tally/ledger.py": _LEDGER,
    "tests/__init__.py": "",
    "tests/test_tally.py": _TESTS,
}
FIX: Final[Mapping[str, str]] = {"tally/money.py": _SPLIT_FIXED}
FIX_AGAIN: Final[Mapping[str, str]] = {"tally/money.py": _BOTH_FIXED}
DOCUMENT: Final[Mapping[str, str]] = {"tally/ledger.py": _LEDGER_DOCUMENTED, "README.md": _README_DOCUMENTED}
REVIEW: Final = {
    "summary": "Small and clear. One default argument will surprise somebody, and the tests are right: cents get lost.",
    "findings": [
        {"file": "tally/ledger.py", "line": 5, "severity": "high",
         "message": "All ledgers made without entries share one list: the default is made once. Use None."},
        {"file": "tally/money.py", "line": 2, "severity": "medium",
         "message": "The rest of the division is dropped, and nothing says what happens with 0 people."},
    ],
}  # fmt: skip


def make_sample(folder: Path) -> Path:
    """Make the repository in a folder that is not there yet, with one commit. Raises OSError, CalledProcessError."""
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    nobody = ("-c", "user.name=Backburner", "-c", "user.email=backburner@localhost", "-c", "commit.gpgsign=false")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "--no-verify", "-m", "A package with a few flaws"]):
        subprocess.run(["git", *nobody, *command], cwd=folder, check=True, capture_output=True)
    return folder
