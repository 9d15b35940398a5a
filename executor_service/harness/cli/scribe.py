"""Writes the transcript of a CLI's turn: its events in the schema that all harnesses share."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from executor_service.harness.agent import Attempt, ChildEnd
from executor_service.harness.cli import events
from executor_service.harness.cli.events import Event
from executor_service.transcript import Transcript

#: Pieces of one message that are joined.
_WORDS_MAX: Final = 64 * 1024


class Scribe:
    """Hears the events of an attempt's children."""

    def __init__(self, attempt: Attempt, harness: str, version: str) -> None:
        self._transcript = Transcript(attempt)
        self._names = {"harness": harness, "version": version}
        self._resumed = False
        self._session = ""
        self._turn = 0
        self._words: list[str] = []
        self._size = 0

    def begin(self, prompt: str, *, resumed: bool) -> None:
        """A child is about to start."""
        self._resumed, self._session = resumed, ""
        self._transcript.write({"type": "prompt", "text": prompt})

    def hear(self, event: Event) -> None:
        """Writes an event; pieces of a message are written as one."""
        if isinstance(event, events.Text) and event.delta:
            if self._size < _WORDS_MAX:
                self._words.append(event.text)
                self._size += len(event.text)
            return
        if isinstance(event, events.Text):
            self._words, self._size = [], 0  # the whole message takes the place of its pieces
        elif not isinstance(event, events.Spent):
            self._flush()
        if writer := _WRITERS.get(type(event)):
            line = writer(self, event)
            if line:
                self._transcript.write(line)

    def end(self, end: ChildEnd, usage: Mapping[str, Any]) -> None:
        """The child has ended."""
        self._flush()
        if usage:
            self._transcript.write({"type": "usage", **usage})
        signal = -end.status if end.status < 0 else None
        self._transcript.write({"type": "exit", "code": end.exit_code, "signal": signal})

    def _flush(self) -> None:
        if self._words:
            self._transcript.write({"type": "text", "text": "".join(self._words)})
            self._words, self._size = [], 0

    def _say_session(self, event: events.SessionKnown) -> dict[str, Any] | None:
        if not event.session_id or event.session_id == self._session:
            return None
        self._session = event.session_id
        line = {"type": "session", "session_id": event.session_id, "model": event.model or None}
        return line | self._names | {"resumed": self._resumed or None}

    def _say_turn(self, _event: events.TurnStarted) -> dict[str, Any]:
        self._turn += 1
        return {"type": "turn", "turn": self._turn}


_WRITERS: Final[dict[type, Callable[[Scribe, Any], dict[str, Any] | None]]] = {
    events.SessionKnown: Scribe._say_session,
    events.TurnStarted: Scribe._say_turn,
    events.Text: lambda _, event: {"type": "text", "text": event.text} if event.text else None,
    events.ToolStarted: lambda _, event: {
        "type": "tool", "id": event.tool_id, "name": event.tool,
        "input": event.summary if event.given is None else event.given,
    },
    events.ToolEnded: lambda _, event: {
        "type": "tool_result", "id": event.tool_id, "text": event.output, "error": not event.ok or None,
    },
    events.Todos: lambda _, event: {"type": "todos", "done": event.done, "total": event.count},
    events.Retrying: lambda _, event: {
        "type": "error", "message": event.message, "final": False, "retry_after_s": event.delay_s or None,
    },
    events.Trouble: lambda _, event: {"type": "error", "message": event.message},
    events.Denied: lambda _, event: {"type": "note", "text": f"{event.tool} was not allowed: {event.request}"},
    events.Ended: lambda _, event: {
        "type": "result", "ok": event.ok, "text": event.text,
        "reason": None if event.failure is None else event.failure.reason,
        "message": None if event.failure is None else event.failure.message,
    },
}  # fmt: skip
