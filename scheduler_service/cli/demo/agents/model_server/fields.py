"""Reading a scenario from JSON: each field by name and type, errors with the path of the field."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, TypeVar, overload

T = TypeVar("T")


class ScenarioError(ValueError):
    """A scenario that cannot be played, by the path of the field."""


class Fields:
    """One JSON object. What was not asked for by `end()` is unknown, and refused."""

    def __init__(self, document: object, path: str) -> None:
        if not isinstance(document, Mapping):
            raise ScenarioError(f"{path}: an object is expected, found {_kind(document)}")
        self.path: Final = path
        self._document: Final[Mapping[str, Any]] = document
        self._known: Final[set[str]] = set()

    def end(self) -> None:
        """Raise ScenarioError for the fields that nobody asked for."""
        unknown = sorted(set(self._document) - self._known)
        if unknown:
            raise ScenarioError(f"{self.path}.{unknown[0]}: unknown field; known: {', '.join(sorted(self._known))}")

    def all_of(self, read: T) -> T:
        """What was read, once nothing else is there."""
        self.end()
        return read

    @overload
    def text(self, name: str, default: str = ...) -> str: ...
    @overload
    def text(self, name: str, default: None) -> str | None: ...
    def text(self, name: str, default: str | None = "") -> str | None:
        """A string."""
        found: str | None = self._get(name, default, str)
        return found

    @overload
    def number(self, name: str, default: float) -> float: ...
    @overload
    def number(self, name: str, default: None) -> float | None: ...
    def number(self, name: str, default: float | None) -> float | None:
        """A number, 0 or more."""
        value = self._get(name, default, int, float)
        return None if value is None else float(self._positive(name, value))

    def integer(self, name: str, default: int) -> int:
        """A whole number, 0 or more."""
        return int(self._positive(name, self._get(name, default, int)))

    def whole(self, name: str, default: int | None) -> int | None:
        """A whole number, or null; -1 is null too."""
        value = self._get(name, default, int, type(None))
        return None if value is None or value < 0 else int(value)

    def flag(self, name: str) -> bool:
        """True or false, which is the default."""
        return bool(self._get(name, False, bool))

    def one_of(self, name: str, values: Collection[str]) -> str:
        """One of these strings; "" when the field is not there."""
        value = self.text(name, "")
        if value not in values:
            raise ScenarioError(f"{self.path}.{name}: {value!r} is none of {', '.join(filter(None, values))}")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        """An object of any content."""
        found: Mapping[str, Any] = self._get(name, {}, dict)
        return found

    def inner(self, name: str) -> Fields | None:
        """An object to read on, if it is there."""
        value = self._get(name, None, dict)
        return None if value is None else Fields(value, f"{self.path}.{name}")

    def inners(self, name: str) -> list[Fields]:
        """A list of objects; one alone may stand without the list."""
        value = self._get(name, [], dict, list)
        if isinstance(value, dict):
            return [Fields(value, f"{self.path}.{name}")]
        return [Fields(item, f"{self.path}.{name}[{index}]") for index, item in enumerate(value)]

    def _get(self, name: str, default: object, *types: type) -> Any:
        self._known.add(name)
        value = self._document.get(name, default)
        if value is default:
            return value
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = " or ".join(_NAMES[one] for one in types)
            raise ScenarioError(f"{self.path}.{name}: {expected} is expected, found {_kind(value)}")
        return value

    def _positive(self, name: str, value: float) -> float:
        if value < 0:
            raise ScenarioError(f"{self.path}.{name}: {value} is below 0")
        return value


_NAMES: Final[dict[type, str]] = {
    str: "a string", int: "a whole number", float: "a number", bool: "true or false", dict: "an object",
    list: "a list", type(None): "null",
}  # fmt: skip


def _kind(value: object) -> str:
    return _NAMES.get(type(value), type(value).__name__)
