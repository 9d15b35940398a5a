"""Names as people give them: runs, effects, inputs. Pure: nothing here asks the service."""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from scheduler_service.cli.errors import UsageProblem

KEY_PREFIX: Final = "key:"
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_PREFIX: Final = re.compile(r"[0-9a-f-]{6,35}", re.IGNORECASE)


def is_uuid(name: str) -> bool:
    """True for a whole id."""
    return _UUID.fullmatch(name) is not None


def is_prefix(name: str) -> bool:
    """True for what may be the beginning or the end of an id."""
    return _PREFIX.fullmatch(name) is not None


def effect_candidates(name: str) -> list[tuple[str, str]]:
    """The ways to read `name` as RUN/KEY: many only for `key:` names, whose run part can hold a slash."""
    if not name.startswith(KEY_PREFIX):
        run, _, key = name.partition("/")
        return [(run, key)] if run and key else []
    cuts = [match.start() for match in re.finditer("/", name)]
    return [(name[:cut], name[cut + 1 :]) for cut in cuts if name[cut + 1 :] and name[:cut] != KEY_PREFIX]


def read_input(source: str | None, pairs: Iterable[str]) -> dict[str, Any]:
    """The input object: `--input` (JSON, @file or - for stdin), then key=value pairs on top of it."""
    given = {} if source is None else _read_object(source)
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageProblem(f"{pair!r} is not KEY=VALUE", "give inputs as name=value; values are JSON, else text")
        given[name] = lenient_value(value)
    return given


def read_value(text: str) -> Any:
    """A JSON value; raises UsageProblem that says where it breaks."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageProblem(
            f"not JSON: {error.msg} at column {error.colno} of line {error.lineno}",
            "text needs quotes: '\"like this\"'",
        ) from error


def read_labels(pairs: Iterable[str]) -> dict[str, str]:
    """Labels from `name=value` pairs."""
    labels = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageProblem(f"label {pair!r} is not NAME=VALUE")
        labels[name] = value
    return labels


def _read_object(source: str) -> dict[str, Any]:
    value = read_value(read_text(source))
    if not isinstance(value, dict):
        raise UsageProblem(
            f"the input is a JSON {_kind(value)}, not an object", "name the parameters: '{\"name\": value}'"
        )
    return value


def read_text(source: str) -> str:
    """The text itself, that of `@FILE`, or for `-` what stdin has."""
    if source == "-":
        return sys.stdin.read()
    if not source.startswith("@"):
        return source
    try:
        return Path(source[1:]).read_text()
    except OSError as error:
        raise UsageProblem(f"cannot read {source[1:]}: {error.strerror}") from error


def lenient_value(text: str) -> Any:
    """JSON where it parses as JSON, else text: 3 and true are what they look like, main is text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _kind(value: Any) -> str:
    return {list: "array", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")
