"""What agent CLIs say, in one set of typed events: every adapter's parser speaks these, and everything else hears them.

A parser never trusts a line: fields may be missing or of any type. `Fields` reads them without ever raising.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from executor_service.outcome import Failure

#: Longest summary of a tool's input.
SUMMARY_LENGTH_MAX: Final = 200
#: Numbers that cannot be tokens: a forged or mutated line must not become a bill.
_COUNT_MAX: Final = 1e12
_COST_MAX: Final = 1e6
_WHOLE_MAX: Final = 1e9


@dataclass(frozen=True, slots=True)
class SessionKnown:
    """The session's id, and the model when the CLI tells it."""

    session_id: str
    model: str = ""


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The model is asked once more."""


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """A tool begins. `summary` is its input in a few words."""

    tool_id: str
    tool: str
    summary: str = ""
    #: Its whole input, any JSON.
    given: Any = None


@dataclass(frozen=True, slots=True)
class ToolEnded:
    """A tool has ended. `ok`: it says so itself."""

    tool_id: str
    ok: bool = True
    output: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """Words of the agent: a whole message, or (`delta`) the next piece of one."""

    text: str
    delta: bool = False


@dataclass(frozen=True, slots=True)
class Todos:
    """The agent's own list of things to do."""

    done: int
    count: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens and cost. `input` includes cached ones; `cost_usd` None: not told."""

    input: float = 0.0
    output: float = 0.0
    cached: float = 0.0
    cache_write: float = 0.0
    reasoning: float = 0.0
    cost_usd: float | None = None

    def __add__(self, other: "Tokens") -> "Tokens":
        return self.plus(other)

    def plus(self, other: "Tokens") -> "Tokens":
        """The sum. The cost of a sum is known when both are, or when one of them is nothing."""
        return self._each(other, 1)

    def minus(self, other: "Tokens") -> "Tokens":
        """What is more than `other`, never less than nothing."""
        return self._each(other, -1)

    def _each(self, other: "Tokens", sign: int) -> "Tokens":
        names = ("input", "output", "cached", "cache_write", "reasoning")
        sums = {name: max(0.0, getattr(self, name) + sign * getattr(other, name)) for name in names}
        costs = [tokens.cost_usd for tokens in (self, other) if tokens != Tokens()]
        known = [cost for cost in costs if cost is not None]
        if len(known) < len(costs) or not known:
            return Tokens(**sums)
        return Tokens(**sums, cost_usd=max(0.0, (self.cost_usd or 0.0) + sign * (other.cost_usd or 0.0)))


@dataclass(frozen=True, slots=True)
class Spent:
    """Consumption. `total`: of this child so far, in place of what was said before; else on top of it."""

    tokens: Tokens
    total: bool = False
    #: Of a request that goes on: the newest word for `request` replaces the one before. Empty: a request of its own.
    request: str = ""


@dataclass(frozen=True, slots=True)
class Retrying:
    """The CLI tries a request again by itself."""

    message: str
    status: int = 0
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """An error that need not be the end: it explains one when there is no better explanation."""

    message: str
    status: int = 0


@dataclass(frozen=True, slots=True)
class Denied:
    """The agent wanted to do something and was not let."""

    tool: str
    request: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """The CLI's own last word on the work. Nothing but this makes a success."""

    ok: bool
    #: The answer. None: the words of the last message are.
    text: str | None = None
    #: Why not, when it is not `ok`.
    failure: Failure | None = None
    turns: int | None = None
    #: True: the CLI does not know of it and would go on, so it is ended at once.
    stop: bool = False


Event = (
    SessionKnown | TurnStarted | ToolStarted | ToolEnded | Text | Todos | Spent | Retrying | Trouble | Denied | Ended
)


class Fields:
    """A JSON object of a line, read without trust: what is missing or of another type is empty."""

    __slots__ = ("_fields",)

    def __init__(self, value: object) -> None:
        self._fields: Mapping[str, Any] = value if isinstance(value, dict) else {}

    def __bool__(self) -> bool:
        return bool(self._fields)

    def raw(self, name: str) -> Any:
        """The value as it stands."""
        return self._fields.get(name)

    def text(self, name: str) -> str:
        """A text; empty when it is none."""
        value = self._fields.get(name)
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> float:
        """A count; 0 when it is none."""
        value = self._fields.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return 0.0
        return float(value) if 0 <= value <= _COUNT_MAX else 0.0

    def whole(self, name: str) -> int:
        """A whole number that fits 31 bits, and so does one more; 0 when it is none."""
        return int(min(self.number(name), _WHOLE_MAX))

    def cost(self, name: str) -> float | None:
        """US dollars; None when that is no sum of money."""
        value = self._fields.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _COST_MAX:
            return None
        return float(value)

    def of(self, name: str) -> "Fields":
        """An object; empty when it is none."""
        return Fields(self._fields.get(name))

    def each(self, name: str) -> Iterator["Fields"]:
        """The objects of a list."""
        value = self._fields.get(name)
        if isinstance(value, list):
            yield from (Fields(item) for item in value if isinstance(item, dict))

    def values(self) -> Iterator["Fields"]:
        """The objects among its values."""
        yield from (Fields(value) for value in self._fields.values() if isinstance(value, dict))


#: What of a tool's input says most, the best first.
_TELLING: Final = (
    "command", "file_path", "path", "absolute_path", "filePath", "pattern", "query", "url", "description", "prompt",
    "subject",
)  # fmt: skip


def summary(arguments: object, telling: Sequence[str] = _TELLING) -> str:
    """A tool's input in a few words."""
    fields = Fields(arguments)
    said = next((text for name in telling if (text := fields.text(name))), "")
    if not said and isinstance(arguments, str):
        said = arguments
    return " ".join(said.split())[:SUMMARY_LENGTH_MAX]


def todos(items: Iterator[Fields], done: Sequence[str] = ("completed", "done")) -> Todos:
    """A list of things to do whose entries have a `status`."""
    states = [item.text("status") for item in items]
    return Todos(sum(state in done for state in states), len(states))


def out_of_turns(turns: int) -> Ended:
    """The end of a CLI that has no bound of turns itself and wants one more."""
    return Ended(False, None, Failure("MAX_TURNS", f"stopped after {turns} turns: there may be no more"), turns, True)


def priced(tokens: Tokens, cost: float | None) -> Tokens:
    """The same tokens at that cost."""
    return replace(tokens, cost_usd=cost)


def tool(tool_id: str, name: str, given: Any) -> ToolStarted:
    """The start of a tool with that input."""
    return ToolStarted(tool_id, name, summary(given), given)
