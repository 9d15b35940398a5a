"""The transcript of an agent: what it said and did, in one schema for all harnesses. Output stream 3 of its attempt.

Raw event streams of agent CLIs differ from each other and from release to release; they stay in stdout. The transcript
is what `backburner logs --pretty EFFECT` shows: JSON lines, each an event with `t`, the seconds since the transcript
began, and `type`. Everything else is optional, and readers skip types and fields that they do not know:

    session      harness, session_id, model, version, resumed (true: an earlier session goes on)
    prompt       text: what the agent was asked
    turn         turn (from 1), turns_max
    text         text: what the agent says
    thinking     text: what it thinks, where the harness shows that
    tool         id, name, input (any JSON, or text)
    tool_result  id, name, text, error (true: the tool failed), elapsed_s
    todos        done, total, items ([{text, done, active}])
    usage        input_tokens, output_tokens, cached_input_tokens, cost_usd, model, turns: totals of the attempt so far;
                 no cost_usd: it is unknown
    error        reason (an EffectReason without prefix), message, retry_after_s, final (false: the harness tries again;
                 not given: that is not known)
    note         text: what the executor did: another session, a repair turn, a budget that is spent
    result       ok, text, and where it is not ok, reason and message
    exit         code, signal: how the program ended

Long texts are cut, and `cut` says how many characters are missing. Writing never fails an attempt.
"""

import math
import time
from collections.abc import Mapping
from typing import Any, Final

import orjson

from executor_service.harness.base import Attempt
from executor_service.outcome import replace_unstorable
from executor_service.output import TRANSCRIPT

#: Most bytes kept of a transcript: the first half and the last half of it, as of other output.
BYTES_MAX: Final = 1024 * 1024
#: Characters kept of the texts of an event; of a tool's answer its beginning and its end.
WORDS_MAX: Final = 16 * 1024
TOOL_TEXT_MAX: Final = 4 * 1024
OTHER_MAX: Final = 2 * 1024
#: Bytes of an event whose fields are all within their bounds, yet too many.
LINE_BYTES_MAX: Final = 64 * 1024
_DEPTH_MAX: Final = 6
_ITEMS_MAX: Final = 50
_INTEGER_MAX: Final = 2**53

#: Types whose text is the point of the event.
_WORDS: Final = frozenset({"prompt", "text", "result"})


class Transcript:
    """Writes the transcript of one attempt: make one for an attempt, however many children it has."""

    def __init__(self, attempt: Attempt, bytes_max: int = BYTES_MAX) -> None:
        self._attempt = attempt
        self._capture = attempt.capture(TRANSCRIPT, bytes_max)
        self._began = time.monotonic()

    def write(self, event: Mapping[str, Any]) -> None:
        """Adds an event in the schema above: `type` and what belongs to it. None stands for what is not known."""
        self._attempt.output(self._capture, line_of(event, time.monotonic() - self._began))


def line_of(event: Mapping[str, Any], t: float) -> bytes:
    """An event as its line. Total: whatever a harness gives becomes a line within the bounds."""
    kind = str(event.get("type") or "note")
    shaper = _Shaper()
    fields: dict[str, Any] = {"t": round(t, 3), "type": shaper.text(kind, OTHER_MAX)}
    for name, value in event.items():
        if value is not None and name not in ("t", "type"):
            fields[shaper.text(str(name), OTHER_MAX)] = shaper.field(kind, str(name), value)
    if shaper.cut:
        fields["cut"] = shaper.cut
    line = orjson.dumps(fields)
    if len(line) > LINE_BYTES_MAX:
        line = orjson.dumps({"t": fields["t"], "type": fields["type"], "cut": len(line)})
    return line + b"\n"


class _Shaper:
    """Brings the values of one event into their bounds, and counts the characters that are left out."""

    def __init__(self) -> None:
        self.cut = 0

    def field(self, kind: str, name: str, value: Any) -> Any:
        if name == "text" and isinstance(value, str):
            if kind == "tool_result":
                return self._ends(value)
            return self.text(value, WORDS_MAX if kind in _WORDS else TOOL_TEXT_MAX)
        return self.value(value, 0)

    def text(self, value: str, length_max: int) -> str:
        self.cut += max(0, len(value) - length_max)
        return replace_unstorable(value[:length_max])

    def _ends(self, value: str) -> str:
        """Of what a tool gave, the end tells most, and the beginning what it is."""
        if len(value) <= TOOL_TEXT_MAX:
            return replace_unstorable(value)
        half = TOOL_TEXT_MAX // 2
        self.cut += len(value) - 2 * half
        return replace_unstorable(f"{value[:half]}\n…\n{value[-half:]}")

    def value(self, value: Any, depth: int) -> Any:
        """JSON that can be stored, of whatever was given."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return value if abs(value) <= _INTEGER_MAX else str(value)[:40]
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, str):
            return self.text(value, OTHER_MAX)
        if depth >= _DEPTH_MAX or not isinstance(value, (Mapping, list, tuple)):
            return self.text(str(value), OTHER_MAX)
        if isinstance(value, Mapping):
            pairs = list(value.items())[:_ITEMS_MAX]
            return {self.text(str(name), OTHER_MAX): self.value(item, depth + 1) for name, item in pairs}
        return [self.value(item, depth + 1) for item in value[:_ITEMS_MAX]]
