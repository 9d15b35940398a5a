"""What a protocol has to say for itself, and what it is told to say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .faults import Fault, Refusal
from .scenario import Usage

Json = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A tool call with arguments that fit the tool of the request."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """One answer, ready to be put in words. `id` is new for each answer of all servers: clients drop repeated ones."""

    id: str
    model: str
    usage: Usage
    text: str | None
    thinking: str | None
    call: Call | None
    stop: str

    @property
    def pieces(self) -> list[str]:
        """The text in the deltas it is streamed by: its words."""
        words = (self.text or "").split(" ")
        return [*(f"{word} " for word in words[:-1]), words[-1]]


@dataclass(frozen=True)
class Frame:
    """One server-sent event. `delta` may be followed by a pause; with `end` the client has the whole answer."""

    data: Json | str
    event: str = ""
    delta: bool = False
    end: bool = False


class Dialect(Protocol):
    """One protocol."""

    name: str

    def tools(self, body: Json) -> dict[str, Json]:
        """The tools that a request offers, with the JSON schemas of their arguments."""

    def turn(self, body: Json) -> int:
        """How many tool results came since the last message of a user."""

    def question(self, body: Json) -> str:
        """The last message of a user, as JSON."""

    def session(self, body: Json, headers: Mapping[str, str]) -> str:
        """What the client calls its conversation, or ""."""

    def stream(self, reply: Reply, body: Json) -> Iterator[Frame]:
        """The answer as events."""

    def whole(self, reply: Reply) -> Json:
        """The answer at once."""

    def refusal(self, fault: Fault) -> Refusal:
        """A refusal in the words of the provider."""


def last_turn(messages: list[Json], is_result: Any, is_question: Any) -> int:
    """How many messages are results, from the last back to the last that is a question."""
    count = 0
    for message in reversed(messages):
        if is_result(message):
            count += 1
        elif is_question(message):
            break
    return count


def last_question(messages: list[Json], is_question: Any) -> str:
    """The last message that is a question, as JSON; "" when there is none."""
    return next((json.dumps(message, ensure_ascii=False) for message in reversed(messages) if is_question(message)), "")
