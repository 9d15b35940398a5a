"""Who is to hold how many shards. Pure: each replica comes to the same answer by itself."""

from collections.abc import Collection
from typing import Final

#: Shards there are; the twin of the table's rows.
SHARDS: Final = 16


def fair_share(scheduler_id: str, others: Collection[str], shards: int = SHARDS) -> int:
    """How many shards a replica is to hold beside `others`; what does not divide goes to the first names."""
    names = sorted({scheduler_id, *others})
    least, rest = divmod(shards, len(names))
    return least + (names.index(scheduler_id) < rest)


class Membership:
    """The replicas that share the shards, and since when they are the same ones.

    What is free is taken at once; what somebody works on moves only when the replicas have been the same for a while:
    a replica that was killed counts until its lease runs out, and its restart under a new name must not make the others
    hand over shards that they take back a moment later.
    """

    def __init__(self, scheduler_id: str, quiet_s: float) -> None:
        self._scheduler_id = scheduler_id
        self._quiet_s = quiet_s
        self._others: frozenset[str] = frozenset()
        self._since = 0.0

    @property
    def share(self) -> int:
        """Shards that this replica is to hold."""
        return fair_share(self._scheduler_id, self._others)

    def note(self, others: Collection[str], now: float) -> None:
        """Takes what was read: the other replicas that live and do not drain; `now` is monotonic."""
        if self._others != frozenset(others):
            self._others = frozenset(others)
            self._since = now

    def is_settled(self, now: float) -> bool:
        """True once the replicas have been the same for long enough."""
        return now - self._since >= self._quiet_s
