"""Which account a CLI uses at its provider, as far as that can be told without a call.

All that is told is a fingerprint: nobody can read a key, a login or a name in it. The same account has the same one on
every executor, so that a breaker stops those that share it, and no other.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_FILE_BYTES_MAX: Final = 16 * 1024 * 1024

#: A file of a CLI, named as below HOME, and the path of a field in its JSON.
Field = tuple[str, Sequence[str]]


def fingerprint(secret: str) -> str:
    """What stands for a key or an id. Empty for nothing."""
    return hashlib.sha256(secret.encode()).hexdigest()[:8] if secret else ""


def places(names: Sequence[str], own: tuple[str, str], env: Mapping[str, str], home: Path) -> Iterator[Path]:
    """Where these files are: below HOME, or in the folder that a variable names. `own`: that variable, and what stands
    in its place otherwise.
    """
    variable, folder = own
    given = env.get(variable, "") if variable else ""
    for name in names:
        if not given:
            yield home / name
        elif name.startswith(f"{folder}/"):
            yield Path(given) / name.removeprefix(f"{folder}/")


def identity(fields: Sequence[Field], own: tuple[str, str], env: Mapping[str, str], home: Path) -> str:
    """Who is logged in: the first of the fields that has a text. Empty: nobody, or it cannot be told. Blocking."""
    for name, path in fields:
        for file in places([name], own, env, home):
            value = _read(file)
            for part in path:
                value = value.get(part) if isinstance(value, dict) else None
            if isinstance(value, str) and value:
                return value
    return ""


def content(files: Iterator[Path]) -> str:
    """Fingerprint of what files hold; empty when there is none. Blocking."""
    found = [data for file in files if (data := _bytes(file)) is not None]
    return hashlib.sha256(b"\0".join(found)).hexdigest()[:8] if found else ""


def is_there(file: Path) -> bool:
    """False for one that is not to be read, too: a CLI could not log in by it either."""
    try:
        return file.exists()
    except OSError:
        return False


def _read(file: Path) -> Any:
    data = _bytes(file)
    try:
        return None if data is None else json.loads(data)
    except ValueError:
        return None


def _bytes(file: Path) -> bytes | None:
    try:
        with file.open("rb") as opened:
            return opened.read(_FILE_BYTES_MAX)
    except OSError:
        return None
