"""Durations as authors give them."""

from __future__ import annotations

import datetime as dt
import math
from typing import Final

from scheduler_service.authoring.errors import OptionError

Seconds = float | dt.timedelta

DURATION_SECONDS_MAX: Final = 10 * 365 * 86_400


def duration(value: Seconds, option: str, *, zero: bool = False, most: float = DURATION_SECONDS_MAX) -> str:
    """A proto3-JSON Duration with at most 3 decimals. Raises OptionError unless positive and at most 10 years."""
    seconds = value.total_seconds() if isinstance(value, dt.timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        raise OptionError(f"{option}={value!r}: expected seconds or a timedelta")
    if seconds < 0 or (seconds == 0 and not zero) or seconds > most:
        raise OptionError(
            f"{option}={value!r}: expected {'0 to' if zero else 'more than 0 and at most'} {most} seconds"
        )
    millis = max(math.ceil(round(seconds * 1000, 6)), 0 if zero else 1)
    return f"{millis // 1000}s" if millis % 1000 == 0 else f"{millis // 1000}.{millis % 1000:03d}s"
