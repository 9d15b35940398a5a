"""What an effect may ask for, field by field: checked at the line that builds it.

The twin, for Python values, of what the API checks of clients' specs (`api/effect_specs.py`), with the same limits.
What passes here can be read as the message that it is stored as, by every reader of the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from scheduler_service.authoring.bounds import NAME_BYTES_MAX
from scheduler_service.authoring.errors import OptionError
from scheduler_service.authoring.values import encode

OUTPUT_BYTES_MAX: Final = 32 << 20
ITEMS_MAX: Final = 1_000

#: Checks a value, given the place where it stands. Raises OptionError.
Check = Callable[[Any, str], None]


def refuse(place: str, wanted: str, value: Any) -> None:
    """Raises OptionError with what was expected in a place, and what was given."""
    shown = repr(value)
    raise OptionError(f"{place}: expected {wanted}, got {shown if len(shown) <= 80 else shown[:77] + '...'}")


def check_text(value: Any, place: str) -> None:
    """Text; how much of it fits is bounded with the spec as a whole."""
    if not isinstance(value, str):
        refuse(place, "text", value)


def check_name(value: Any, place: str) -> None:
    """Text that names something."""
    check_text(value, place)
    if not value or len(value.encode()) > NAME_BYTES_MAX:
        refuse(place, f"1 to {NAME_BYTES_MAX} bytes of text", value)


def check_work(kind: str, name: Any, work: Mapping[str, Any]) -> None:
    """Checks the work of an effect of this kind, and the effect's name. Raises OptionError."""
    fields = _WORK.get(kind)
    if fields is None:
        raise OptionError(f"effect {name!r}: kind {kind!r} is none of {', '.join(_WORK)}")
    check_name(name, f"{kind}: name (label=)")
    encode(name, f"{kind}: name (label=)")
    for field, value in work.items():
        if field not in fields:
            raise OptionError(f"{kind}: unknown field {field!r}; there are: {', '.join(fields)}")
        fields[field](value, f"{kind}: {field}")


def _flag(value: Any, place: str) -> None:
    if not isinstance(value, bool):
        refuse(place, "True or False", value)


def _object(value: Any, place: str) -> None:
    if not isinstance(value, dict):
        refuse(place, "an object (a dict)", value)


def _list(value: Any, place: str) -> None:
    if not isinstance(value, list):
        refuse(place, "a list", value)


def _argv(value: Any, place: str) -> None:
    _list(value, place)
    for index, item in enumerate(value):
        check_text(item, f"{place}[{index}]")
    if not value or not value[0]:
        refuse(place, "a program and its arguments", value)


def _names(value: Any, place: str) -> None:
    _list(value, place)
    if len(value) > ITEMS_MAX:
        raise OptionError(f"{place}: {len(value)} items; at most {ITEMS_MAX}")
    for index, item in enumerate(value):
        check_name(item, f"{place}[{index}]")


def _choices(value: Any, place: str) -> None:
    _names(value, place)
    if len(set(value)) < len(value):
        refuse(place, "distinct names", value)


def _environment(value: Any, place: str) -> None:
    _object(value, place)
    for name, text in value.items():
        if not name or "=" in name:
            raise OptionError(f"{place}: {name!r} is no name of a variable")
        check_text(text, f"{place}[{name!r}]")


def _output_bytes(value: Any, place: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= OUTPUT_BYTES_MAX:
        refuse(place, f"0 to {OUTPUT_BYTES_MAX} bytes", value)


_WORK: Final[Mapping[str, Mapping[str, Check]]] = {
    "shell": {
        "argv": _argv, "command_line": check_text, "cwd": check_text, "env": _environment, "stdin": check_text,
        "check": _flag, "output_bytes_max": _output_bytes,
    },
    "function": {"function": check_name, "args": _list, "kwargs": _object},
    "agent": {
        "harness": check_name, "prompt": check_text, "cwd": check_text, "model": check_name, "env": _environment,
        "output_schema": _object, "options": _object,
    },
    "external": {"prompt": check_text, "choices": _choices, "assignees": _names, "data": _object},
    "run": {"process": check_name, "input": _object},
    "timer": {"fire_at": check_text},
}  # fmt: skip
