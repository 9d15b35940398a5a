"""The memory of attempts: what it holds at its bounds, and what it does not claim beyond them."""

import pytest

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service import memory
from executor_service.memory import Memory


@pytest.mark.invariant("I3")
def test_no_attempt_up_to_the_highest_is_taken_again() -> None:
    seen = Memory()
    seen.note(("a", 2))
    assert ("a", 1) in seen, "an older attempt of the effect must not start after a newer one"
    assert ("a", 2) in seen
    assert ("a", 3) not in seen
    seen.note(("a", 1))  # a late end of an older attempt
    assert ("a", 2) in seen


def test_the_oldest_effect_is_forgotten_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "EFFECTS_MAX", 3)
    seen = Memory()
    for effect in "abc":
        seen.note((effect, 1))
    seen.note(("a", 1))  # a long one, which ends after the others were taken
    seen.note(("d", 1))
    assert [(e, 1) in seen for e in "abcd"] == [True, False, True, True]
    assert len(seen) == 3


def test_attempts_of_one_effect_cost_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "EFFECTS_MAX", 2)
    seen = Memory()
    seen.note(("a", 1))
    for attempt in range(1, 1000):
        seen.note(("b", attempt))
    assert ("a", 1) in seen


def test_notices_are_bounded_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "NOTICES_MAX", 3)
    monkeypatch.setattr(memory, "NOTICE_BYTES_MAX", 100)
    seen = Memory()
    for n in range(5):
        seen.keep_notice(("a", n), pb.JournaledEvent(seq=n, data_json=b"x"))
    assert [n for n in range(5) if seen.notice(("a", n))] == [2, 3, 4]
    seen.keep_notice(("a", 4), pb.JournaledEvent(seq=9, data_json=b"x" * 99))
    assert [n for n in range(5) if seen.notice(("a", n))] == [3, 4]
    seen.keep_notice(("b", 1), pb.JournaledEvent(data_json=b"x" * 101))
    assert seen.notice(("b", 1)) is None, "one that is larger than all may be together"
    assert seen.notice(("a", 4)) is None
