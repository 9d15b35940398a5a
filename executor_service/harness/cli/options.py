"""Options of an agent effect, read strictly; and how an adapter finds the native binary behind a wrapper."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from executor_service.assignment import InvalidWork
from executor_service.harness.cli.adapter import RETRIES, Task

#: Options that the runner itself reads, for every harness.
COMMON: Final = frozenset({"silence_s", "tool_silence_s", "retry_silence_s", "account"})
#: How the variables of a provider begin where they do not by its name.
_PROVIDERS: Final[Mapping[str, tuple[str, ...]]] = {
    "google": ("GEMINI_", "GOOGLE_"), "vercel-ai-gateway": ("AI_GATEWAY_",),
}  # fmt: skip
_CPUS: Final = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
_SYSTEMS: Final = {"Linux": "linux", "Darwin": "darwin", "Windows": "win32"}


class Options:
    """The options of a task. An unknown one is an error: a typing mistake must not go unnoticed."""

    def __init__(self, task: Task, known: set[str]) -> None:
        self._given: Mapping[str, Any] = task.options
        unknown = set(self._given) - known - COMMON
        if unknown:
            raise InvalidWork(f"unknown options {sorted(unknown)}; there are: {', '.join(sorted(known | COMMON))}")

    @staticmethod
    def flag(name: str, value: str) -> list[str]:
        """A flag with its value, when there is one."""
        return [name, value] if value else []

    def args(self) -> list[str]:
        """Further flags, as they stand."""
        given = self._given.get("args", [])
        if not isinstance(given, (list, tuple)) or not all(isinstance(item, str) for item in given):
            raise InvalidWork(f"option args: expected a list of texts, not {given!r}")
        return list(given)

    def retries(self) -> int:
        """Tries of one request that the CLI makes by itself after the first."""
        given = self._given.get("retries")
        return RETRIES if given is None else self.number("retries")

    def number(self, name: str) -> int:
        """A whole number; 0 when it is not given."""
        given = self._given.get(name, 0)
        if isinstance(given, bool) or not isinstance(given, (int, float)) or int(given) != given or given < 0:
            raise InvalidWork(f"option {name}: expected a whole number, not {given!r}")
        return int(given)

    def text(self, name: str) -> str:
        """A text; empty when it is not given."""
        given = self._given.get(name, "")
        if not isinstance(given, str):
            raise InvalidWork(f"option {name}: expected a text, not {given!r}")
        return given

    def flagged(self, name: str) -> bool:
        """True or false; false when it is not given."""
        given = self._given.get(name, False)
        if not isinstance(given, bool):
            raise InvalidWork(f"option {name}: expected true or false, not {given!r}")
        return given

    def table(self, name: str) -> Mapping[str, Any]:
        """An object; empty when it is not given."""
        given = self._given.get(name, {})
        if not isinstance(given, dict):
            raise InvalidWork(f"option {name}: expected an object, not {given!r}")
        return given


def keys_of(provider: str, names: Sequence[str]) -> Sequence[str]:
    """Those of the variables that hold keys of a provider; none when it is not known which one that is."""
    if not provider:
        return []
    begins = _PROVIDERS.get(provider, (f"{provider.upper().replace('-', '_')}_",))
    return [name for name in names if name.startswith(begins)]


def platform_binary(program: Path, scope: str, package: str, *inside: str) -> Sequence[str]:
    """The native binary in the platform's package beside the one a wrapper belongs to, else the program itself.

    Wrappers swallow signals, or die of them alone and leave the real process behind.
    """
    real = program.resolve()
    names = {"system": _SYSTEMS.get(platform.system(), ""), "cpu": _CPUS.get(platform.machine().lower(), "")}
    for folder in real.parents:
        if folder.name == "node_modules":
            found = [
                path for path in (folder / scope / package.format(**names)).glob("/".join(inside)) if path.is_file()
            ]
            if found:
                return [str(found[0])]
    return [str(program)]


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those of `above` over them, object by object."""
    both = {
        name: merged(below[name], value) if isinstance(value, dict) and isinstance(below.get(name), dict) else value
        for name, value in above.items()
    }
    return {**below, **both}
