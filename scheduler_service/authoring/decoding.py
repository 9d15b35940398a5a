"""Reading JSON values by annotation: inputs of runs, arguments and results of functions, answers of agents.

Understood: JSON types, Optional and unions, Literal, enums, lists, tuples, dicts, dataclasses, TypedDict, dates, times,
timedeltas, paths, UUIDs, and pydantic models when pydantic is installed. Every error names the path of the field.

Of a union the member counts that reads the value exactly, with no field left over; of several the first. When all
members are classes with a Literal field of one name, a tag, that field decides alone. What fits none is told member by
member. `float | int` reads 1 as 1.0: JSON does not tell them apart.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import functools
import inspect
import itertools
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any, Final, Literal, TypeVar, Union

from scheduler_service.authoring.plain import READERS, expect, parse, read_literal, read_object
from scheduler_service.authoring.values import PROBLEMS_MAX, InvalidValue, InvalidValues, Problems, dumps, problems_of

#: Most levels of typed values within each other. What is read as Any may be deeper.
TYPED_DEPTH_MAX: Final = 150


class Unknown(enum.Enum):
    """What becomes of fields that a class does not have."""

    #: They are skipped: a newer function may return more than this process knows.
    SKIPPED = enum.auto()
    #: Dataclasses and TypedDicts refuse them, at any depth; models of pydantic have their own say in it (`extra`).
    REFUSED = enum.auto()
    #: Models refuse them too, and convert nothing: what a member of a union must not need to read a value exactly.
    NOWHERE = enum.auto()


def decode(value: Any, annotation: Any, path: str = "value", *, unknown: Unknown = Unknown.SKIPPED) -> Any:
    """Read a canonical JSON value as `annotation` says. Raises InvalidValue with the path of what does not fit."""
    return _Reading(unknown).read(value, annotation, path)


_UNTYPED: Final = (Any, object, inspect.Parameter.empty, inspect.Signature.empty)
SEQUENCES: Final = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
MAPPINGS: Final = (dict, collections.abc.Mapping, collections.abc.MutableMapping)

#: What a union made of a value: the members, and what was read or is wrong.
_Tried = tuple[Sequence[Any], Any, InvalidValue | None]


class _Reading:
    """One value on its way. Members of unions are tried once for each part of it, however deep unions are nested."""

    def __init__(self, unknown: Unknown, tried: dict[tuple[int, int, Unknown], _Tried] | None = None) -> None:
        self._unknown = unknown
        self._tried: dict[tuple[int, int, Unknown], _Tried] = {} if tried is None else tried
        self._depth = 0

    def read(self, value: Any, annotation: Any, path: str) -> Any:
        if annotation in _UNTYPED:
            return value
        if self._depth >= TYPED_DEPTH_MAX:
            raise InvalidValue(path, f"nested deeper than {TYPED_DEPTH_MAX} levels of typed values")
        self._depth += 1
        try:
            origin = typing.get_origin(annotation)
            if origin is not None:
                return self._generic(value, annotation, origin, path)
            if isinstance(annotation, type):
                return self._class(value, annotation, path)
            return self._special(value, annotation, path)
        finally:
            self._depth -= 1

    def _special(self, value: Any, annotation: Any, path: str) -> Any:
        if annotation is None:
            return expect(value, type(None), "null", path)
        if isinstance(annotation, TypeVar):
            return self.read(value, annotation.__bound__ or Any, path)
        # NewType, `type X =`
        target = getattr(annotation, "__supertype__", None) or getattr(annotation, "__value__", None)
        if target is not None:
            return self.read(value, target, path)
        raise InvalidValue(path, f"annotation {annotation!r} cannot be read from JSON")

    def _generic(self, value: Any, annotation: Any, origin: Any, path: str) -> Any:
        arguments = typing.get_args(annotation)
        if origin in (Union, types.UnionType):
            return self._union(value, arguments, path)
        if origin is Literal:
            return read_literal(value, arguments, path)
        if origin in (Annotated, typing.Required, typing.NotRequired):
            return self.read(value, arguments[0], path)
        if origin is tuple:
            return self._tuple(value, arguments, path)
        if not arguments:  # typing.List without a parameter
            return self.read(value, origin, path)
        if origin in SEQUENCES:
            return self._items(expect(value, list, "a list", path), itertools.repeat(arguments[0]), path)
        if origin in MAPPINGS:
            return self._mapping(read_object(value, path), arguments[0], arguments[1], path)
        return self.read(value, origin, path)  # a generic dataclass or model: its parameters are not checked

    # --- unions ------------------------------------------------------------------------------------------------------

    def _union(self, value: Any, members: tuple[Any, ...], path: str) -> Any:
        if value is None and type(None) in members:
            return None
        if not isinstance(value, dict | list):
            return self._first_that_reads(value, members, path)
        place = (id(value), id(members), self._unknown)
        if place not in self._tried:
            read, wrong = None, None
            try:
                read = self._first_that_reads(value, members, path)
            except InvalidValue as error:
                wrong = error
            self._tried[place] = members, read, wrong
        _members, read, wrong = self._tried[place]
        if wrong is not None:
            raise wrong
        return read

    def _first_that_reads(self, value: Any, members: tuple[Any, ...], path: str) -> Any:
        chosen = [member for member in _by_tag(value, members, path) if member is not type(None)]
        if len(chosen) == 1:
            return self.read(value, chosen[0], path)
        problems: list[InvalidValue] = []
        for unknown in dict.fromkeys((Unknown.NOWHERE, self._unknown)):
            problems.clear()
            for member in chosen:
                try:
                    return self._as(unknown).read(value, member, path)
                except InvalidValue as error:
                    problems += _of_member(member, error, PROBLEMS_MAX // len(chosen))
        raise InvalidValues(problems)

    def _as(self, unknown: Unknown) -> _Reading:
        if unknown is self._unknown:
            return self
        other = _Reading(unknown, self._tried)
        other._depth = self._depth
        return other

    # --- lists and objects -------------------------------------------------------------------------------------------

    def _tuple(self, value: Any, members: tuple[Any, ...], path: str) -> tuple[Any, ...]:
        items = expect(value, list, "a list", path)
        if len(members) == 2 and members[1] is Ellipsis:
            members = (members[0],) * len(items)
        if len(items) != len(members):
            raise InvalidValue(path, f"{len(items)} items, expected {len(members)}")
        return tuple(self._items(items, members, path))

    def _items(self, items: list[Any], annotations: Iterable[Any], path: str) -> list[Any]:
        found = Problems()
        pairs = enumerate(zip(items, annotations, strict=False))
        read = [found.read(self.read, item, annotation, f"{path}[{n}]") for n, (item, annotation) in pairs]
        found.tell()
        return read

    def _mapping(self, stored: Mapping[str, Any], key: Any, item: Any, path: str) -> dict[Any, Any]:
        found = Problems()
        read = {
            found.read(self.read, name, key, f"{path}.{name}"): found.read(self.read, value, item, f"{path}.{name}")
            for name, value in stored.items()
        }
        found.tell()
        return read

    # --- classes -----------------------------------------------------------------------------------------------------

    def _class(self, value: Any, cls: type, path: str) -> Any:
        reader = READERS.get(cls)
        if reader is not None:
            return reader(value, path)
        if issubclass(cls, enum.Enum):
            return parse(cls, value, path, f"no {cls.__name__}")
        if typing.is_typeddict(cls):
            return self._typed_dict(value, cls, path)
        if dataclasses.is_dataclass(cls):
            return self._dataclass(value, cls, path)
        if hasattr(cls, "model_validate"):
            return self._model(value, cls, path)
        if issubclass(cls, PurePath):
            return cls(expect(value, str, "text", path))
        raise InvalidValue(path, f"annotation {cls.__name__} cannot be read from JSON")

    def _dataclass(self, value: Any, cls: type, path: str) -> Any:
        stored, hints, given, found = read_object(value, path), hints_of(cls), {}, Problems()
        fields = dataclasses.fields(cls)
        for field in fields:
            if not field.init:
                continue
            if field.name in stored:
                given[field.name] = found.read(self.read, stored[field.name], hints[field.name], f"{path}.{field.name}")
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                found.add(f"{path}.{field.name}", f"missing; {cls.__name__} requires it")
        self._refuse_unknown(found, stored, cls, [field.name for field in fields], path)
        found.tell()
        try:
            return cls(**given)
        except ValueError as error:  # __post_init__ refused it
            raise InvalidValue(path, str(error)) from error

    def _typed_dict(self, value: Any, cls: Any, path: str) -> dict[str, Any]:
        stored, hints, found = read_object(value, path), hints_of(cls), Problems()
        for name in sorted(cls.__required_keys__ - stored.keys()):
            found.add(f"{path}.{name}", f"missing; {cls.__name__} requires it")
        read = {
            name: found.read(self.read, item, hints.get(name, Any), f"{path}.{name}") for name, item in stored.items()
        }
        self._refuse_unknown(found, stored, cls, hints, path)
        found.tell()
        return read

    def _refuse_unknown(
        self, found: Problems, stored: Mapping[str, Any], cls: type, known: Collection[str], path: str
    ) -> None:
        if self._unknown is Unknown.SKIPPED:
            return
        for name in stored:
            if name not in known:
                found.add(f"{path}.{name}", f"unknown; {cls.__name__} has {', '.join(known) or 'no fields'}")

    def _model(self, value: Any, cls: Any, path: str) -> Any:
        exactly = self._unknown is Unknown.NOWHERE
        try:
            read = cls.model_validate_json(dumps(value), strict=True) if exactly else cls.model_validate(value)
        except ValueError as error:  # pydantic's ValidationError is one, and knows every field
            found = [InvalidValue(path + _below(item["loc"]), item["msg"]) for item in getattr(error, "errors", list)()]
            raise InvalidValues(found or [InvalidValue(path, str(error))]) from error
        if exactly and len(read.model_fields_set) < len(value):
            raise InvalidValue(path, f"{cls.__name__} leaves some of its fields out")
        return read


@functools.cache
def hints_of(cls: type) -> Mapping[str, Any]:
    """Annotations of the fields of a class, resolved."""
    return typing.get_type_hints(cls, include_extras=True)


def _by_tag(value: Any, members: tuple[Any, ...], path: str) -> Sequence[Any]:
    """The members that the tag of a value chooses; all when there is no tag. Raises InvalidValue for an unknown one."""
    classes = tuple(member for member in members if member is not type(None))
    tag = _tag_of(classes) if isinstance(value, dict) and all(isinstance(cls, type) for cls in classes) else ""
    if not tag or tag not in value:
        return members
    choices = {cls: typing.get_args(hints_of(cls)[tag]) for cls in classes}
    said = read_literal(value[tag], tuple(itertools.chain.from_iterable(choices.values())), f"{path}.{tag}")
    return [cls for cls in classes if said in choices[cls]]


@functools.cache
def _tag_of(classes: tuple[type, ...]) -> str:
    """The first field that is a Literal in all of these classes; empty when there is none."""
    if not all(dataclasses.is_dataclass(c) or typing.is_typeddict(c) or hasattr(c, "model_validate") for c in classes):
        return ""
    hints = [hints_of(cls) for cls in classes]
    literals = ({name for name, hint in of.items() if typing.get_origin(hint) is Literal} for of in hints)
    common = set.intersection(*literals)
    return next((name for name in hints[0] if name in common), "")


def _of_member(member: Any, error: InvalidValue, most: int) -> list[InvalidValue]:
    name = member.__name__ if isinstance(member, type) and not typing.get_args(member) else str(member)
    said = problems_of(error)[: max(1, most)]
    return [InvalidValue(one.path, f"as {name.removeprefix('typing.')}: {one.problem}") for one in said]


def _below(places: Iterable[str | int]) -> str:
    """The path of a place below another: `.items[0].name`."""
    return "".join(f"[{place}]" if isinstance(place, int) else f".{place}" for place in places)
