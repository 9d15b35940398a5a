"""Draws the transcript of an agent as a person wants to read it: what it said, which tools it used, what that cost."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from backburner.journal.v1 import journal_pb2 as journal
from scheduler_service.cli import text
from scheduler_service.cli.agents import describe_usage
from scheduler_service.cli.transcript import Event, Events, number_of, text_of

_INPUT_WIDTH: Final = 160
#: Lines shown of what a tool gave: so many of its beginning, and so many of its end.
_HEAD_LINES: Final = 3
_TAIL_LINES: Final = 3
_PROMPT_LINES: Final = 8
_THOUGHT_LINES: Final = 3
#: Of a tool's input, the first of these says what it does.
_TELLING: Final = (
    "command", "cmd", "file_path", "filePath", "path", "pattern", "query", "url", "subject", "title", "description",
    "prompt",
)  # fmt: skip
_COUNTS: Final = ("input_tokens", "output_tokens", "cached_input_tokens", "turns")

#: Lines with their style, the first of them beside the time.
Lines = Iterator[tuple[str, str]]


class Pretty:
    """Prints a transcript as it comes. `close` says what it cost, and what is missing."""

    def __init__(self, out: Console) -> None:
        self.events = Events()
        self._out = out
        self._usage: journal.Usage | None = None
        self._said = ""
        self._tools: dict[str, str] = {}

    def feed(self, data: bytes) -> None:
        """Draw what came."""
        for event in self.events.feed(data):
            self._draw(event)

    def gap(self, missing: int) -> None:
        """Say that a part was not kept."""
        for event in self.events.gap():
            self._draw(event)
        self._print("", f"[{missing} bytes of the transcript were not kept]", "yellow")

    def close(self) -> None:
        """Draw the rest."""
        for event in self.events.gap():
            self._draw(event)
        if self._usage is not None:
            self._print("", f"used {describe_usage(self._usage)}", "bold")
        if self.events.left_out:
            many = self.events.left_out
            what = "1 line, cut in half, is" if many == 1 else f"{many} lines, cut in half, are"
            self._print("", f"[{what} left out]", "yellow")

    def _draw(self, event: Event) -> None:
        kind = event["type"]
        if kind == "usage":
            self._usage = _usage(event, self._usage)
            return
        event = self._named(event)
        if kind == "result" and text_of(event, "text").strip() == self._said:
            event = {**event, "text": ""}  # its last words are just above
        if kind == "text":
            self._said = text_of(event, "text").strip()
        at = _clock(number_of(event, "t"))
        for line, style in _DRAWN.get(kind, _nothing)(event):
            self._print(at, line, style)
            at = ""
        if (cut := number_of(event, "cut")) and kind in _DRAWN:
            self._print("", f"… {cut:.0f} characters are left out", "dim")

    def _named(self, event: Event) -> Event:
        """A tool's answer with the tool's name: some harnesses name only the call."""
        called = text_of(event, "id")
        if event["type"] == "tool" and called:
            self._tools[called] = text_of(event, "name")
        elif event["type"] == "tool_result" and not text_of(event, "name"):
            return {**event, "name": self._tools.pop(called, "")}
        return event

    def _print(self, at: str, line: str, style: str) -> None:
        said = Text.assemble((f"{at:>7}  ", "dim"), (line, style))
        said.rstrip()
        self._out.print(said, soft_wrap=True)


def _clock(t: float | None) -> str:
    if t is None:
        return ""
    minutes, seconds = divmod(int(t), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _usage(event: Event, before: journal.Usage | None) -> journal.Usage:
    """The totals so far. What an event does not say is as the one before said, but for the cost: that is unknown."""
    usage = journal.Usage()
    if before is not None:
        usage.CopyFrom(before)
    usage.ClearField("cost_usd")
    for name in _COUNTS:
        if (value := number_of(event, name)) is not None:
            setattr(usage, name, int(value) if name == "turns" else value)
    if (cost := number_of(event, "cost_usd")) is not None:
        usage.cost_usd = cost
    usage.model = text_of(event, "model") or usage.model
    return usage


def _lines(said: str, head: int | None = None, tail: int = 0) -> list[str]:
    """The lines of a text, safe for a terminal; with `head` no more than its beginning and its end."""
    lines = [line.rstrip() for line in text.plain(said).strip("\n").split("\n")]
    if head is None or len(lines) <= head + tail + 1:
        return lines
    return [*lines[:head], f"… {len(lines) - head - tail} lines more", *(lines[-tail:] if tail else [])]


def _name(event: Event, name: str) -> str:
    return text.one_line(text.plain(text_of(event, name)), _INPUT_WIDTH)


def _nothing(_event: Event) -> Lines:
    yield from ()


def _session(event: Event) -> Lines:
    model, session = _name(event, "model"), _name(event, "session_id")
    goes_on = "an earlier session goes on" if event.get("resumed") is True else ""
    named = " ".join(part for part in (_name(event, "harness"), _name(event, "version")) if part)
    parts = (named, f"model {model}" if model else "", f"session {session}" if session else "", goes_on)
    yield " · ".join(part for part in parts if part), "bold"


def _prompt(event: Event) -> Lines:
    for line in _lines(text_of(event, "text"), _PROMPT_LINES):
        yield f"> {line}", "cyan"


def _turn(event: Event) -> Lines:
    turn, most = number_of(event, "turn"), number_of(event, "turns_max")
    yield f"── turn {turn or 0:.0f}{f' of {most:.0f}' if most else ''}", "dim"


def _text(event: Event) -> Lines:
    for line in _lines(text_of(event, "text")):
        yield line, ""


def _thinking(event: Event) -> Lines:
    for line in _lines(text_of(event, "text"), _THOUGHT_LINES):
        yield f"~ {line}", "dim italic"


def _tool(event: Event) -> Lines:
    yield f"▸ {_name(event, 'name') or 'tool'}  {_short(event.get('input'))}".rstrip(), "bold cyan"


def _short(given: Any) -> str:
    """The input of a tool on a line: the command, the path, what it looks for; else all of it as JSON."""
    if isinstance(given, Mapping):
        given = next((given[name] for name in _TELLING if given.get(name)), given)
    if isinstance(given, list) and all(isinstance(item, str) for item in given):
        given = shlex.join(given)
    if given in (None, "", {}, []):
        return ""
    said = given if isinstance(given, str) else text.compact_json(given)
    return text.one_line(text.plain(said), _INPUT_WIDTH)


def _tool_result(event: Event) -> Lines:
    failed = event.get("error") is True
    if failed:
        yield f"✗ {_name(event, 'name') or 'the tool'} failed", "red"
    if said := text_of(event, "text"):
        for line in _lines(said, _HEAD_LINES, _TAIL_LINES):
            yield f"│ {line}", "red" if failed else "dim"


def _todos(event: Event) -> Lines:
    items = event.get("items")
    active = (item for item in items if isinstance(item, dict) and item.get("active") is True) if isinstance(
        items, list
    ) else iter(())  # fmt: skip
    now = _name(next(active, {}), "text")
    done, total = number_of(event, "done") or 0, number_of(event, "total") or 0
    yield f"☐ {done:.0f}/{total:.0f} todos{f': {now}' if now else ''}", "magenta"


def _error(event: Event) -> Lines:
    pause = number_of(event, "retry_after_s")
    again = "" if event.get("final") is not False else ", it tries again"
    again = f"{again or ', again'} in {text.span(pause)}" if pause is not None else again
    reason, message = _name(event, "reason"), text_of(event, "message")
    first, *rest = _lines(message, _HEAD_LINES, _TAIL_LINES)
    yield f"error {': '.join(part for part in (reason, first) if part)}{again}", "red"
    for line in rest:
        yield f"  {line}", "red"


def _note(event: Event) -> Lines:
    for line in _lines(text_of(event, "text")):
        yield f"* {line}", "yellow"


def _result(event: Event) -> Lines:
    if event.get("ok") is True:
        yield "✓ done", "green"
    else:
        said = ": ".join(part for part in (_name(event, "reason"), _name(event, "message")) if part)
        yield f"✗ {said or 'not done'}", "red"
    if said := text_of(event, "text").strip():
        for line in _lines(said):
            yield line, ""


def _exit(event: Event) -> Lines:
    code, number = number_of(event, "code"), number_of(event, "signal")
    if number:
        yield f"its program was ended by signal {number:.0f}", "yellow"
    elif code:
        yield f"its program exited with code {code:.0f}", "yellow"


_DRAWN: Final[Mapping[str, Callable[[Event], Lines]]] = {
    "session": _session,
    "prompt": _prompt,
    "turn": _turn,
    "text": _text,
    "thinking": _thinking,
    "tool": _tool,
    "tool_result": _tool_result,
    "todos": _todos,
    "error": _error,
    "note": _note,
    "result": _result,
    "exit": _exit,
}
