"""The rule of the fast path: what is queued and comes first is not overtaken."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from scheduler_service.clock import DatabaseClock
from scheduler_service.dispatch.durations import NAMES_MAX, Durations
from scheduler_service.dispatch.queue import Dispatcher, _ask
from scheduler_service.dispatch.sessions import Pool, Session
from tests.unit.dispatch.test_sessions import among, session, work

FOREGROUND, BACKGROUND = ("shell", False), ("shell", True)


def dispatcher(*sessions: Session) -> Dispatcher:
    return Dispatcher(
        cast("Any", None), among(*sessions), Durations(), DatabaseClock(), poll_s=1, session_wait_s=60, actor="test"
    )


@pytest.mark.parametrize(
    ("queued", "background", "granted"),
    [
        (set(), False, True),
        (set(), True, True),
        ({BACKGROUND}, False, True),  # foreground is not kept waiting by queued background
        ({BACKGROUND}, True, False),  # the queued one was first
        ({FOREGROUND}, True, False),  # foreground comes first
        ({FOREGROUND}, False, False),
        ({("functions", False), ("functions", True)}, True, True),  # another pool
    ],
)
def test_what_is_queued_decides_about_the_fast_path(
    queued: set[tuple[str, bool]], background: bool, granted: bool
) -> None:
    one = session(queued=queued)
    reservation = dispatcher(one).reserve(work(background=background))
    assert (reservation is not None) is granted
    taken = one.pools["shell"].foreground_taken + one.pools["shell"].background_taken
    assert taken == int(granted), "a refused reservation keeps its slot"


def test_a_queued_effect_marks_the_executors_that_could_take_it() -> None:
    able, unable = session("able"), session("unable", namespace="other")
    one = dispatcher(able, unable)
    one.queued("e", work(background=True), grouped=False)
    assert able.queued == {BACKGROUND}
    assert unable.queued == set()


async def test_an_effect_that_sleeps_hinders_nobody() -> None:
    able = session()
    one = dispatcher(able)
    one.queued("e", work(), grouped=False, not_before=4e9)
    assert able.queued == set()
    assert one.reserve(work()) is not None


def test_an_alarm_rings_by_the_clock_of_the_database() -> None:
    """Where that is behind ours, what is due by ours is not due yet, and a claim would bring nothing."""
    one = dispatcher(session())
    one._clock.learn(datetime.now(UTC) - timedelta(seconds=60))
    one.wake_at(time.time())
    assert one._alarms[0][0] - time.monotonic() > 30.0


def test_settling_within_a_group_asks_for_its_queued_members() -> None:
    able = session()
    one = dispatcher(able)
    one.queued("a", work(), grouped=True)
    one.queued("b", work(), grouped=True)
    able.queued.clear()
    one.settled("a")
    assert able.queued == {FOREGROUND}
    able.queued.clear()
    one.settled("b")
    assert able.queued == set()


def test_a_connected_session_is_ready_and_asks_for_everything() -> None:
    new = session(ready=False)
    dispatcher(new).connected(new)
    assert new.ready
    assert new.queued == {FOREGROUND, BACKGROUND}


@pytest.mark.parametrize(
    ("queued", "polled", "ask"),
    [
        (set(), False, None),
        ({FOREGROUND}, False, (8, 0)),
        ({BACKGROUND}, False, (4, 4)),
        ({FOREGROUND, BACKGROUND}, False, (8, 4)),
        (set(), True, (4, 4)),  # a poll leaves room for the fast path
    ],
)
def test_what_is_asked_for(queued: set[tuple[str, bool]], polled: bool, ask: tuple[int, int] | None) -> None:
    one = session(slots=8, background=4, queued=queued)
    asked = _ask(one, "shell", one.pools["shell"], polled=polled)
    assert (asked and (asked.foreground, asked.background)) == ask


def test_a_full_pool_asks_for_nothing() -> None:
    one = session(queued={FOREGROUND, BACKGROUND}, pools={"shell": Pool(2, 1, foreground_taken=2)})
    assert _ask(one, "shell", one.pools["shell"], polled=True) is None


@pytest.mark.invariant("I11")
def test_durations_are_bounded_by_name_and_number() -> None:
    durations = Durations()
    for i in range(NAMES_MAX + 10):
        durations.note("default", f"name-{i}", 1.0)
    assert durations.median("default", "name-0") is None
    for i in range(1000):
        durations.note("default", "busy", float(i))
    assert durations.median("default", "busy") == 989
    assert durations.median("other", "busy") is None
