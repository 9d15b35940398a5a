"""Random protobuf messages: from what a careful client would send to what only an attacker would.

Each message has a mood, the share of its fields that are hostile. Calm ones get past the checks, so that what lies
behind is attacked too; wild ones are nothing but edges. `wire` sends some of them damaged.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Value

Known = Mapping[str, Sequence[Any]]

_MOODS: Final = (0.0, 0.0, 0.02, 0.1, 0.5, 1.0)
_DEPTH_MAX: Final = 6
_TEXTS: Final = (
    "", "\x00", "a\x00b", "a" * 257, "é" * 200, "x" * 5000, "../..", "%s%n", "'; DROP TABLE runs --", "\U0001f600",
    "\n", "\ufeff", "\u202e", "null", "NaN", "-1", "0" * 40, "ffffffff-ffff-ffff-ffff-ffffffffffff", " ", "{}",
    "default\n", "00000000-0000-0000-0000-000000000000", "01890a5d-ac96-774b-bcce-b302099a8057", "ǅ", "\ud7ff",
    "\uffff",
)  # fmt: skip
_INTS: Final = (0, 1, -1, 2, 7, 100, 1000, 1001, 2**31 - 1, -(2**31))
_WIDE: Final = (*_INTS, 2**31, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 253_402_300_799, 253_402_300_800, -62_135_596_801)
_FLOATS: Final = (0.0, -0.0, 1.5, -1.0, 1e308, 5e-324, math.nan, math.inf, -math.inf, 2.0**63)
_C = FieldDescriptor


def _as_it_is(_message: Message) -> None: ...


class Generator:
    """Makes messages.

    `known` says which values are likely by field name: ids of what exists. `shapes` has likely messages by type.
    """

    def __init__(self, draw: random.Random, known: Known, shapes: Mapping[str, Sequence[Message]]) -> None:
        self.draw = draw
        self.known = known
        self._shapes = shapes
        self._mood = 0.0

    def message(self, kind: Descriptor, only: str = "") -> Message:
        """A message of a type, in a mood of its own; `only`: with just this field."""
        self._mood = self.draw.choice(_MOODS)
        if not only:
            return self._message(kind, 0)
        message = GetMessageClass(kind)()
        self._put(message, kind.fields_by_name[only], 0)
        return message

    def wire(self, kind: Descriptor, only: str = "", finish: Callable[[Message], None] = _as_it_is) -> bytes:
        """A message as bytes; one in fifty is damaged."""
        message = self.message(kind, only)
        finish(message)
        raw = bytes(message.SerializePartialToString())
        return self._damaged(raw) if self.draw.random() < 0.02 else raw

    def _message(self, kind: Descriptor, depth: int) -> Message:
        message = GetMessageClass(kind)()
        if kind.full_name in self._shapes and not self._hostile():
            message.CopyFrom(self.draw.choice(self._shapes[kind.full_name]))
            return message
        if kind.full_name.startswith("google.protobuf.") and self._hostile():
            return self._well_known(message)
        for field in kind.fields:
            if depth < _DEPTH_MAX and self.draw.random() < self._likelihood(field):
                self._put(message, field, depth)
        return message

    def _likelihood(self, field: FieldDescriptor) -> float:
        if field.name in self.known:
            return 0.15 if field.containing_oneof is not None and field.containing_oneof.name == "work" else 0.85
        return 0.5 if self._mood > 0.3 else 0.08

    def _put(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        target, kind = getattr(message, field.name), field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            self._put_entries(target, kind, depth)
        elif kind is not None and field.is_repeated:
            for _ in range(self._length()):
                target.add().CopyFrom(self._message(kind, depth + 1))
        elif kind is not None:
            target.SetInParent()
            target.CopyFrom(self._message(kind, depth + 1))
        elif field.is_repeated:
            target.extend(self._scalar(field) for _ in range(self._length()))
        else:
            setattr(message, field.name, self._scalar(field))

    def _put_entries(self, target: Any, entry: Descriptor, depth: int) -> None:
        value = entry.fields_by_name["value"]
        for _ in range(self._length()):
            key = self._text("map_key")
            if value.message_type is None:
                target[key] = self._scalar(value)
            else:
                target[key].CopyFrom(self._message(value.message_type, depth + 1))

    def _length(self) -> int:
        if self._hostile() and self.draw.random() < 0.02:
            return self.draw.choice((33, 101, 1001))
        return self.draw.randint(0, 3)

    def _scalar(self, field: FieldDescriptor) -> Any:
        if field.cpp_type == _C.CPPTYPE_STRING:
            return self._bytes() if field.type == _C.TYPE_BYTES else self._text(field.name)
        if field.name in self.known and not self._hostile():
            return self.draw.choice(self.known[field.name])
        if field.cpp_type == _C.CPPTYPE_BOOL:
            return self.draw.random() < 0.5
        if field.cpp_type == _C.CPPTYPE_ENUM:
            return self._enum(field)
        if field.cpp_type in (_C.CPPTYPE_DOUBLE, _C.CPPTYPE_FLOAT):
            return self.draw.choice(_FLOATS) if self._hostile() else self.draw.uniform(0, 100)
        return self._integer(field)

    def _enum(self, field: FieldDescriptor) -> int:
        assert field.enum_type is not None
        known = [value.number for value in field.enum_type.values]
        return self.draw.choice((-1, 99, 2**31 - 1, -(2**31))) if self._hostile() else self.draw.choice(known)

    def _integer(self, field: FieldDescriptor) -> int:
        if not self._hostile():
            return self.draw.randint(0, 3)
        unsigned = field.cpp_type in (_C.CPPTYPE_UINT32, _C.CPPTYPE_UINT64)
        wide = field.cpp_type in (_C.CPPTYPE_INT64, _C.CPPTYPE_UINT64)
        value = self.draw.choice(_WIDE if wide else _INTS)
        return abs(value) if unsigned else value

    def _text(self, name: str) -> str:
        likely = self.known.get(name)
        if likely and not self._hostile():
            return str(self.draw.choice(likely))
        if self._mood == 0.0 and not likely:
            return self.draw.choice(("a", "b", "c"))
        if self.draw.random() < 0.3:
            others = self.known[self.draw.choice(list(self.known))]
            return str(self.draw.choice(others)) if others else ""
        if self.draw.random() < 0.002:
            return "y" * self.draw.choice((1 << 20, (1 << 20) + 1, 5 << 20))
        return self.draw.choice(_TEXTS)

    def _bytes(self) -> bytes:
        return self.draw.choice((b"", b"{}", b"[1", b"\x00\xff", b"null", b'{"a": 1e999}', self.draw.randbytes(16)))

    def _hostile(self) -> bool:
        return self.draw.random() < self._mood

    def _well_known(self, message: Message) -> Message:
        """Times and durations out of range, structures deep and odd."""
        made: Any = message
        match message.DESCRIPTOR.name:
            case "Duration" | "Timestamp":
                made.seconds = self.draw.choice(_WIDE)
                made.nanos = self.draw.choice((*_INTS, 999_999_999, 1_000_000_000, -1_000_000_000))
            case "Struct":
                made.fields[self.draw.choice(_TEXTS)].CopyFrom(self._value(self.draw.choice((1, 3, 20, 45))))
            case "Value":
                made.CopyFrom(self._value(self.draw.choice((0, 3, 20, 45))))
            case "ListValue":
                made.values.add().CopyFrom(self._value(self.draw.choice((1, 20, 45))))
        return message

    def _value(self, depth: int) -> Any:
        value = Value()
        if depth > 0:
            if self.draw.random() < 0.5:
                value.list_value.values.add().CopyFrom(self._value(depth - 1))
            else:
                value.struct_value.fields[self.draw.choice(_TEXTS)].CopyFrom(self._value(depth - 1))
            return value
        match self.draw.randint(0, 4):
            case 0:
                value.number_value = self.draw.choice(_FLOATS)
            case 1:
                value.string_value = self.draw.choice(_TEXTS)
            case 2:
                value.bool_value = True
            case 3:
                value.null_value = 99  # type: ignore[assignment]
        return value

    def _damaged(self, raw: bytes) -> bytes:
        match self.draw.randint(0, 4):
            case 0:
                return raw[: self.draw.randint(0, len(raw))]
            case 1:
                return raw + self.draw.randbytes(self.draw.randint(1, 30))
            case 2:
                return raw.replace(b"a", b"\xff", 1) + b"\x0a\x02\xc3\x28"  # a first field that is no UTF-8
            case 3:
                return _nested(self.draw.choice((99, 101, 5000)))
            case _:
                at = self.draw.randint(0, max(0, len(raw) - 1))
                return raw[:at] + self.draw.randbytes(1) + raw[at + 1 :]


def _nested(depth: int) -> bytes:
    """Bytes that are a field 4 (an input, a value, effects) nested as deep as no parser likes."""
    raw = b""
    for _ in range(depth):
        raw = b"\x22" + _varint(len(raw)) + raw
    return raw


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
