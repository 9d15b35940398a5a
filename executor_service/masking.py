"""Keeps secrets out of what is recorded and shown: each place where the value of one stands becomes `***`.

What is known of a secret is its value: as it stands, as JSON writes it, and line by line when it has several. What a
program made of it (encoded, reversed, cut in pieces that are shorter than a line) is not found. Which variables of a
child are secret their names say (`sensitive`): that of a provider's key, and what else the executor lets through.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import unquote

import orjson

MASK: Final = b"***"
#: Shorter values are no secrets: they stand everywhere.
BYTES_MIN: Final = 8
_NOTHING: Final = re.compile(rb"(?!)")

#: Names of variables whose values are secrets.
_SECRET_NAME: Final = re.compile(
    r"(?:KEY|TOKEN|DSN|DATABASE_URL)$|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL", re.IGNORECASE
)
#: Passwords in other values: `scheme://user:password@host`, and `password=...` of connection strings.
_PASSWORDS: Final = (
    re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/@:]*:([^\s/]+)@"),
    re.compile(r"\bpass(?:word|wd)?\s*=\s*('(?:[^'\\]|\\.)+'|[^\s&;']+)", re.IGNORECASE),
)


class Masks:
    """The secrets of one attempt. False while there are none, and then everything stays as it is."""

    def __init__(self) -> None:
        self._needles: tuple[bytes, ...] = ()
        self._pattern = _NOTHING

    def __bool__(self) -> bool:
        return bool(self._needles)

    def add(self, values: Iterable[str]) -> None:
        """More of them. Parts shorter than `BYTES_MIN` are left out."""
        found = {needle for value in values for needle in _forms(value) if len(needle) >= BYTES_MIN}
        # the longest first: one may be the beginning of another
        self._needles = tuple(sorted({*self._needles, *found}, key=lambda needle: (-len(needle), needle)))
        self._pattern = re.compile(b"|".join(map(re.escape, self._needles))) if self._needles else _NOTHING

    def data(self, data: bytes) -> bytes:
        """Bytes that stand for themselves."""
        return self._pattern.sub(MASK, data) if self._needles else data

    def text(self, text: str) -> str:
        """A text."""
        if not self._needles:
            return text
        raw = text.encode("utf-8", "surrogatepass")
        masked = self._pattern.sub(MASK, raw)
        return text if masked == raw else masked.decode("utf-8", "replace")

    def json(self, value: Any) -> Any:
        """A JSON value, names and numbers included."""
        if not self._needles or value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(name): self.json(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.json(item) for item in value]
        shown = str(value)
        return value if self.text(shown) == shown else MASK.decode()

    def message(self, value: Any) -> Any:
        """A message of ours as JSON: the texts in it. Its names are fixed, and its numbers must stay numbers."""
        if not self._needles:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {name: self.message(item) for name, item in value.items()}
        return [self.message(item) for item in value] if isinstance(value, list) else value

    def encoded(self, encoded: bytes) -> bytes:
        """JSON text: parsed only when there is something in it."""
        if self._pattern.search(encoded) is None:
            return encoded
        return orjson.dumps(self.json(orjson.loads(encoded)), option=orjson.OPT_SORT_KEYS)

    def stream(self) -> "Stream":
        """A stream that comes in pieces."""
        return Stream(self)

    def cut(self, data: bytes) -> int:
        """How much of a piece is decided: what follows may be the beginning of a secret, or overlaps what may be."""
        at = min((_beginning(data, needle) for needle in self._needles), default=len(data))
        for match in self._pattern.finditer(data):
            if match.start() < at < match.end():
                return match.start()
        return at


class Stream:
    """Masks a stream, whatever the borders of its pieces. What may be the beginning of a secret is held back."""

    def __init__(self, masks: Masks) -> None:
        self._masks = masks
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Takes the next bytes; returns what is decided."""
        if not self._masks:
            return data
        data = self._held + data
        at = self._masks.cut(data)
        self._held = data[at:]
        return self._masks.data(data[:at])

    def close(self) -> bytes:
        """The stream has ended: the rest."""
        rest, self._held = self._held, b""
        return self._masks.data(rest)


def sensitive(env: Mapping[str, str]) -> Iterable[str]:
    """What of the variables of a child is secret. The path of a file that is there is none: what is in it may be."""
    for name, value in env.items():
        if _SECRET_NAME.search(name) and not (value.startswith("/") and os.path.exists(value)):  # noqa: PTH110 - may hold NUL
            yield value
        for pattern in _PASSWORDS:
            for password in pattern.findall(value):
                yield from (password, password.strip("'"), unquote(password))


def _forms(value: str) -> Iterable[bytes]:
    for part in (value, *(line.strip() for line in value.splitlines())):
        yield part.encode("utf-8", "surrogateescape")
        yield orjson.dumps(part.encode("utf-8", "replace").decode())[1:-1]


def _beginning(data: bytes, needle: bytes) -> int:
    """Where the end of the data may be the beginning of the needle, the earliest place; its length: nowhere."""
    at = max(0, len(data) - len(needle) + 1)
    while (at := data.find(needle[:1], at)) >= 0:
        if needle.startswith(data[at:]):
            return at
        at += 1
    return len(data)
