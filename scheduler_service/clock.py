"""The database's clock, as one replica reads it: what is stored, or compared with what is, goes by it."""

import time
from datetime import UTC, datetime


class DatabaseClock:
    """What the database's clock was when it was last read, and the time that has passed since.

    The host's wall clock has no part in it once the database has answered: set back or forward, by hand or by NTP, it
    would fire timers early or not at all. It is late rather than early, by the way of the answer.
    """

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()

    def learn(self, now: datetime) -> None:
        """Takes what the database has just answered."""
        self._offset_s = now.timestamp() - time.monotonic()

    def now(self) -> float:
        """Seconds since 1970."""
        return self._offset_s + time.monotonic()

    def read(self) -> datetime:
        """The same as a time of UTC."""
        return datetime.fromtimestamp(self.now(), UTC)
