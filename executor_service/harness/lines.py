"""Lines of a stream that comes in chunks, whatever the chunks' borders."""

from collections.abc import Callable
from typing import Final

#: Longest line that is kept: single events of agent CLIs reach hundreds of kilobytes.
LINE_BYTES_MAX: Final = 8 * 1024 * 1024


class Lines:
    """Splits a stream into lines. One longer than `LINE_BYTES_MAX` is skipped and counted: memory is bounded."""

    def __init__(self, on_line: Callable[[bytes], None], bytes_max: int = LINE_BYTES_MAX) -> None:
        self._on_line = on_line
        self._bytes_max = bytes_max
        self._pieces: list[bytes] = []
        self._size = 0
        self.skipped = 0

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the stream."""
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            self._add(piece)
            self._finish()
        self._add(rest)

    def close(self) -> None:
        """The stream has ended: what came after the last line break is a line too."""
        if self._size:
            self._finish()

    def _add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._bytes_max:
            self._pieces.clear()
        elif piece:
            self._pieces.append(piece)

    def _finish(self) -> None:
        line, size = b"".join(self._pieces), self._size
        self._pieces, self._size = [], 0
        if size > self._bytes_max:
            self.skipped += 1
        else:
            self._on_line(line.removesuffix(b"\r"))
