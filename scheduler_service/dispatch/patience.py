"""How long an executor may be silent before what it runs is lost, seen by a replica that is itself late at times."""

from collections import deque
from typing import Final

#: Less lateness than this is the ordinary unrest of a loop.
_LATE_SECONDS: Final = 0.25
#: Times of lateness that are remembered; where there are more, the newest ones count.
_REMEMBERED: Final = 1000


class Patience:
    """The grace, longer by what this replica was late in the time that it covers.

    While a loop stands still nobody reads what executors say: that time is credited to them. It is credited, and
    nothing begins anew: on a machine that is late again and again a grace would otherwise never be over.
    """

    def __init__(self, grace_s: float, now: float) -> None:
        self._grace_s = grace_s
        self._since = now
        self._late: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)

    def begin(self, now: float) -> None:
        """Everything counts from now (monotonic seconds): nothing that anybody said before could be heard."""
        self._since = now
        self._late.clear()

    def late(self, now: float, seconds: float) -> None:
        """Something that was due has happened only now, `seconds` too late."""
        if seconds > _LATE_SECONDS:
            self._late.append((now, seconds))

    def grace(self, now: float) -> float | None:
        """Seconds of silence after which an executor is gone; None while this replica has not listened for as long."""
        allowed = self._grace_s
        for until, seconds in reversed(self._late):
            if now - until > allowed:
                break
            allowed += seconds
        return None if now - self._since < allowed else allowed
