"""What goes into an execution and what comes out: journal events, and the commands that will become journal rows."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Event:
    """One journal row.

    `type` is the EventType without its prefix; `recorded_at` is aware UTC; `cause` is 0 for rows that no process code
    asked for; `data` is the data message as stored: proto3 JSON with proto field names, default values absent, payloads
    over 64 KiB already loaded (`{"value": ...}` instead of `{"blob": ...}`).
    """

    seq: int
    type: str
    recorded_at: dt.datetime
    cause: int = 0
    effect_id: str = ""
    effect_key: str = ""
    attempt: int = 0
    actor: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Command:
    """One row that process code asks for: the owner appends it as it is, `cause` included.

    `asked_at` is the line of process code that asked, `file:line`, for messages; empty when no one line did.
    """

    type: str
    cause: int
    effect_id: str
    effect_key: str
    data: dict[str, Any]
    asked_at: str = field(default="", compare=False)


# Rows that only process code asks for. A row of these types with a cause was a command once.
COMMAND_TYPES: Final = frozenset({
    "EFFECT_REQUESTED", "EFFECT_CANCEL_REQUESTED", "TIMER_SET", "PROCESS_LOG", "PATCH_MARKED", "RUN_REPORTED",
    "RUN_CLOSING", "RUN_COMPLETED", "RUN_FAILED", "RUN_CANCELLED", "RUN_HALTED", "RUN_CONTINUED",
})  # fmt: skip

# Exactly one of these, exactly once, settles an effect.
SETTLING_TYPES: Final = frozenset({"EFFECT_RESOLVED", "EFFECT_CANCELLED", "EFFECT_REUSED"})

# After one of these (and nothing else) a run is over.
TERMINAL_TYPES: Final = frozenset({"RUN_COMPLETED", "RUN_FAILED", "RUN_CANCELLED", "RUN_CONTINUED"})
