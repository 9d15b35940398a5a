"""A scenario being played: how often each of its faults and hangs was used, and what ends its silences."""

from __future__ import annotations

import threading
from typing import Final

from .dialect import Dialect, Json, Reply
from .faults import Fault
from .fitting import fitted
from .scenario import AUX, Hang, Scenario


class Playing:
    """Used by many threads."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario: Final = scenario
        self.over: Final = threading.Event()
        self._lock: Final = threading.Lock()
        self._used: Final[dict[int, int]] = {}

    def fault(self, turn: int) -> Fault | None:
        """The refusal that is due on this turn, now used once more."""
        return next((fault for fault in self.scenario.faults if self._due(fault, turn)), None)

    def hang(self, turn: int) -> Hang | None:
        """The silence that is due on this turn, now used once more."""
        return next((hang for hang in self.scenario.hangs if self._due(hang, turn)), None)

    def _due(self, what: Fault | Hang, turn: int) -> bool:
        if what.on_turn not in {None, turn}:
            return False
        with self._lock:
            used = self._used.get(id(what), 0)
            if what.times is not None and used >= what.times:
                return False
            self._used[id(what)] = used + 1
            return True

    def reply(self, dialect: Dialect, body: Json, *, turn: int, model: str, answer: str) -> Reply:
        """The answer of this turn, by the tools that the request has."""
        question, tools = dialect.question(body), dialect.tools(body)
        said = self.scenario.turn(turn, question)
        call = fitted(said.call, tools) if said.call is not None else None
        text = said.text
        if call is None and text is None:
            text = f"The script has a call that none of these tools can do: {', '.join(tools)}"
        return Reply(answer, model, self.scenario.usage_of(turn, question), text, said.thinking, call, said.stop)


def turn_of(dialect: Dialect, body: Json) -> int:
    """The turn of a request."""
    return dialect.turn(body) if dialect.tools(body) else AUX
