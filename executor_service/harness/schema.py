"""Does an answer fit the JSON schema that was asked for?

Checked are the keywords that say what shape a value has: type, enum, const, properties, required,
additionalProperties, items, prefixItems, anyOf, oneOf, allOf and $ref within the schema. Other keywords (formats,
patterns, bounds) are left to who reads the answer, as a schema's `format` is by most.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

#: Schemas within schemas, and values within values, that are followed.
_DEPTH_MAX: Final = 100
#: Pairs of a value and a schema that are looked at: of alternatives within alternatives there are soon too many.
_STEPS_MAX: Final = 200_000

_TYPES: Final[Mapping[str, Callable[[Any], bool]]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: _TYPES["number"](value) and (isinstance(value, int) or value.is_integer()),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def violation(value: Any, schema: Mapping[str, Any]) -> str:
    """What of a JSON value does not fit the schema, with its path; empty when it fits."""
    check = _Check(schema)
    said = check.find(value, schema, "answer", 0)
    return "answer has more alternatives than can be checked" if check.steps > _STEPS_MAX else said


class _Check:
    """Checks values against one schema, which its references point into."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self.steps = 0

    def find(self, value: Any, schema: Any, path: str, depth: int) -> str:
        """The first violation, or nothing."""
        if schema is False:
            return f"{path} must not be there"
        if not isinstance(schema, dict):
            return ""
        self.steps += 1
        if depth > _DEPTH_MAX or self.steps > _STEPS_MAX:
            return f"{path} is nested too deeply"
        for keyword in (self._reference, self._type, self._choice, self._combined, self._object, self._array):
            if problem := keyword(value, schema, path, depth):
                return problem
        return ""

    def _reference(self, value: Any, schema: Mapping[str, Any], path: str, depth: int) -> str:
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return ""
        if not reference.startswith("#"):
            return f"{path}: the schema's $ref {reference!r} points outside of it"
        target: Any = self._root
        for part in reference[1:].split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or name not in target:
                return f"{path}: the schema's $ref {reference!r} points to nothing"
            target = target[name]
        return self.find(value, target, path, depth + 1)

    def _type(self, value: Any, schema: Mapping[str, Any], path: str, _depth: int) -> str:
        asked = schema.get("type")
        names = [asked] if isinstance(asked, str) else asked
        if not names or any(_TYPES.get(name, _anything)(value) for name in names):
            return ""
        return f"{path} is {_described(value)}, not {' or '.join(names)}"

    def _choice(self, value: Any, schema: Mapping[str, Any], path: str, _depth: int) -> str:
        choices = [schema["const"]] if "const" in schema else schema.get("enum")
        if choices is None or any(_same(value, choice) for choice in choices):
            return ""
        return f"{path} is none of {', '.join(map(repr, choices))}"

    def _combined(self, value: Any, schema: Mapping[str, Any], path: str, depth: int) -> str:
        for part in schema.get("allOf", ()):
            if problem := self.find(value, part, path, depth + 1):
                return problem
        if "oneOf" in schema:
            fitting = sum(not self.find(value, part, path, depth + 1) for part in schema["oneOf"])
            return "" if fitting == 1 else f"{path} fits {fitting} of the alternatives, not one"
        problems = [self.find(value, part, path, depth + 1) for part in schema.get("anyOf", ())]
        return "" if not all(problems) else next(iter(problems), "")

    def _object(self, value: Any, schema: Mapping[str, Any], path: str, depth: int) -> str:
        if not isinstance(value, dict):
            return ""
        for name in schema.get("required", ()):
            if name not in value:
                return f"{path}.{name} is missing"
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name, item in value.items():
            if problem := self.find(item, known.get(name, others), f"{path}.{name}", depth + 1):
                return problem
        return ""

    def _array(self, value: Any, schema: Mapping[str, Any], path: str, depth: int) -> str:
        if not isinstance(value, list):
            return ""
        first = schema.get("prefixItems", [])
        for index, item in enumerate(value):
            part = first[index] if index < len(first) else schema.get("items", True)
            if problem := self.find(item, part, f"{path}[{index}]", depth + 1):
                return problem
        return ""


def _anything(_value: Any) -> bool:
    return True


def _same(value: Any, choice: Any) -> bool:
    return bool(value == choice) and isinstance(value, bool) == isinstance(choice, bool)  # True is not 1


def _described(value: Any) -> str:
    return next(name for name, fits in _TYPES.items() if fits(value))
