"""What a CLI's lines add up to: how far it is, what it has consumed, how its work ended; and when it has hung.

`EventStream` takes the lines of one child after the other: a turn that mends an answer goes on with what was so far.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import orjson

from executor_service.harness.cli import events
from executor_service.harness.cli.adapter import Parser, Silence
from executor_service.harness.cli.events import Event, Tokens
from executor_service.line_protocol import Report, clean

#: Words kept of an answer.
TEXT_CHARACTERS_MAX: Final = 4 * 1024 * 1024
DENIALS_MAX: Final = 100
_STEP_MAX: Final = 200

OnEvent = Callable[[Event], None]


class EventStream:
    """Reads one child after the other. `on_event` hears every event, `report` what is new for watchers."""

    def __init__(self, report: Callable[[Report], None], on_event: OnEvent, *, price: "Price", turns_max: int) -> None:
        self._report = report
        self._on_event = on_event
        self._price = price
        self._turns_max = turns_max
        self._before = Tokens()
        self._now = Tokens()
        self._requests: dict[str, Tokens] = {}
        #: Tools that run, by id: name, and what it was given.
        self._tools: dict[str, tuple[str, str]] = {}
        self._words: list[str] = []
        self._words_size = 0
        self._delta = False
        self._said_anything = False
        self._retrying = False
        self._plain = False
        self.parser: Parser | None = None
        self.session_id = ""
        self.model = ""
        self.turns = 0
        self.tools_used = 0
        self.todos: events.Todos | None = None
        self.denials: list[events.Denied] = []
        self.trouble: events.Trouble | None = None
        self.ended: events.Ended | None = None
        self.heard_at = time.monotonic()

    def begin(self, parser: Parser, *, plain: bool = False) -> None:
        """Another child speaks from now on; `plain`: its lines are text, whatever they look like."""
        self.parser, self._plain = parser, plain
        self._before, self._now = self.tokens, Tokens()
        self._requests.clear()
        self._tools.clear()
        self._words.clear()
        self._words_size = 0
        self.ended = self.trouble = None
        self._retrying = False
        self.heard_at = time.monotonic()

    def take(self, line: bytes) -> None:
        """The next line of stdout."""
        self.heard_at = time.monotonic()
        if self.parser is None:
            return
        if self._plain:
            self._apply(self.parser.take(line.decode("utf-8", "replace")))
            return
        if not line.strip():
            return
        try:
            said = orjson.loads(line)
        except orjson.JSONDecodeError:
            said = None
        if said is None:  # not JSON
            said = line.decode("utf-8", "replace")
        self._apply(self.parser.take(said))

    def close(self, status: int) -> None:
        """The child has ended."""
        if self.parser is not None:
            self._apply(self.parser.close(status))
        self._tools.clear()

    @property
    def tokens(self) -> Tokens:
        """All that the attempt has consumed so far."""
        return self._before.plus(self._now)

    def correct(self, tokens: Tokens) -> None:
        """What the child of now consumed, by a better source than its lines."""
        if tokens != self._now:
            self._now = tokens
            self._tell()

    @property
    def touched(self) -> bool:
        """True once the agent has used a tool or said a word: then the work is no longer as if it had not begun."""
        return bool(self.tools_used or self._said_anything)

    @property
    def text(self) -> str:
        """The answer: the CLI's last word, else the last message."""
        if self.ended is not None and self.ended.text is not None:
            return self.ended.text
        return "".join(self._words)

    def hung(self, limits: Silence, output_at: float = 0.0) -> tuple[str, float]:
        """What is awaited, and the seconds until it has been awaited for too long: 0 or less is hung.

        `output_at`: when anything was written, if only a part of a line, by time.monotonic.
        """
        kind = "tool" if self._tools else "retry" if self._retrying else "output"
        return kind, getattr(limits, kind) - (time.monotonic() - max(self.heard_at, output_at))

    def usage(self) -> dict[str, Any]:
        """The attempt's usage as the journal takes it; the cost is left out when nobody knows it."""
        tokens = self.tokens
        usage: dict[str, Any] = {
            "input_tokens": tokens.input,
            "output_tokens": tokens.output,
            "cached_input_tokens": tokens.cached,
            "reasoning_tokens": tokens.reasoning,
            "cache_write_tokens": tokens.cache_write,
            "turns": self.turns,
        }
        cost = tokens.cost_usd if tokens.cost_usd is not None else self._price(self.model, tokens)
        if cost is not None:
            usage["cost_usd"] = cost
        if self.model:
            usage["model"] = self.model
        return {name: value for name, value in usage.items() if value or name == "cost_usd"}

    def _apply(self, said: Iterable[Event]) -> None:
        new = False
        for event in said:
            self._on_event(event)
            self._retrying = isinstance(event, events.Retrying)
            if isinstance(event, _GOES_ON):  # what was wrong before is overcome
                self.trouble = None
            _TAKERS[type(event)](self, event)
            new = new or not isinstance(event, (events.Text, events.Denied))
        if new:
            self._tell()

    def _tell(self) -> None:
        report = Report(step=self._step(), usage=self.usage() or None)
        report.tool, _ = self._now_used()
        report.turns, report.turns_max = self.turns, self._turns_max
        if self.todos is not None:
            report.todos_done, report.todos = self.todos.done, self.todos.count
        self._report(clean(report))

    def _now_used(self) -> tuple[str, str]:
        """The tool that was begun last of those that run, and what with."""
        return next(reversed(self._tools.values()), ("", ""))

    def _step(self) -> str:
        if self._tools:
            return self._now_used()[1][:_STEP_MAX]
        if self._retrying and self.trouble is not None:
            return f"tries again: {self.trouble.message}"[:_STEP_MAX]
        return "done" if self.ended is not None else f"turn {self.turns}" if self.turns else "starting"

    def _session(self, event: events.SessionKnown) -> None:
        self.session_id = event.session_id or self.session_id
        self.model = event.model or self.model

    def _turn(self, _event: events.TurnStarted) -> None:
        self.turns += 1
        self._delta = False

    def _tool(self, event: events.ToolStarted) -> None:
        self.tools_used += 1
        self._tools[event.tool_id] = (event.tool, event.summary)
        self._delta = False

    def _tool_end(self, event: events.ToolEnded) -> None:
        self._tools.pop(event.tool_id, None)

    def _say(self, event: events.Text) -> None:
        self._said_anything = self._said_anything or bool(event.text.strip())
        if not (event.delta and self._delta):  # a new message takes the place of the one before
            self._words.clear()
            self._words_size = 0
        self._delta = event.delta
        if self._words_size < TEXT_CHARACTERS_MAX:
            self._words.append(event.text)
            self._words_size += len(event.text)

    def _todo(self, event: events.Todos) -> None:
        self.todos = event

    def _spend(self, event: events.Spent) -> None:
        if event.total:
            self._now = event.tokens
        else:  # a request came through; a total may be the bill of one that did not
            self.trouble = None
            was = self._requests.get(event.request, Tokens()) if event.request else Tokens()
            if event.request:
                self._requests[event.request] = event.tokens
            self._now = self._now.minus(was).plus(event.tokens) if was != Tokens() else self._now.plus(event.tokens)

    def _retry(self, event: events.Retrying) -> None:
        self.trouble = events.Trouble(event.message, event.status)

    def _complain(self, event: events.Trouble) -> None:
        self.trouble = event

    def _deny(self, event: events.Denied) -> None:
        if len(self.denials) < DENIALS_MAX:
            self.denials.append(event)

    def _end(self, event: events.Ended) -> None:
        self.ended = event
        self._tools.clear()
        if event.turns is not None:
            self.turns = max(self.turns, event.turns)


Price = Callable[[str, Tokens], float | None]

_GOES_ON: Final = (events.TurnStarted, events.ToolStarted, events.Text)

_TAKERS: Final[dict[type, Callable[[EventStream, Any], None]]] = {
    events.SessionKnown: EventStream._session,
    events.TurnStarted: EventStream._turn,
    events.ToolStarted: EventStream._tool,
    events.ToolEnded: EventStream._tool_end,
    events.Text: EventStream._say,
    events.Todos: EventStream._todo,
    events.Spent: EventStream._spend,
    events.Retrying: EventStream._retry,
    events.Trouble: EventStream._complain,
    events.Denied: EventStream._deny,
    events.Ended: EventStream._end,
}
