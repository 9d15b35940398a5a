"""When live steps are watched for forbidden calls that no audit hook sees: clocks, randomness, sleeping.

Watching costs as much as the step (a profile function sees every call of it), so by default it is a sample: the first
steps of each process on this replica, where a mistake shows at once, and every sixteenth after that. Tests and
`replay-check` always watch all.
"""

from collections import Counter
from typing import Final, Literal

Mode = Literal["sampled", "all", "off"]

FIRST_STEPS: Final = 500
THEN_EVERY: Final = 16


class CallChecks:
    """Decides for one step after another. Only the iteration thread calls it."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._steps: Counter[str] = Counter()

    def due(self, process: str) -> bool:
        """True when the next step of this process is to be watched."""
        if self._mode != "sampled":
            return self._mode == "all"
        self._steps[process] += 1
        return self._steps[process] <= FIRST_STEPS or self._steps[process] % THEN_EVERY == 0
