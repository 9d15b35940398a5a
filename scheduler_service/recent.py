"""How something went in the last minutes: a bounded number of samples, the newest."""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

#: Samples that are kept; of more within the time, the newest count.
SAMPLES_MAX: Final = 2_000


class Recent:
    """Samples of the last `seconds`."""

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES_MAX)
        #: Hears each sample too: metrics count what is measured here.
        self.on_note: Callable[[float], None] = _nobody

    def note(self, value: float) -> None:
        """Adds a sample."""
        self._samples.append((time.monotonic(), value))
        self.on_note(value)

    def values(self) -> list[float]:
        """Those that count now, oldest first."""
        since = time.monotonic() - self._seconds
        while self._samples and self._samples[0][0] < since:
            self._samples.popleft()
        return [value for _, value in self._samples]

    def p99(self) -> float:
        """The value that 99 of 100 samples do not exceed; 0 without samples."""
        values = sorted(self.values())
        return values[math.ceil(len(values) * 0.99) - 1] if values else 0.0


def _nobody(_value: float) -> None:
    """Hears samples that nobody else does."""
