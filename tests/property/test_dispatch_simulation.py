"""Schedules of the real state machines of dispatch, both sides, in made-up time; more by the module's command."""

import logging

import pytest

from tests.property import dispatch_simulation

SCHEDULES = 120


@pytest.mark.invariant("I1", "I2", "I3", "I13")
@pytest.mark.parametrize("first", [1, 10_001, 20_001])
def test_no_schedule_starts_anything_twice_or_leaves_anything_lying(first: int) -> None:
    logging.disable(logging.ERROR)
    try:
        assert dispatch_simulation.play(first, SCHEDULES) > SCHEDULES
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.invariant("I3")
@pytest.mark.parametrize("seed", [264, 511, 554, 884])
def test_schedules_that_once_started_an_attempt_which_never_started(seed: int) -> None:
    """A late hello, a claim that was answered late, a session that did not know of a newer one."""
    logging.disable(logging.ERROR)
    try:
        dispatch_simulation.play(seed, 1)
    finally:
        logging.disable(logging.NOTSET)
