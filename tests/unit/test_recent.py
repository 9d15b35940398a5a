"""Samples of the last minute."""

import time

import pytest

from scheduler_service.recent import SAMPLES_MAX, Recent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_one_of_a_hundred_may_be_slower(clock: list[float]) -> None:
    recent = Recent()
    assert recent.p99() == 0.0
    for number in range(1, 101):
        recent.note(float(number))
    assert recent.p99() == 99.0
    assert len(recent.values()) == clock[0]


def test_what_is_old_counts_no_more(clock: list[float]) -> None:
    recent = Recent(seconds=10.0)
    recent.note(5.0)
    clock[0] += 8.0
    recent.note(1.0)
    assert recent.p99() == 5.0
    clock[0] += 8.0
    assert recent.values() == [1.0]


@pytest.mark.invariant("I11")
def test_the_newest_count_when_there_are_many() -> None:
    recent = Recent()
    for number in range(SAMPLES_MAX + 1):
        recent.note(float(number))
    assert (len(recent.values()), recent.values()[0]) == (SAMPLES_MAX, 1.0)
