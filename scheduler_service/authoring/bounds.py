"""How much process code may write, in one place: checked at the line that writes it, so the same live and on replay.

What may be larger stands elsewhere: effects write files or return results, of which a run is given references.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from scheduler_service.authoring.values import InvalidValue, TooLarge, dumps, encode


@dataclass(frozen=True, slots=True)
class Bound:
    """Most bytes of a value as JSON in UTF-8, and what to do with one that is larger.

    `in_rows`: the value is part of a row of the journal, which is sent in one message. False: a large one is a blob.
    """

    bytes_max: int
    instead: str
    in_rows: bool = True


#: Most bytes of a value in a row as a protobuf message: clients in Go, Java and JavaScript take 4 MiB by default,
#: and lists of small numbers are five times as long there as they are as JSON.
MESSAGE_BYTES_MAX: Final = 3 << 20
_GROWTH_MAX: Final = 6


_FILE: Final = "let an effect write it to a file and give the path"

REPORT: Final = Bound(64 << 10, _FILE)
LOG_FIELDS: Final = Bound(64 << 10, _FILE)
FAIL_DATA: Final = Bound(64 << 10, _FILE)
NEXT_INPUT: Final = Bound(1 << 20, f"{_FILE} to the next run")
RESULT: Final = Bound(16 << 20, f"{_FILE} as the result", in_rows=False)
SPEC: Final = Bound(1 << 20, "pass a path or a reference instead")
#: Reasons of cancels and halts, labels of reports: what people read in one line.
TEXT: Final = Bound(1 << 10, "say it shorter, and the rest with ctx.log")

NAME_BYTES_MAX: Final = 256
LABELS_MAX: Final = 32
LABEL_NAME_BYTES_MAX: Final = 63
LABEL_VALUE_BYTES_MAX: Final = 255

#: What process code writes -> its bound, for people.
BOUNDS: Final[Mapping[str, Bound]] = {
    "spec of an effect, with its arguments": SPEC,
    "`ctx.report(data=)`": REPORT,
    "`ctx.report(label=)`, `ctx.halt(reason)`, `handle.cancel(reason)`": TEXT,
    "fields of `ctx.log`": LOG_FIELDS,
    "`bb.Fail(data=)`": FAIL_DATA,
    "input of `ctx.continue_as_new`": NEXT_INPUT,
    "result of a process": RESULT,
}


def bounded(value: object, path: str, bound: Bound) -> Any:
    """The canonical JSON value. Raises InvalidValue, and TooLarge of one beyond its bound."""
    return within(encode(value, path), path, bound)


def within(canonical: Any, path: str, bound: Bound) -> Any:
    """The value, which is canonical already. Raises TooLarge."""
    size = len(dumps(canonical))
    if size > bound.bytes_max:
        raise TooLarge(path, size, bound.bytes_max, bound.instead)
    if bound.in_rows and (sent := sent_bytes(canonical, size)) > MESSAGE_BYTES_MAX:
        raise TooLarge(path, sent, MESSAGE_BYTES_MAX, f"as a message, where a number takes 11 bytes; {bound.instead}")
    return canonical


def sent_bytes(canonical: Any, json_bytes: int) -> int:
    """Bytes of a canonical JSON value as a protobuf message, at most; 0 of one whose size as JSON says that it fits."""
    return _sent(canonical) if json_bytes * _GROWTH_MAX > MESSAGE_BYTES_MAX else 0


def _sent(value: Any) -> int:
    match value:
        case str():
            return _field(len(value.encode()))
        case list():
            return _field(sum(_field(_sent(item)) for item in value))
        case dict():
            return _field(sum(_field(_field(len(key.encode())) + _field(_sent(item))) for key, item in value.items()))
        case _:
            return 9  # a number; less for true, false and null


def _field(size: int) -> int:
    """A tag, a length and so many bytes."""
    return 2 + max(0, size.bit_length() - 1) // 7 + size


def bounded_object(value: object, path: str, bound: Bound) -> Any:
    """The same of what must be an object, such as the data of a report. Raises InvalidValue, TooLarge."""
    if not isinstance(value, Mapping):
        raise InvalidValue(path, f"{type(value).__name__} given, where an object (a dict) is expected")
    return bounded(value, path, bound)


def bounded_text(value: object, path: str, bound: Bound = TEXT) -> str:
    """The text. Raises InvalidValue when it is none, or holds what cannot be stored; TooLarge beyond the bound."""
    if not isinstance(value, str):
        raise InvalidValue(path, f"{type(value).__name__} given, where text is expected")
    text: str = encode(value, path)
    size = len(text.encode())
    if size > bound.bytes_max:
        raise TooLarge(path, size, bound.bytes_max, bound.instead)
    return text
