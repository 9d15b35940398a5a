"""The progress log: positions, bounds, gaps; and what of the progress deserves a journal row."""

import asyncio

import pytest

from executor_service.line_protocol import Report
from executor_service.progress import FRAMES_MAX, OUTPUT_BYTES_MAX, OUTPUT_FRAMES_MAX, ProgressLog, ProgressState


def test_positions_are_dense_over_both_kinds() -> None:
    log, state = ProgressLog(), ProgressState(None)
    log.add_output(1, 0, b"a")
    log.add_progress(state)
    log.add_output(1, 1, b"b")
    assert [f.cursor for f in log.after(0, include_output=True, limit=10)] == [1, 2, 3]
    assert [f.cursor for f in log.after(0, include_output=False, limit=10)] == [2]
    assert [f.cursor for f in log.after(2, include_output=True, limit=10)] == [3]
    assert [f.cursor for f in log.after(0, include_output=True, limit=2)] == [1, 2]


def test_flood_of_output_does_not_displace_progress() -> None:
    log, state = ProgressLog(), ProgressState(None)
    log.add_progress(state)
    for n in range(100):
        log.add_output(1, n * 65_536, b"x" * 65_536)
    assert log.complete_after(include_output=False) == 0
    assert log.complete_after(include_output=True) > 0
    held = log.after(log.complete_after(include_output=True), include_output=True, limit=1000)
    assert sum(len(f.message().output.data) for f in held) <= OUTPUT_BYTES_MAX


def test_memory_is_bounded_in_frames_too() -> None:
    log, state = ProgressLog(), ProgressState(None)
    for n in range(5000):
        log.add_output(1, n, b"x")
        log.add_progress(state)
    assert len(log.after(0, include_output=False, limit=10_000)) == FRAMES_MAX
    assert len(log._output) <= OUTPUT_FRAMES_MAX


async def test_every_waiter_is_woken() -> None:
    log = ProgressLog()
    waiters = [asyncio.create_task(log.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    log.add_output(1, 0, b"x")
    await asyncio.wait_for(asyncio.gather(*waiters), 30)


def test_reports_merge_and_count() -> None:
    state = ProgressState(None)
    state.apply(Report(percent=10, step="one"))
    state.apply(Report(step_index=2))
    assert state.as_json() == {"ordinal": 2, "percent": 10, "step": "one", "step_index": 2}


def test_whole_percents_and_new_steps_are_durable() -> None:
    state = ProgressState(None)
    for report, durable in [
        (Report(percent=0.5), False),
        (Report(percent=1.2), True),
        (Report(percent=1.9), False),
        (Report(percent=2.3), True),
        (Report(eta_s=3), False),
    ]:
        state.apply(report)
        assert state.durable is durable
        state.note_recorded(durable=state.durable)


def test_steps_are_thinned_with_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten hours of a new step every second must not use up the budget of 100 rows in its first minutes."""
    now = 1000.0
    monkeypatch.setattr("executor_service.progress.time.monotonic", lambda: now)
    state, rows = ProgressState(None), 0
    for second in range(36_000):
        now = 1000.0 + second
        state.apply(Report(step=f"step {second}"))
        rows += state.durable
        state.note_recorded(durable=state.durable)
    assert 50 < rows <= 100


def test_estimate_counts_down_and_then_is_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("executor_service.progress.time.monotonic", lambda: now)
    state = ProgressState(10.0)
    now = 1004.0
    assert state.eta() == (6.0, True)
    now = 1011.0
    assert state.eta() == (None, False)
    state.apply(Report(eta_s=5))
    now = 1013.0
    assert state.eta() == (3.0, False)


def test_a_session_deserves_one_row() -> None:
    state = ProgressState(None)
    state.apply(Report(session_id="s-1", workspace="/w"))
    assert state.durable
    state.note_recorded(durable=True)
    state.apply(Report(session_id="s-1", workspace="/w"))
    assert not state.durable
    state.apply(Report(session_id="s-2"))
    assert state.durable, "the harness went on in another one"
