"""Where the scheduler is: found without flags next to a `backburner dev`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEFAULT_ADDRESS: Final = "127.0.0.1:7233"
DATA_DIR: Final = ".backburner"
VARIABLE: Final = "BACKBURNER_ADDRESS"
_FILE: Final = "address"


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
    found = _from_file(start or Path.cwd())
    return found or (DEFAULT_ADDRESS, "the default address")


def _from_file(start: Path) -> tuple[str, str] | None:
    # As git looks for .git: commands work in every folder below the one that `backburner dev` was started in.
    for folder in (start, *start.parents):
        path = folder / DATA_DIR / _FILE
        if path.is_file() and (address := path.read_text().strip()):
            return address, f"from {path}"
    return None


def write_address(data_dir: Path, address: str) -> Path:
    """Leave the address where the other commands find it."""
    path = data_dir / _FILE
    path.write_text(f"{address}\n")
    return path


def remove_address(data_dir: Path) -> None:
    """Take the address back when the service stops."""
    (data_dir / _FILE).unlink(missing_ok=True)
