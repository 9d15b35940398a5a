"""Values as text for people: times, durations, states, payloads. Pure."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import json_format
from google.protobuf.message import Message

from backburner.journal.v1 import journal_pb2 as journal

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

RUN_ENDED: Final = {
    journal.RUN_STATE_COMPLETED,
    journal.RUN_STATE_FAILED,
    journal.RUN_STATE_CANCELLED,
    journal.RUN_STATE_CONTINUED,
}
RUN_PARKED: Final = {journal.RUN_STATE_PROCESS_ERROR, journal.RUN_STATE_HALTED}
EFFECT_SETTLED: Final = {
    journal.EFFECT_STATE_SUCCEEDED,
    journal.EFFECT_STATE_FAILED,
    journal.EFFECT_STATE_CANCELLED,
    journal.EFFECT_STATE_TIMED_OUT,
}

# Control sequences (colours, titles), then what is left of single control characters; tabs may stay.
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_STYLES: Final = {
    "COMPLETED": "green",
    "SUCCEEDED": "green",
    "RUNNING": "cyan",
    "DISPATCHED": "cyan",
    "CONNECTED": "green",
    "FAILED": "red",
    "TIMED_OUT": "red",
    "LOST": "red",
    "PROCESS_ERROR": "bold red",
    "CANCELLED": "yellow",
    "CANCELLING": "yellow",
    "HALTED": "yellow",
    "DRAINING": "yellow",
    "DISCONNECTED": "yellow",
    "WAITING": "magenta",
}


def run_state(value: int) -> str:
    """Name of a run's state without its prefix; states of newer releases keep their number."""
    return _short(journal.RunState, value, "RUN_STATE_")


def effect_state(value: int) -> str:
    """Name of an effect's state without its prefix."""
    return _short(journal.EffectState, value, "EFFECT_STATE_")


def effect_reason(value: int) -> str:
    """Name of a reason without its prefix."""
    return _short(journal.EffectReason, value, "EFFECT_REASON_")


def event_type(value: int) -> str:
    """Name of an event type without its prefix, as in the column `journal.type`."""
    return _short(journal.EventType, value, "EVENT_TYPE_")


def _short(enum: Any, value: int, prefix: str) -> str:
    name = enum.Name(value) if value in enum.values() else f"{prefix}{value}"
    return str(name).removeprefix(prefix)


def style(state: str) -> str:
    """Rich style of a state."""
    return _STYLES.get(state, "")


def seconds(value: Duration) -> float:
    """A protobuf duration in seconds."""
    return value.seconds + value.nanos / 1e9


def moment(value: Timestamp) -> dt.datetime:
    """A protobuf timestamp in UTC."""
    return value.ToDatetime(tzinfo=dt.UTC)


def span(value: float) -> str:
    """A duration: `340ms`, `4.2s`, `3m 07s`, `2h 05m`, `3d 04h`."""
    if value < 1:
        return f"{max(value, 0) * 1000:.0f}ms"
    if value < 60:
        return f"{value:.1f}s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600:02d}h"


def count(value: float) -> str:
    """A number of things, in three digits or so: `950`, `12.3k`, `4.56M`."""
    if round(value) < 1000:
        return f"{value:.0f}"
    if value < 999_950:
        return f"{value / 1e3:.1f}k"
    return f"{value / 1e6:.2f}M"


def dollars(value: float) -> str:
    """A cost in US dollars: `$0.08`, `$0.0004`, `$12.30`; what is not nothing is not shown as $0.00."""
    return f"${value:.2f}" if value >= 0.01 or value == 0 else f"${value:.2g}"


def since(value: Timestamp, now: dt.datetime) -> str:
    """How long ago it was."""
    return span((now - moment(value)).total_seconds())


def local_time(value: Timestamp) -> str:
    """Date and time in the reader's zone, to the millisecond."""
    return moment(value).astimezone().isoformat(sep=" ", timespec="milliseconds")


def clock(value: Timestamp) -> str:
    """Time of day in the reader's zone."""
    return moment(value).astimezone().strftime("%H:%M:%S")


def one_line(text: str, width: int, *, keep_spaces: bool = False) -> str:
    """The text on one line, cut at `width` with a mark."""
    flat = text if keep_spaces else " ".join(text.split())
    return flat if len(flat) <= width else f"{flat[: max(width - 1, 0)]}…"


def middle(text: str, width: int) -> str:
    """The text, cut in its middle to `width` with a mark: of keys and paths both ends tell them apart."""
    if len(text) <= width:
        return text
    head = max(width - 1, 0) // 2
    tail = max(width - 1, 0) - head
    return f"{text[:head]}…{text[len(text) - tail :]}"


def plain(text: str) -> str:
    """What a child wrote, safe for any terminal: no colours, no moves of the cursor, bars as they last stood."""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in _ESCAPES.sub("", text).split("\n"))
    return "\n".join(_CONTROLS.sub("", line) for line in lines)


def json_line(message: Message) -> str:
    """A message as one line of proto3 JSON with proto field names."""
    return json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None, ensure_ascii=False)


def as_dict(message: Message) -> dict[str, Any]:
    """A message as JSON values with proto field names."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def payload(value: journal.Payload) -> Any:
    """A payload's JSON value; a blob is shown as what it is."""
    if value.WhichOneof("source") == "blob":
        return {"blob": as_dict(value.blob)}
    if value.WhichOneof("source") is None:
        return None
    return _integers(json_format.MessageToDict(value.value))


def _integers(value: Any) -> Any:
    # google.protobuf.Value knows only doubles: 3 comes back as 3.0.
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    if isinstance(value, list):
        return [_integers(item) for item in value]
    if isinstance(value, dict):
        return {name: _integers(item) for name, item in value.items()}
    return value


def pretty_json(value: Any) -> str:
    """JSON over several lines."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)


def compact_json(value: Any) -> str:
    """JSON on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
