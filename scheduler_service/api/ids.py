"""Run ids: UUIDv7 (RFC 9562), so that ids sort by creation and the journal can be cut by time."""

import secrets
import time
import uuid


def new_run_id(*, after: str = "") -> str:
    """A fresh UUIDv7: 48 bits of milliseconds since 1970, then 74 random bits; greater than `after` in any case."""
    milliseconds = time.time_ns() // 1_000_000
    if after:  # another replica's clock may be ahead of ours
        milliseconds = max(milliseconds, (uuid.UUID(after).int >> 80) + 1)
    random = secrets.randbits(74)
    value = (milliseconds & (1 << 48) - 1) << 80
    value |= 0x7 << 76 | (random >> 62) << 64
    value |= 0b10 << 62 | random & (1 << 62) - 1
    return str(uuid.UUID(int=value))
