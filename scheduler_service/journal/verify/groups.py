"""Concurrency groups, judged by the journal alone: who ran when, and where adaptive limits have moved to. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Row = Mapping[str, Any]

#: Reasons that halve the limit of an adaptive group.
OVERLOADED: Final = ("EFFECT_REASON_RATE_LIMITED", "EFFECT_REASON_OVERLOADED")
#: Successes, since the limit was last changed, that raise it by one.
SUCCESSES: Final = 10
_FAILS: Final = ("EFFECT_RESOLVED", "EFFECT_ATTEMPT_FAILED", "EFFECT_PARKED")
_ENDS: Final = (
    "EFFECT_ATTEMPT_FAILED", "EFFECT_ATTEMPT_LOST", "EFFECT_RESOLVED", "EFFECT_CANCELLED", "EFFECT_PARKED",
)  # fmt: skip


@dataclass
class Group:
    """One group as the journal leads it."""

    most: int
    adaptive: bool
    limit: int
    successes: int = 0
    open: set[Any] = field(default_factory=set)

    def end(self, row: Row) -> None:
        """An attempt of the group ended, or an effect that had none."""
        ran = row["effect_id"] in self.open
        self.open.discard(row["effect_id"])
        if not self.adaptive or not ran:
            return
        if row["data"].get("state") == "EFFECT_STATE_SUCCEEDED":
            self._succeeded()
        elif row["data"].get("reason") in OVERLOADED and row["type"] in _FAILS:
            self.limit, self.successes = max(1, self.limit // 2), 0

    def _succeeded(self) -> None:
        if self.limit >= self.most:
            return
        self.successes += 1
        if self.successes == SUCCESSES:
            self.limit, self.successes = self.limit + 1, 0


def broken(
    journal: Iterator[Row], effects: Mapping[Any, Row], stored: Mapping[str, Row]
) -> Iterator[tuple[str, int, str]]:
    """What is wrong: key of the effect, seq, and what. `stored` are the rows of `run_groups`, by id."""
    groups = {
        name: Group(row["max_concurrency"], row["strategy"] == "ADAPTIVE", row["max_concurrency"])
        for name, row in stored.items()
    }
    for row in journal:
        effect = effects.get(row["effect_id"])
        if effect is None or effect["group_id"] is None:
            continue
        group = groups.get(effect["group_id"])
        if group is None:
            yield effect["key"], row["seq"], f"group {effect['group_id']!r} has no row"
            return
        if row["type"] == "EFFECT_DISPATCHED":
            group.open.add(row["effect_id"])
            most = min(group.limit, effect["group_max"])
            if len(group.open) > most:
                yield (
                    effect["key"],
                    row["seq"],
                    f"{len(group.open)} of group {effect['group_id']!r} run, at most {most}",
                )
        elif row["type"] in _ENDS:
            group.end(row)
    for name, group in groups.items():
        said = (stored[name]["limit_"], stored[name]["successes"])
        if said != (group.limit, group.successes):
            told = (group.limit, group.successes)
            yield "", 0, f"(limit, successes) of group {name!r} is {said}; the journal says {told}"
