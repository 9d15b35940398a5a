"""How long a running effect will take, as far as there is a basis for it: its child's word, else past attempts. Pure.

What a child said counts down from when it was said; once it has run out, and for children that say nothing, it is the
median of the latest successes of that name in the namespace, less the time that the attempt has run. Without either
there is no ETA: none is made up.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Final, NamedTuple

from scheduler_service.journal.client_views import EffectView

#: Seconds that attempts of a name take in a namespace; None: there is no history.
Expected = Callable[[str, str], float | None]

_RUNS: Final = frozenset({"DISPATCHED", "RUNNING"})


class Eta(NamedTuple):
    """Seconds to the end, more than 0."""

    seconds: float
    #: True when they come from past attempts, not from the child.
    estimated: bool


def no_history(_namespace: str, _name: str) -> None:
    """Nothing is known of the past."""


def eta_of(effect: EffectView, expected: Expected, now: datetime) -> Eta | None:
    """The ETA at this moment; None when there is no basis for one."""
    if effect.state not in _RUNS:
        return None
    return _told(effect, now) or _typical(effect, expected, now)


def _told(effect: EffectView, now: datetime) -> Eta | None:
    progress = effect.progress or {}
    if "eta" not in progress or effect.last_activity_at is None:
        return None
    left = float(progress["eta"].removesuffix("s")) - (now - effect.last_activity_at).total_seconds()
    return Eta(left, bool(progress.get("eta_estimated"))) if left > 0 else None


def _typical(effect: EffectView, expected: Expected, now: datetime) -> Eta | None:
    typical, began = expected(effect.namespace, effect.name), effect.started_at or effect.dispatched_at
    if typical is None or began is None:
        return None
    left = typical - (now - began).total_seconds()
    return Eta(left, True) if left > 0 else None
