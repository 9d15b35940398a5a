"""Is what was given as the JSON schema of an answer one? Asked before an agent runs, not when its answer is there.

Checked is the shape of the keywords that executors check answers against (`executor_service/harness/schema.py`); what
passes here is one that an answer can fit or not. Other keywords are left alone.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

#: A field's path, and what is wrong with it.
Problem = tuple[str, str]

PROBLEMS_MAX: Final = 20
_TYPES: Final = ("null", "boolean", "integer", "number", "string", "array", "object")


def schema_problems(schema: Any, path: str) -> list[Problem]:
    """What is wrong with a schema, canonical JSON that stands at `path`; at most PROBLEMS_MAX problems."""
    if not isinstance(schema, dict):
        return [(path, "must be a schema: an object")]
    return list(islice(_Shape(schema).of(schema, path), PROBLEMS_MAX))


class _Shape:
    """Checks one schema, which its references point into."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._seen: set[int] = set()  # ids of what was checked: references may come back to it
        # Definitions first, so that what is wrong with one is told at its own place.
        self._keywords: Mapping[str, Callable[[Any, str], Iterator[Problem]]] = {
            "$defs": self._named, "definitions": self._named, "$ref": self._reference, "type": _type, "enum": _enum,
            "properties": self._named, "required": _required, "additionalProperties": self.of, "items": self.of,
            "prefixItems": self._list, "anyOf": self._some, "oneOf": self._some, "allOf": self._some,
        }  # fmt: skip

    def of(self, schema: Any, path: str) -> Iterator[Problem]:
        """The problems of a schema within the schema."""
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            yield path, "must be a schema: an object, true or false"
            return
        if id(schema) in self._seen:
            return
        self._seen.add(id(schema))
        for keyword, check in self._keywords.items():
            if keyword in schema:
                yield from check(schema[keyword], f"{path}.{keyword}")

    def _named(self, value: Any, path: str) -> Iterator[Problem]:
        if not isinstance(value, dict):
            yield path, "must be an object of schemas"
            return
        for name, schema in value.items():
            yield from self.of(schema, f"{path}.{name}")

    def _some(self, value: Any, path: str) -> Iterator[Problem]:
        if value == []:
            yield path, "must hold at least one schema"
        yield from self._list(value, path)

    def _list(self, value: Any, path: str) -> Iterator[Problem]:
        if not isinstance(value, list):
            yield path, "must be a list of schemas"
            return
        for index, schema in enumerate(value):
            yield from self.of(schema, f"{path}[{index}]")

    def _reference(self, value: Any, path: str) -> Iterator[Problem]:
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            yield path, "must be text that points into this schema, as #/$defs/Name"
            return
        target = self._target(value)
        if not isinstance(target, (dict, bool)):
            yield path, f"{value!r} points to no schema in this one"
        elif self._comes_back(value):
            yield path, f"{value!r} points to nothing but itself"
        else:
            yield from self.of(target, path)

    def _comes_back(self, reference: str) -> bool:
        followed: set[str] = set()
        while reference not in followed:
            followed.add(reference)
            target = self._target(reference)
            following = target.get("$ref") if isinstance(target, dict) else None
            if not isinstance(following, str):
                return False
            reference = following
        return True

    def _target(self, reference: str) -> Any:
        target: Any = self._root
        for part in reference[1:].split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            target = target.get(name) if isinstance(target, dict) else None
        return target


def _type(value: Any, path: str) -> Iterator[Problem]:
    names = value if isinstance(value, list) else [value]
    if not names or any(name not in _TYPES for name in names):
        yield path, f"must be one of {', '.join(_TYPES)}, or a list of them"


def _enum(value: Any, path: str) -> Iterator[Problem]:
    if not isinstance(value, list) or not value:
        yield path, "must be a list of values, with at least one"


def _required(value: Any, path: str) -> Iterator[Problem]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        yield path, "must be a list of names"
