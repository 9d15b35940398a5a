"""The JSON schema of an annotation: what an agent is told of the answer that `bb.agent(..., output=...)` reads.

The twin of `decoding.py`: what that reads, this describes. Classes stand under `$defs`, so that they may refer to
themselves. A field with a default is not required; fields that a class does not have are allowed, and skipped by who
reads the answer.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import inspect
import types
import typing
import uuid
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Annotated, Any, Final, Literal, TypeVar, Union

from scheduler_service.authoring.decoding import MAPPINGS, SEQUENCES

_PLAIN: Final[Mapping[Any, Mapping[str, Any]]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    list: {"type": "array"},
    tuple: {"type": "array"},
    dict: {"type": "object"},
    type(None): {"type": "null"},
    dt.datetime: {"type": "string", "format": "date-time"},
    dt.date: {"type": "string", "format": "date"},
    dt.time: {"type": "string", "format": "time"},
    dt.timedelta: {"type": "number", "description": "seconds"},
    uuid.UUID: {"type": "string", "format": "uuid"},
}


def schema_of(annotation: Any) -> dict[str, Any]:
    """The JSON schema (2020-12) of an annotation; empty when any JSON value is read by it."""
    defs: dict[str, Any] = {}
    schema = _schema(annotation, defs)
    return schema | ({"$defs": defs} if defs else {})


def _schema(annotation: Any, defs: dict[str, Any]) -> dict[str, Any]:
    if annotation is None:
        annotation = type(None)
    if isinstance(annotation, TypeVar):
        return _schema(annotation.__bound__ or Any, defs)
    origin = typing.get_origin(annotation)
    if origin is not None:
        return _generic(annotation, origin, defs)
    plain = _PLAIN.get(annotation)
    if plain is not None:
        return dict(plain)
    if isinstance(annotation, type):
        return _class(annotation, defs)
    target = getattr(annotation, "__supertype__", None) or getattr(annotation, "__value__", None)  # NewType, `type X =`
    return {} if target is None else _schema(target, defs)


def _generic(annotation: Any, origin: Any, defs: dict[str, Any]) -> dict[str, Any]:
    arguments = typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(member, defs) for member in arguments]}
    if origin is Literal:
        return {"enum": [choice.value if isinstance(choice, enum.Enum) else choice for choice in arguments]}
    if origin in (Annotated, typing.Required, typing.NotRequired):
        return _schema(arguments[0], defs)
    if origin is tuple:
        return _tuple(arguments, defs)
    if origin in SEQUENCES:
        return {"type": "array", "items": _schema(arguments[0], defs)}
    if origin in MAPPINGS:
        return {"type": "object", "additionalProperties": _schema(arguments[1], defs)}
    return _schema(origin, defs)


def _tuple(members: tuple[Any, ...], defs: dict[str, Any]) -> dict[str, Any]:
    if len(members) == 2 and members[1] is Ellipsis:
        return {"type": "array", "items": _schema(members[0], defs)}
    items = [_schema(member, defs) for member in members]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _class(cls: type, defs: dict[str, Any]) -> dict[str, Any]:
    if issubclass(cls, enum.Enum):
        return {"enum": [member.value for member in cls]}
    if issubclass(cls, PurePath):
        return {"type": "string"}
    if hasattr(cls, "model_json_schema"):
        return _model(cls, defs)
    if typing.is_typeddict(cls):
        hints: Mapping[str, Any] = typing.get_type_hints(cls, include_extras=True)
        return _object(cls, hints, cls.__required_keys__, defs)  # type: ignore[attr-defined]
    if dataclasses.is_dataclass(cls):
        hints = typing.get_type_hints(cls, include_extras=True)
        given = [field for field in dataclasses.fields(cls) if field.init]
        required = (field.name for field in given if _is_required(field))
        return _object(cls, {field.name: hints[field.name] for field in given}, required, defs)
    return {}


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _object(cls: type, hints: Mapping[str, Any], required: Iterable[str], defs: dict[str, Any]) -> dict[str, Any]:
    name = cls.__name__
    while name in defs and defs[name].get("title") != cls.__qualname__:
        name += "_"  # another class of this name
    if name not in defs:
        described: dict[str, Any] = {"title": cls.__qualname__, "type": "object"}
        defs[name] = described  # first, so that the class may refer to itself
        if said := _doc(cls):
            described["description"] = said
        described["properties"] = {field: _schema(hint, defs) for field, hint in hints.items()}
        described["required"] = sorted(required)
    return {"$ref": f"#/$defs/{name}"}


def _doc(cls: type) -> str:
    said = inspect.getdoc(cls) or ""
    return "" if said.startswith(f"{cls.__name__}(") else said  # the one that dataclasses write is only the fields


def _model(cls: Any, defs: dict[str, Any]) -> dict[str, Any]:
    """The schema that a model gives itself; what it refers to comes to stand beside ours."""
    schema: dict[str, Any] = dict(cls.model_json_schema())
    defs |= schema.pop("$defs", {})
    return schema
