"""What a session may say of attempts that are not in its reports."""

import asyncio
import dataclasses
import time
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from scheduler_service.clock import DatabaseClock
from scheduler_service.dispatch.durations import Durations
from scheduler_service.dispatch.queue import Dispatcher
from scheduler_service.dispatch.reconcile import Reconciler
from scheduler_service.dispatch.sessions import LATE_SECONDS, Session
from scheduler_service.journal import Claimed, ClaimedAttempt, LostAttempt, OpenAttempt
from tests.property.dispatch_model import EPOCH, SPEC
from tests.unit.dispatch.test_sessions import among, session, work


class Journal:
    """Answers with these rows and claims; an answer may take its time."""

    def __init__(self, *rows: OpenAttempt, clock: Any = None) -> None:
        self._rows = list(rows)
        self._clock = clock

    async def open_attempts(self, _executor_id: str) -> list[OpenAttempt]:
        return self._rows

    async def stranded_attempts(self, _grace_s: float) -> list[OpenAttempt]:
        return []

    async def claim(self, _request: Any) -> Claimed:
        self._clock()
        claimed = ClaimedAttempt(
            token_index=0, run_id="r", effect_id="e", effect_key="e", attempt=1, name="sh", harness="shell",
            pool="shell", background=False, spec=SPEC, total_remaining_s=None, seq=1, recorded_at=EPOCH, data={},
            head_seq=1,
        )  # fmt: skip
        return Claimed([claimed], busy=False)


def row(*, session_no: int, age_s: float) -> OpenAttempt:
    return OpenAttempt(
        run_id="r", effect_id="e", key="e", name="sh", attempt=1, state="DISPATCHED", executor_id="x", incarnation="i",
        session_no=session_no, pool="shell", background=False, cancel_reason="", cancel_message="", age_s=age_s,
    )  # fmt: skip


async def lost_by(one: Session, *rows: OpenAttempt) -> list[LostAttempt]:
    """What is declared lost in one look at a session."""
    lost: list[LostAttempt] = []

    async def lose(item: LostAttempt) -> None:
        lost.append(item)

    reconciler = Reconciler(
        cast("Any", Journal(*rows)), among(one), epoch_of=lambda _: 1, lose=lose, freed=lambda _: None, grace_s=5,
        actor="s",
    )  # fmt: skip
    await reconciler._reconcile(one)
    return lost


async def test_what_no_report_has_for_long_was_never_started_and_the_session_that_says_so_must_be_the_newest() -> None:
    one = session(report_at=time.monotonic())
    [lost] = await lost_by(one, row(session_no=1, age_s=10))
    assert lost.never_started
    assert lost.executor_session == one.session_no


async def test_a_session_says_nothing_of_attempts_of_a_newer_one() -> None:
    """Found by simulation: a half-open session declared never started what ran in the session after it."""
    assert await lost_by(session(report_at=time.monotonic()), row(session_no=2, age_s=10)) == []


async def test_a_report_older_than_the_dispatch_says_nothing_of_it() -> None:
    assert await lost_by(session(report_at=time.monotonic() - 9), row(session_no=1, age_s=10)) == []


@pytest.mark.parametrize(("took", "starts"), [(0.0, 1), (LATE_SECONDS + 0.1, 0)])
async def test_a_claim_that_was_answered_late_is_left_to_reconciliation(
    monkeypatch: pytest.MonkeyPatch, took: float, starts: int
) -> None:
    """Found by simulation: declared never started while the answer was on its way, its attempts were then started."""
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def pass_time() -> None:
        now[0] += took

    one = session()
    journal = cast("Any", Journal(clock=pass_time))
    dispatcher = Dispatcher(journal, among(one), Durations(), DatabaseClock(), poll_s=1, session_wait_s=60, actor="s")
    await dispatcher._claim_for(one, polled=True)
    assert len(one.held) == starts
    assert one.pools["shell"].foreground_taken == starts


def test_a_reservation_grows_late() -> None:
    one = session()
    reservation = among(one).reserve(work())
    assert reservation is not None
    assert not reservation.late
    reservation.since -= LATE_SECONDS + 0.1
    assert reservation.late


class SlowJournal(Journal):
    """Commits no readoption before all of them are on their way."""

    def __init__(self, *rows: OpenAttempt) -> None:
        super().__init__(*rows)
        self._together = asyncio.Barrier(len(rows))

    async def readopt(self, _readoption: Any) -> str:
        await self._together.wait()
        return "ok"


@pytest.mark.invariant("I6")
async def test_an_executor_with_many_attempts_is_not_silent_while_its_hello_is_looked_at() -> None:
    """One commit after the other took longer than its silence was allowed to: it was cut, and began anew, for ever."""
    rows = [dataclasses.replace(row(session_no=1, age_s=10), effect_id=f"e{n}") for n in range(500)]
    one = session(session_no=2, last_frame=time.monotonic() - 100)
    sessions = among(one)
    assert list(sessions.lagging(12)) == [], "it may not say anything yet"
    reconciler = Reconciler(
        cast("Any", SlowJournal(*rows)), sessions, epoch_of=lambda _: 1, lose=AsyncMock(), freed=lambda _: None,
        grace_s=5, actor="s",
    )  # fmt: skip
    held = [pb.ReportedAttempt(ref=pb.AttemptRef(effect_id=one_row.effect_id, attempt=1)) for one_row in rows]
    async with asyncio.timeout(30):
        assert await reconciler.hello(one, pb.Hello(attempts=held)) == []
    assert list(sessions.lagging(12)) == [], "its silence counts from its welcome"
    one.last_frame -= 100
    assert list(sessions.lagging(12)) == [one]
