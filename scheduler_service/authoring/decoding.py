"""Reading JSON values by annotation: inputs of runs, arguments and results of functions, answers of agents.

Understood: JSON types, Optional and unions, Literal, enums, lists, tuples, dicts, dataclasses, TypedDict, dates, times,
timedeltas, paths, UUIDs, and pydantic models when pydantic is installed. Every error names the path of the field.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime as dt
import enum
import functools
import inspect
import types
import typing
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Final, Literal, TypeVar, Union

from scheduler_service.authoring.values import InvalidValue


def decode(value: Any, annotation: Any, path: str = "value") -> Any:
    """Read a canonical JSON value as `annotation` says. Raises InvalidValue with the path of what does not fit."""
    if annotation in _UNTYPED:
        return value
    origin = typing.get_origin(annotation)
    if origin is not None:
        return _decode_generic(value, annotation, origin, path)
    if isinstance(annotation, type):
        return _decode_class(value, annotation, path)
    return _decode_special(value, annotation, path)


_UNTYPED: Final = (Any, object, inspect.Parameter.empty, inspect.Signature.empty)


def _decode_special(value: Any, annotation: Any, path: str) -> Any:
    if annotation is None:
        return _expect(value, type(None), "null", path)
    if isinstance(annotation, TypeVar):
        return decode(value, annotation.__bound__ or Any, path)
    target = getattr(annotation, "__supertype__", None) or getattr(annotation, "__value__", None)  # NewType, `type X =`
    if target is not None:
        return decode(value, target, path)
    raise InvalidValue(path, f"annotation {annotation!r} cannot be read from JSON")


def _decode_generic(value: Any, annotation: Any, origin: Any, path: str) -> Any:
    arguments = typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return _decode_union(value, arguments, path)
    if origin is Literal:
        return _decode_literal(value, arguments, path)
    if origin in (Annotated, typing.Required, typing.NotRequired):
        return decode(value, arguments[0], path)
    if origin is tuple:
        return _decode_tuple(value, arguments, path)
    if origin in _SEQUENCES:
        items = _expect(value, list, "a list", path)
        return [decode(item, arguments[0], f"{path}[{index}]") for index, item in enumerate(items)]
    if origin in _MAPPINGS:
        return {key: decode(item, arguments[1], f"{path}.{key}") for key, item in _object(value, path).items()}
    return decode(value, origin, path)  # a generic dataclass or model: its parameters are not checked


_SEQUENCES: Final = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS: Final = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def _decode_union(value: Any, members: tuple[Any, ...], path: str) -> Any:
    if value is None and type(None) in members:
        return None
    problems: list[str] = []
    for member in members:
        if member is type(None):
            continue
        try:
            return decode(value, member, path)
        except InvalidValue as error:
            problems.append(str(error))
    raise InvalidValue(path, problems[0].removeprefix(f"{path}: ") if len(problems) == 1 else " / ".join(problems))


def _decode_literal(value: Any, choices: tuple[Any, ...], path: str) -> Any:
    for choice in choices:
        plain = choice.value if isinstance(choice, enum.Enum) else choice
        if value == plain and type(value) is type(plain):  # True is not 1
            return choice
    raise InvalidValue(path, f"{value!r} is none of {', '.join(map(repr, choices))}")


def _decode_tuple(value: Any, members: tuple[Any, ...], path: str) -> tuple[Any, ...]:
    items = _expect(value, list, "a list", path)
    if len(members) == 2 and members[1] is Ellipsis:
        members = (members[0],) * len(items)
    if len(items) != len(members):
        raise InvalidValue(path, f"{len(items)} items, expected {len(members)}")
    return tuple(
        decode(item, member, f"{path}[{n}]") for n, (item, member) in enumerate(zip(items, members, strict=True))
    )


def _decode_class(value: Any, cls: type, path: str) -> Any:
    reader = _READERS.get(cls)
    if reader is not None:
        return reader(value, path)
    if issubclass(cls, enum.Enum):
        return _parse(cls, value, path, f"no {cls.__name__}")
    if typing.is_typeddict(cls):
        return _decode_typed_dict(value, cls, path)
    if dataclasses.is_dataclass(cls):
        return _decode_dataclass(value, cls, path)
    if hasattr(cls, "model_validate"):
        return _decode_model(value, cls, path)
    if issubclass(cls, PurePath):
        return cls(_expect(value, str, "text", path))
    raise InvalidValue(path, f"annotation {cls.__name__} cannot be read from JSON")


@functools.cache
def _hints(cls: type) -> Mapping[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _decode_dataclass(value: Any, cls: type, path: str) -> Any:
    # Fields that the class does not have are skipped: a newer function may return more than this process knows.
    stored, hints, given = _object(value, path), _hints(cls), {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        if field.name in stored:
            given[field.name] = decode(stored[field.name], hints[field.name], f"{path}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InvalidValue(f"{path}.{field.name}", f"missing; {cls.__name__} requires it")
    try:
        return cls(**given)
    except ValueError as error:  # __post_init__ refused it
        raise InvalidValue(path, str(error)) from error


def _decode_typed_dict(value: Any, cls: Any, path: str) -> dict[str, Any]:
    stored, hints = _object(value, path), _hints(cls)
    for name in sorted(cls.__required_keys__ - stored.keys()):
        raise InvalidValue(f"{path}.{name}", f"missing; {cls.__name__} requires it")
    return {name: decode(item, hints.get(name, Any), f"{path}.{name}") for name, item in stored.items()}


def _decode_model(value: Any, cls: Any, path: str) -> Any:
    try:
        return cls.model_validate(value)
    except ValueError as error:  # pydantic's ValidationError is one; it names the field below `path`
        raise InvalidValue(path, str(error)) from error


def _object(value: Any, path: str) -> dict[str, Any]:
    stored: dict[str, Any] = _expect(value, dict, "an object", path)
    return stored


def _expect(value: Any, cls: type, wanted: str, path: str) -> Any:
    if type(value) is not cls:
        raise InvalidValue(path, f"expected {wanted}, got {_described(value)}")
    return value


def _described(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), f"the number {value}")


def _read_int(value: Any, path: str) -> int:
    if isinstance(value, float) and value.is_integer():  # beyond 2^53 the canonical form is a float
        return int(value)
    whole: int = _expect(value, int, "an integer", path)
    return whole


def _read_float(value: Any, path: str) -> float:
    if type(value) not in (int, float):
        raise InvalidValue(path, f"expected a number, got {_described(value)}")
    return float(value)


def _parse(parser: Callable[[Any], Any], value: Any, path: str, problem: str) -> Any:
    try:
        return parser(value)
    except (ValueError, TypeError) as error:
        raise InvalidValue(path, f"{value!r} is {problem}") from error


def _plain(cls: type, wanted: str) -> Callable[[Any, str], Any]:
    return lambda value, path: _expect(value, cls, wanted, path)


def _text(parser: Callable[[Any], Any], problem: str) -> Callable[[Any, str], Any]:
    return lambda value, path: _parse(parser, _expect(value, str, "text", path), path, problem)


_READERS: Final[Mapping[type, Callable[[Any, str], Any]]] = {
    bool: _plain(bool, "a boolean"),
    int: _read_int,
    float: _read_float,
    str: _plain(str, "text"),
    list: _plain(list, "a list"),
    dict: _plain(dict, "an object"),
    tuple: lambda value, path: tuple(_expect(value, list, "a list", path)),
    type(None): _plain(type(None), "null"),
    dt.datetime: _text(dt.datetime.fromisoformat, "no ISO 8601 date and time"),
    dt.date: _text(dt.date.fromisoformat, "no ISO 8601 date"),
    dt.time: _text(dt.time.fromisoformat, "no ISO 8601 time"),
    dt.timedelta: lambda value, path: dt.timedelta(seconds=_read_float(value, path)),
    uuid.UUID: _text(uuid.UUID, "no UUID"),
    Path: _text(Path, "no path"),
}
