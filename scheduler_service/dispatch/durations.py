"""How long past effects of a name took: the basis of an ETA when a child gives none."""

import statistics
from collections import OrderedDict, deque

#: Names remembered at a time, and durations remembered of each.
NAMES_MAX = 2000
SAMPLES_MAX = 21


class Durations:
    """Medians of the latest durations, by namespace and name; filled from the journal at start, then from notices."""

    def __init__(self) -> None:
        self._samples: OrderedDict[tuple[str, str], deque[float]] = OrderedDict()

    def note(self, namespace: str, name: str, seconds: float) -> None:
        """Notes that a successful attempt of the name took so long."""
        key = (namespace, name)
        samples = self._samples.setdefault(key, deque(maxlen=SAMPLES_MAX))
        samples.append(seconds)
        self._samples.move_to_end(key)
        if len(self._samples) > NAMES_MAX:
            self._samples.popitem(last=False)

    def median(self, namespace: str, name: str) -> float | None:
        """Median in seconds, None when nothing is known."""
        samples = self._samples.get((namespace, name))
        return statistics.median(samples) if samples else None
