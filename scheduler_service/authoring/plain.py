"""Reading JSON scalars and lists as plain Python types: what needs no look at the fields of a class."""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from scheduler_service.authoring.values import InvalidValue


def read_literal(value: Any, choices: tuple[Any, ...], path: str) -> Any:
    """The choice that a value is."""
    for choice in choices:
        plain = choice.value if isinstance(choice, enum.Enum) else choice
        if value == plain and type(value) is type(plain):  # True is not 1
            return choice
    raise InvalidValue(path, f"{value!r} is none of {', '.join(map(repr, choices))}")


def read_object(value: Any, path: str) -> dict[str, Any]:
    """The fields of an object."""
    stored: dict[str, Any] = expect(value, dict, "an object", path)
    return stored


def expect(value: Any, cls: type, wanted: str, path: str) -> Any:
    """The value, which must be of this very class."""
    if type(value) is not cls:
        raise InvalidValue(path, f"expected {wanted}, got {_described(value)}")
    return value


def _described(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), f"the number {value}")


def _read_int(value: Any, path: str) -> int:
    if isinstance(value, float) and value.is_integer():  # beyond 2^53 the canonical form is a float
        return int(value)
    whole: int = expect(value, int, "an integer", path)
    return whole


def _read_float(value: Any, path: str) -> float:
    if type(value) not in (int, float):
        raise InvalidValue(path, f"expected a number, got {_described(value)}")
    return float(value)


def parse(parser: Callable[[Any], Any], value: Any, path: str, problem: str) -> Any:
    """What a parser makes of a value."""
    try:
        return parser(value)
    except (ValueError, TypeError) as error:
        raise InvalidValue(path, f"{value!r} is {problem}") from error


def _plain(cls: type, wanted: str) -> Callable[[Any, str], Any]:
    return lambda value, path: expect(value, cls, wanted, path)


def _text(parser: Callable[[Any], Any], problem: str) -> Callable[[Any, str], Any]:
    return lambda value, path: parse(parser, expect(value, str, "text", path), path, problem)


#: Class -> what reads a value as it, given its path.
READERS: Final[Mapping[type, Callable[[Any, str], Any]]] = {
    bool: _plain(bool, "a boolean"),
    int: _read_int,
    float: _read_float,
    str: _plain(str, "text"),
    list: _plain(list, "a list"),
    dict: _plain(dict, "an object"),
    tuple: lambda value, path: tuple(expect(value, list, "a list", path)),
    type(None): _plain(type(None), "null"),
    dt.datetime: _text(dt.datetime.fromisoformat, "no ISO 8601 date and time"),
    dt.date: _text(dt.date.fromisoformat, "no ISO 8601 date"),
    dt.time: _text(dt.time.fromisoformat, "no ISO 8601 time"),
    dt.timedelta: lambda value, path: dt.timedelta(seconds=_read_float(value, path)),
    uuid.UUID: _text(uuid.UUID, "no UUID"),
    Path: _text(Path, "no path"),
}
