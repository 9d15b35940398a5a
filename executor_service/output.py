"""Captured output of an attempt: offsets, bounds, head and tail. One Capture for each stream.

What is kept is at most `bytes_max`: the first half and the last half of it, at their true offsets. The gap between is
the mark of truncation: it shows in the offsets of the stored chunks, and as `omitted_bytes` in the result. The head
goes to the journal while the child runs, the tail when it ends. Memory is bounded by `bytes_max`, so that a child
which floods its stdout is never held up and holds up nobody.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from executor_service.outcome import TEXT_BYTES_MAX, tail_text

STDOUT: Final = 1
STDERR: Final = 2
#: Not written by the child: what an agent said and did, by the harness. See transcript.py.
TRANSCRIPT: Final = 3
#: The streams of a child, as results name them.
NAMES: Final = {STDOUT: "stdout", STDERR: "stderr"}
#: Most bytes of one stored chunk.
CHUNK_BYTES_MAX: Final = 64 * 1024


class Capture:
    """One output stream of one attempt."""

    __slots__ = ("_head", "_head_max", "_sent", "_tail", "_tail_bytes", "_tail_max", "stream", "total")

    def __init__(self, stream: int, bytes_max: int) -> None:
        self.stream = stream
        self.total = 0
        self._head_max = bytes_max - bytes_max // 2
        self._tail_max = bytes_max // 2
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._sent = 0

    def write(self, data: bytes) -> int:
        """Takes the next bytes; returns the offset of their first one."""
        offset = self.total
        self.total += len(data)
        room = self._head_max - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._write_tail(data)
        return offset

    @property
    def omitted(self) -> int:
        """Bytes left out between head and tail."""
        return self.total - len(self._head) - self._tail_bytes

    @property
    def unsent(self) -> bool:
        """True when the journal does not have the whole head yet."""
        return self._sent < len(self._head)

    def take(self, bytes_max: int) -> tuple[int, bytes] | None:
        """The next piece of the head for the journal, with its offset; None when all of it was taken."""
        if not self.unsent:
            return None
        start = self._sent
        piece = bytes(self._head[start : start + bytes_max])
        self._sent += len(piece)
        return start, piece

    def take_tail(self) -> Iterator[tuple[int, bytes]]:
        """The tail for the journal, with offsets. Once, when the stream has ended."""
        offset = self.total - self._tail_bytes
        data = b"".join(self._tail)
        for start in range(0, len(data), CHUNK_BYTES_MAX):
            yield offset + start, data[start : start + CHUNK_BYTES_MAX]

    def tail(self) -> str:
        """The last of it as text, at most 8 KiB."""
        # Some bytes more than are shown, so that a character cut at the border can be told from invalid UTF-8.
        wanted = TEXT_BYTES_MAX + 4
        raw = b"".join(self._tail)[-wanted:]
        if len(raw) < wanted and not self.omitted:
            raw = bytes(self._head[-(wanted - len(raw)) :]) + raw
        return tail_text(raw)

    def as_json(self) -> dict[str, Any]:
        """The proto3 JSON of journal.v1.CapturedOutput."""
        fields: dict[str, Any] = {"total_bytes": self.total, "tail": self.tail()}
        if self.omitted:
            fields["omitted_bytes"] = self.omitted
        return fields

    def _write_tail(self, data: bytes) -> None:
        if len(data) >= self._tail_max:
            self._tail.clear()
            self._tail_bytes = 0
            data = data[len(data) - self._tail_max :]
        if data:
            self._append_tail(data)
        while self._tail_bytes > self._tail_max:
            excess = self._tail_bytes - self._tail_max
            first = self._tail.popleft()
            self._tail_bytes -= len(first)
            if len(first) > excess:
                self._tail.appendleft(first[excess:])
                self._tail_bytes += len(first) - excess

    def _append_tail(self, data: bytes) -> None:
        self._tail_bytes += len(data)
        # Small pieces are joined: a child that writes single bytes must not cost an object for each.
        if self._tail and len(self._tail[-1]) + len(data) <= 4096:
            data = self._tail.pop() + data
        self._tail.append(data)
