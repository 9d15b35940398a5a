"""What must not happen before its time: timers, effects that sleep, attempts after a pause. Pure."""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

Row = Mapping[str, Any]

#: Replicas tell the time by the database's clock as they last read it; until the next reading the two may drift apart.
DRIFT: Final = timedelta(milliseconds=100)


def early(journal: Iterator[Row]) -> Iterator[tuple[str, int, str]]:
    """What came too early: key of the effect, seq, and what."""
    timers: dict[int, datetime] = {}
    effects: dict[Any, datetime] = {}
    for row in journal:
        due = _due(row)
        if row["type"] == "TIMER_SET" and due is not None:
            timers[row["data"]["ordinal"]] = due
        elif row["type"] == "TIMER_FIRED":
            yield from _compared(row, f"timer {row['data']['ordinal']} fired", timers.get(row["data"]["ordinal"]))
        elif row["type"] == "EFFECT_DISPATCHED":
            yield from _compared(row, f"attempt {row['attempt']} was dispatched", effects.pop(row["effect_id"], None))
        elif row["type"] == "EFFECT_RESOLVED" and row["writer"].startswith("scheduler/"):
            if row["data"].get("state") == "EFFECT_STATE_SUCCEEDED":  # a timer that is an effect
                yield from _compared(row, "the timer ended", effects.pop(row["effect_id"], None))
        elif due is not None:
            effects[row["effect_id"]] = due


def _due(row: Row) -> datetime | None:
    due = row["data"].get("due")
    return None if due is None else datetime.fromisoformat(due.replace("Z", "+00:00"))


def _compared(row: Row, what: str, due: datetime | None) -> Iterator[tuple[str, int, str]]:
    if due is not None and row["recorded_at"] < due - DRIFT:
        yield row["effect_key"] or "", row["seq"], f"{what} at {row['recorded_at']}, due at {due}"
