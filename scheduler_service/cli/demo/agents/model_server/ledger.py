"""What was asked of the model server, and what it charged."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Final

from .scenario import Usage


@dataclass(frozen=True)
class Request:
    """One request to a model.

    `session` is what the client calls its conversation, "" where the protocol has no place for it. `turn` is -1 for a
    request without tools. `status` is 0 until an answer has begun. `usage` is what was handed out: None until the
    end of the answer is on its way, and for what was refused or cut off.
    """

    number: int
    protocol: str
    model: str
    key: str
    session: str
    turn: int
    tools: tuple[str, ...]
    status: int = 0
    usage: Usage | None = None


class Ledger:
    """All requests, in the order they came. Used by many threads."""

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._requests: Final[list[Request]] = []

    def add(self, *, protocol: str, model: str, key: str, session: str, turn: int, tools: tuple[str, ...]) -> int:
        """A request came; its number."""
        with self._lock:
            number = len(self._requests) + 1
            self._requests.append(Request(number, protocol, model, key, session, turn, tools))
            return number

    def answered(self, number: int, status: int, usage: Usage | None = None) -> None:
        """An answer began with this status, or, with the usage, comes to its end."""
        with self._lock:
            self._requests[number - 1] = replace(self._requests[number - 1], status=status, usage=usage)

    def requests(self) -> list[Request]:
        """All of them."""
        with self._lock:
            return list(self._requests)
