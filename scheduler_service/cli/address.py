"""Where the scheduler and its database are: found without flags next to a `backburner dev`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEFAULT_ADDRESS: Final = "127.0.0.1:7233"
DATA_DIR: Final = ".backburner"
VARIABLE: Final = "BACKBURNER_ADDRESS"
_FILE: Final = "address"
_DATABASE_FILE: Final = "database"


@dataclass(frozen=True)
class Target:
    """The service to talk to. `source` says, for error messages, where the address came from."""

    address: str
    source: str
    namespace: str = "default"


def find_address(flag: str | None, env: Mapping[str, str] | None = None, start: Path | None = None) -> tuple[str, str]:
    """Address and its source: the flag, the environment, the file of `backburner dev`, the default."""
    source = os.environ if env is None else env
    if flag:
        return flag, "from --address"
    if source.get(VARIABLE):
        return source[VARIABLE], f"from {VARIABLE}"
    return _from_file(_FILE, start or Path.cwd()) or (DEFAULT_ADDRESS, "the default address")


def find_database(start: Path | None = None) -> str | None:
    """Connection string of the database of the `backburner dev` that runs here or in a folder above."""
    found = _from_file(_DATABASE_FILE, start or Path.cwd())
    return found[0] if found else None


def _from_file(name: str, start: Path) -> tuple[str, str] | None:
    # As git looks for .git: commands work in every folder below the one that `backburner dev` was started in.
    for folder in (start, *start.parents):
        path = folder / DATA_DIR / name
        if path.is_file() and (value := path.read_text().strip()):
            return value, f"from {path}"
    return None


def write_address(data_dir: Path, address: str, dsn: str) -> None:
    """Leave the address and the connection string where the other commands find them."""
    (data_dir / _FILE).write_text(f"{address}\n")
    database = data_dir / _DATABASE_FILE
    database.touch(mode=0o600)  # before anything is in it: it may hold a password
    database.write_text(f"{dsn}\n")


def remove_address(data_dir: Path) -> None:
    """Take them back when the services stop."""
    for name in (_FILE, _DATABASE_FILE):
        (data_dir / name).unlink(missing_ok=True)
