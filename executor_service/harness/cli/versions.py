"""Which versions of a CLI were tested, and which are known to work: a table of data, `versions.json`, by harness.

`tested` are the releases that the tests run (`make test-harnesses`, `make test-releases`), the newest last. What is
called known to work begins with the oldest of them (`from`) and ends before `below`, where a CLI may well have changed
what it says: not each release between was tried. One outside is used all the same, with a warning.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SHIPPED: Final = Path(__file__).with_name("versions.json")


@dataclass(frozen=True, slots=True)
class Versions:
    """What is known of the versions of one CLI. Nothing given: none is more known than another."""

    tested: Sequence[str] = ()
    #: Known to work are this one and later ones, below the other.
    first: str = ""
    below: str = ""

    def known(self, version: str) -> bool:
        """True for one that was tested or is in the range."""
        if not self.first or version in self.tested:
            return True
        return _parts(self.first) <= _parts(version) < _parts(self.below)

    def __str__(self) -> str:
        return f"{self.first} and later, below {self.below}" if self.first else ""


def load_versions(path: Path = _SHIPPED) -> Mapping[str, Versions]:
    """The table, by harness."""
    table = json.loads(path.read_text())
    return {name: Versions(tuple(row["tested"]), row["from"], row["below"]) for name, row in table.items()}


def is_before(version: str, first: str) -> bool:
    """True for a release that is older than `first`; one that is not known counts as new."""
    return bool(_parts(version)) and _parts(version) < _parts(first)


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])


#: What is known of the CLIs that come with the executor.
VERSIONS: Final = load_versions()
