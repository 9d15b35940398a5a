"""Secrets of an executor, by name: effects say only the name, and the value goes into the environment of the child.

A secret is a file of the folder `BACKBURNER_SECRETS_DIR`, as Kubernetes mounts them, or a variable
`BACKBURNER_SECRET_<NAME>` of the executor, the name in upper case with `_` for `-` and `.`. The file goes before.
"""

import asyncio
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from executor_service.assignment import InvalidWork
from executor_service.harness.base import Attempt
from executor_service.masking import BYTES_MIN
from executor_service.regular_file import NotRegular, opened

BYTES_MAX: Final = 64 * 1024
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")


async def secret_values(secrets: "Secrets", work: Mapping[str, Any], attempt: Attempt) -> dict[str, str]:
    """The values that work asks for, by variable; from now on the attempt keeps them out of all it says."""
    wanted = work.get("secrets")
    if not wanted:
        return {}
    values = await asyncio.to_thread(secrets.values, wanted)
    attempt.masks.add(values.values())
    return values


class Secrets:
    """Looks secrets up. They are read anew for each attempt: a changed one is used from then on."""

    def __init__(self, folder: str, environ: Mapping[str, str] | None = None) -> None:
        self._folder = Path(folder) if folder else None
        self._environ = os.environ if environ is None else environ

    def values(self, wanted: Mapping[str, str]) -> dict[str, str]:
        """The values by variable, for the names by variable. Raises InvalidWork that names the one which is missing."""
        return {variable: self._value(variable, name) for variable, name in wanted.items()}

    def _value(self, variable: str, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise InvalidWork(f"secrets[{variable!r}]: {name!r} is no name of a secret")
        value = self._file(name)
        if value is None:
            value = self._environ.get(self.variable(name))
        if value is None:
            where = f"no file {name!r} in its BACKBURNER_SECRETS_DIR" if self._folder else "no BACKBURNER_SECRETS_DIR"
            raise InvalidWork(f"secret {name!r} is not on this executor: it has {where}, no {self.variable(name)}")
        size = len(value.encode("utf-8", "surrogateescape"))
        if not BYTES_MIN <= size <= BYTES_MAX or "\0" in value:
            raise InvalidWork(f"secret {name!r} must be text of {BYTES_MIN} to {BYTES_MAX} bytes without NUL")
        return value

    @staticmethod
    def variable(name: str) -> str:
        """The variable of the executor that has the secret."""
        return "BACKBURNER_SECRET_" + re.sub("[.-]", "_", name).upper()

    def _file(self, name: str) -> str | None:
        if self._folder is None:
            return None
        path = self._folder / name
        try:
            with opened(path) as file:
                if os.fstat(file.fileno()).st_mode & stat.S_IRWXO:
                    raise InvalidWork(f"secret {name!r}: its file is open to everybody on the executor: chmod o-rwx")
                raw = file.read(BYTES_MAX + 2)
        except FileNotFoundError:
            return None
        except NotRegular as error:
            raise InvalidWork(
                f"secret {name!r}: {path} on the executor is {error}: put a regular file with the value there"
            ) from error
        except OSError as error:
            raise InvalidWork(f"secret {name!r} cannot be read: {error.strerror}") from error
        return os.fsdecode(raw).removesuffix("\n").removesuffix("\r")
