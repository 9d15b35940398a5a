"""Canonical JSON values: what may cross the boundary of a process, and the one form in which it does.

The journal stores values in a `jsonb` column, which reorders keys and rewrites numbers (`1.0`, `1e2`). A process must
see the same value live and on replay, so both sides pass every value through this module: keys sorted, integral floats
as ints, I-JSON (RFC 7493) numbers only. Encoding refuses what cannot be stored; normalising never refuses.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import hashlib
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

import orjson

# Largest magnitude below which every integer is a double of its own: beyond it, readers disagree on the value.
INTEGER_MAX: Final = 2**53
DEPTH_MAX: Final = 200
#: Most problems of one value that are told at once.
PROBLEMS_MAX: Final = 50

JsonValue = None | bool | int | float | str | list[Any] | dict[str, Any]


class InvalidValue(ValueError):
    """A value that cannot be stored or does not fit its annotation. `path` names the place: `result.items[3].size`."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class InvalidValues(InvalidValue):
    """Several values that do not fit, told at once. `problems` is each of them, `path` that of the first."""

    def __init__(self, problems: Sequence[InvalidValue]) -> None:
        first, *more = problems
        rest = "".join(f"; {problem}" for problem in more[: PROBLEMS_MAX - 1])
        super().__init__(first.path, first.problem + rest + ("; and more" if len(problems) > PROBLEMS_MAX else ""))
        self.problems = tuple(problems[:PROBLEMS_MAX])


def problems_of(error: InvalidValue) -> tuple[InvalidValue, ...]:
    """Everything that an error tells of, one by one."""
    return error.problems if isinstance(error, InvalidValues) else (error,)


class Problems:
    """Collects what does not fit, so that all of it is told at once. Keeps a bounded number of them."""

    def __init__(self) -> None:
        self._found: list[InvalidValue] = []

    def read(self, reader: Callable[..., Any], *args: Any) -> Any:
        """What the reader gives; None, and a problem more, when it refuses."""
        try:
            return reader(*args)
        except InvalidValue as error:
            self._found += problems_of(error)[: PROBLEMS_MAX + 1 - len(self._found)]
            return None

    def add(self, path: str, problem: str) -> None:
        """One more."""
        if len(self._found) <= PROBLEMS_MAX:
            self._found.append(InvalidValue(path, problem))

    def tell(self) -> None:
        """Raises what was found, if anything was."""
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            raise InvalidValues(self._found)


class InvalidNumber(InvalidValue):
    """NaN, an infinity, or an integer beyond 2^53."""


class InvalidText(InvalidValue):
    """Text with NUL or a lone surrogate, which Postgres cannot store."""


class TooLarge(InvalidValue):
    """A value larger than what may be stored of it. `size` and `limit` are bytes as JSON in UTF-8, or as a message."""

    def __init__(self, path: str, size: int, limit: int, instead: str) -> None:
        super().__init__(path, f"is {size} bytes; at most {limit} fit: {instead}")
        self.size = size
        self.limit = limit


class UnsupportedType(InvalidValue):
    """A Python object without a JSON form, or without a stable one (sets)."""


def encode(value: object, path: str = "value") -> Any:
    """Turn a Python value into a canonical JSON value.

    Dataclasses, mappings, lists, tuples, enums, dates and times, timedeltas (seconds), paths, UUIDs and pydantic models
    are understood. Raises InvalidValue (a ValueError) that names the path of what cannot be stored.
    """
    return _encode(value, path, 0)


def _encode(value: object, path: str, depth: int) -> Any:
    scalar = _SCALARS.get(type(value))
    if scalar is not None:
        return scalar(value, path)
    if depth > DEPTH_MAX:
        raise InvalidValue(path, f"nested deeper than {DEPTH_MAX} levels (a cycle?)")
    if type(value) is list or isinstance(value, (list, tuple)):
        return [_encode(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return _encode_mapping(value, path, depth)
    return _encode_object(value, path, depth)


def _encode_mapping(value: Mapping[Any, Any], path: str, depth: int) -> dict[str, Any]:
    encoded: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise UnsupportedType(path, f"key {key!r} is {type(key).__name__}; JSON keys are str")
        name = _text(str(key.value) if isinstance(key, enum.Enum) else str(key), f"{path}.{key!r}")
        encoded[name] = _encode(item, f"{path}.{name}", depth + 1)
    return dict(sorted(encoded.items()))


def _encode_object(value: object, path: str, depth: int) -> Any:
    if isinstance(value, enum.Enum):
        return _encode(value.value, path, depth + 1)
    for base, convert in _CONVERTED.items():
        if isinstance(value, base):
            return _encode(convert(value), path, depth + 1)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _encode_mapping(fields, path, depth)
    if hasattr(value, "model_dump") and hasattr(type(value), "model_validate"):
        return _encode(value.model_dump(mode="json"), path, depth + 1)
    raise UnsupportedType(path, _unsupported(value))


def _unsupported(value: object) -> str:
    if isinstance(value, (set, frozenset)):
        return "a set has no order that replay could repeat; use sorted(...)"
    return f"{type(value).__name__} has no JSON form; use JSON types, dataclasses, enums, dates or paths"


def _text(value: str, path: str) -> str:
    if "\x00" in value:
        raise InvalidText(path, "text holds a NUL character, which cannot be stored")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidText(path, f"text holds a lone surrogate at {error.start}") from None
    return value


def _integer(value: int, path: str) -> int:
    if not -INTEGER_MAX <= value <= INTEGER_MAX:
        raise InvalidNumber(path, f"integer {value} is beyond 2^53 and would change on the way; use a string")
    return value


def _number(value: float, path: str) -> float | int:
    if not math.isfinite(value):
        raise InvalidNumber(path, f"{value} is no JSON number")
    return _integral(value)


def _integral(value: float) -> float | int:
    return int(value) if value.is_integer() and abs(value) <= INTEGER_MAX else value


def _same(value: Any, _path: str) -> Any:
    return value


_SCALARS: Final[Mapping[type, Any]] = {
    type(None): _same, bool: _same, int: _integer, float: _number, str: _text,
}  # fmt: skip

# Subclasses of JSON scalars (IntEnum is caught before) and types with one obvious JSON form.
_CONVERTED: Final[Mapping[type, Any]] = {
    dt.datetime: lambda value: value.isoformat(),
    dt.date: lambda value: value.isoformat(),
    dt.time: lambda value: value.isoformat(),
    dt.timedelta: lambda value: value.total_seconds(),
    PurePath: str,
    uuid.UUID: str,
    int: int,
    float: float,
    str: str.__str__,
}


def normalise(value: Any) -> Any:
    """Bring a stored JSON value into the canonical form: sorted keys, integral floats as ints, huge ints as floats.

    Idempotent, and equal to `encode` on whatever `encode` accepted: `normalise(jsonb(encode(x))) == encode(x)`.
    """
    kind = type(value)
    if kind is dict:
        return {key: normalise(value[key]) for key in sorted(value)}
    if kind is list:
        return [normalise(item) for item in value]
    if kind is float:
        return _integral(value)
    if kind is int and not -INTEGER_MAX <= value <= INTEGER_MAX:
        return float(value)  # numeric prints 1e300 with all its digits; it was a float when it was given
    return value


def canonical_json(value: object) -> bytes:
    """The canonical JSON text of a value, as UTF-8: equal values give equal bytes. Raises InvalidValue."""
    return dumps(encode(value))


def dumps(canonical: object) -> bytes:
    """JSON text of a value that is canonical already, as UTF-8."""
    return orjson.dumps(canonical, option=orjson.OPT_SORT_KEYS)


def digest(name: str, work: Mapping[str, Any]) -> str:
    """The digest that a repeated effect key is checked against: SHA-256 of `{"name", "work"}`, lower-case hex.

    `work` is the one work field of the EffectSpec in proto3 JSON with proto field names, canonical:
    `{"shell": {"argv": [...]}}`.
    """
    return hashlib.sha256(dumps({"name": name, "work": work})).hexdigest()
