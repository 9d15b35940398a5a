"""The grace of a replica that is itself late."""

import pytest

from scheduler_service.dispatch.patience import Patience

GRACE = 3.0


def test_nothing_is_lost_before_a_replica_has_listened_for_the_grace() -> None:
    patience = Patience(GRACE, now=100)
    assert patience.grace(102.9) is None
    assert patience.grace(103) == GRACE
    patience.begin(110)
    assert patience.grace(112.9) is None
    assert patience.grace(113) == GRACE


@pytest.mark.invariant("I13")
def test_a_replica_that_is_late_at_every_turn_still_finds_a_grace_to_be_over() -> None:
    """Seen under load: each turn was late, each began every grace anew, and the attempts of a dead executor stayed."""
    patience = Patience(GRACE, now=0)
    now = 0.0
    for _ in range(100):
        now += 3 + 4
        patience.late(now, 4)
    allowed = patience.grace(now)
    assert allowed is not None
    assert GRACE + 4 <= allowed <= GRACE * (3 + 4) / 3 + 4


def test_lateness_is_credited_to_what_it_has_delayed_and_to_nothing_after_it() -> None:
    patience = Patience(GRACE, now=0)
    patience.late(50, 20)
    assert patience.grace(50) == GRACE + 20
    assert patience.grace(52.9) == GRACE + 20
    assert patience.grace(53.1) == GRACE


def test_a_little_late_is_not_late() -> None:
    patience = Patience(GRACE, now=0)
    patience.late(50, 0.1)
    assert patience.grace(50) == GRACE
