"""Events of an agent's transcript, from the pieces in which its output comes. Pure.

The schema stands in executor_service/transcript.py. What is read was written by programs: anything may be missing, of
another type, or cut in half where a long transcript was not kept whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Event = Mapping[str, Any]


class Events:
    """Joins pieces to events. `left_out` counts lines that are none: cut in half, or of something else."""

    def __init__(self) -> None:
        self.seen = 0
        self.left_out = 0
        self._partial = b""

    def feed(self, data: bytes) -> Iterator[Event]:
        """Take the next bytes."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            yield from self._read(line)

    def gap(self) -> Iterator[Event]:
        """What comes next does not follow what came: what is left of a line stands for itself."""
        line, self._partial = self._partial, b""
        yield from self._read(line)

    def _read(self, line: bytes) -> Iterator[Event]:
        if not line.strip():
            return
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict) and isinstance(event.get("type"), str):
            self.seen += 1
            yield event
        else:
            self.left_out += 1


def text_of(event: Event, name: str) -> str:
    """A text of an event; empty: it has none."""
    value = event.get(name)
    return value if isinstance(value, str) else ""


def number_of(event: Event, name: str) -> float | None:
    """A number of an event; None: it has none."""
    value = event.get(name)
    return None if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
