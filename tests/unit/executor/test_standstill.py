"""An executor that stood still takes nobody for silent before it has read what came meanwhile."""

import time
from collections.abc import Callable
from typing import cast

import pytest

from executor_service.attempts import Attempts
from executor_service.cut_off import CutOff
from executor_service.invocation import Invocation
from tests.unit.executor.fakes import invocation


class Timers:
    """Stands in for the timers of an attempt: the test says when they are due."""

    def __init__(self, attempt: Invocation, patch: pytest.MonkeyPatch) -> None:
        self._next: Callable[[], None] = lambda: None
        patch.setattr(attempt, "_after", self._after)

    def _after(self, _seconds: float, callback: Callable[..., None], *args: object, name: str) -> None:
        assert name == "silence"
        self._next = lambda: callback(*args)

    def fire(self) -> None:
        """The timer is due."""
        self._next()


def test_a_child_whose_output_lies_unread_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = invocation("e")
    timers = Timers(attempt, monkeypatch)
    for _ in range(3):
        attempt.last_activity = time.monotonic() - 100  # nothing was read for so long: we stood still
        attempt._check_silence(60)
        attempt.last_activity = time.monotonic()  # what lay there
        timers.fire()
        assert attempt._ending is None
    attempt.last_activity -= 100
    timers.fire()
    assert attempt._ending is None, "found silent once"
    timers.fire()
    assert attempt._ending is not None
    assert attempt._ending.reason == "TIMEOUT_SILENCE"


def test_a_scheduler_whose_frames_lie_unread_has_not_cut_us_off() -> None:
    attempt = invocation("e")
    cut_off = CutOff(cast(Attempts, [attempt]), kill=True)
    cut_off.welcomed(60)
    for _ in range(3):
        cut_off._heard_at = time.monotonic() - 100
        cut_off._tick()
        cut_off.heard()
        cut_off._tick()
        assert attempt.may_end
    cut_off._heard_at -= 100
    cut_off._tick()
    assert attempt.may_end, "found silent once"
    cut_off._tick()
    assert not attempt.may_end
