"""A terminal's screen, as far as our own commands drive one. What they should never write is an error here."""

import re
from codecs import getincrementaldecoder
from typing import Final

_TOKEN: Final = re.compile(
    r"\x1b\[(?P<arguments>[0-9;?]*)(?P<final>[A-Za-z])|(?P<control>[\x00-\x1f\x7f])|(?P<text>[^\x00-\x1f\x7f]+)"
)
_PARTIAL: Final = re.compile(r"\x1b(\[[0-9;?]*)?\Z")


class Screen:
    """Lines that grow without end; as wide as the terminal. `feed` takes bytes as they come."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.coloured = False
        self._lines: list[str] = [""]
        self._row = self._column = 0
        self._rest = ""
        self._decode = getincrementaldecoder("utf-8")().decode

    @property
    def text(self) -> str:
        """What one would see, with all that scrolled away above it."""
        return "\n".join(line.rstrip() for line in self._lines).rstrip()

    def feed(self, data: bytes) -> None:
        """Take more of the output. Raises ValueError for what is neither text nor one of the few sequences known."""
        text = self._rest + self._decode(data)
        partial = _PARTIAL.search(text)
        self._rest = partial[0] if partial else ""
        text, place = text[: len(text) - len(self._rest)], 0
        while place < len(text):
            token = _TOKEN.match(text, place)
            if token is None:
                raise ValueError(f"no terminal should get {text[place : place + 20]!r}")
            self._take(token)
            place = token.end()

    def _take(self, token: re.Match[str]) -> None:
        if token["text"]:
            for character in token["text"]:
                self._put(character)
        elif token["control"] == "\r":
            self._column = 0
        elif token["control"] == "\n":
            self._down()
        elif token["control"]:
            raise ValueError(f"no terminal should get {token['control']!r}")
        else:
            self._sequence(token["final"], token["arguments"])

    def _sequence(self, final: str, arguments: str) -> None:
        if final == "m":
            self.coloured = True
        elif final == "A":
            self._row = max(self._row - int(arguments or 1), 0)
        elif (final, arguments) == ("K", "2"):
            self._lines[self._row] = ""
        elif (final, arguments) not in (("l", "?25"), ("h", "?25")):  # the cursor is hidden, and shown again
            raise ValueError(f"no terminal should get ESC[{arguments}{final}")

    def _put(self, character: str) -> None:
        if self._column == self.columns:
            self._column = 0
            self._down()
        line = self._lines[self._row].ljust(self._column)
        self._lines[self._row] = line[: self._column] + character + line[self._column + 1 :]
        self._column += 1

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self._lines):
            self._lines.append("")
