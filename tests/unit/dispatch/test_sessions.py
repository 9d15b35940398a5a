"""Slots, the choice of an executor, and the bounded outbox of a session."""

from dataclasses import replace

import pytest

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from scheduler_service.dispatch import sessions as module
from scheduler_service.dispatch.sessions import Held, Pool, Session, Sessions
from scheduler_service.dispatch.work import Work


def session(name: str = "x", slots: int = 4, background: int = 2, **fields: object) -> Session:
    made = Session(
        executor_id=name, incarnation="i", session_no=1, namespace="default", address="", version="",
        capabilities=frozenset({"shell"}), labels={}, pools={"shell": Pool(slots, background)},
    )  # fmt: skip
    made.ready = True
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def work(*capabilities: str, background: bool = False, namespace: str = "default", **labels: str) -> Work:
    return Work("SHELL", "sh", "shell", capabilities or ("shell",), background, labels, None, False, namespace)


def among(*several: Session) -> Sessions:
    made = Sessions()
    for one in several:
        made.add(one)
    return made


def test_newer_session_of_an_executor_counts_whichever_is_added_first() -> None:
    """Two hellos may be on their way at a time, and the older arrive last."""
    older, newer = session(session_no=1, incarnation="a"), session(session_no=2, incarnation="b")
    made = Sessions()
    assert made.add(newer)
    assert not made.add(older)
    assert (older.superseded_by, newer.superseded_by) == ("b", "")
    assert made.get("x") is newer
    newest = session(session_no=3, incarnation="c")
    assert made.add(newest)
    assert newer.superseded_by == "c"
    assert newer.closed


@pytest.mark.parametrize(
    ("slots", "share", "foreground", "taken", "free"),
    [
        (8, 4, 0, 0, 4),  # the share
        (8, 4, 6, 0, 2),  # the room
        (8, 4, 0, 4, 0),  # the share is used up
        (8, 8, 0, 0, 7),  # never the last of several
        (2, 2, 0, 0, 1),
        (2, 0, 0, 0, 1),  # a share of nothing would starve background for ever
        (1, 1, 0, 0, 1),  # the only slot there is
        (1, 0, 0, 0, 1),
        (1, 1, 1, 0, 0),
        (0, 0, 0, 0, 0),
        (4, 2, 5, 0, 0),  # more is taken than there is, after an adoption
    ],
)
def test_room_for_background(slots: int, share: int, foreground: int, taken: int, free: int) -> None:
    pool = Pool(slots, share, foreground_taken=foreground, background_taken=taken)
    assert pool.free(background=True) == free


def test_room_for_foreground_counts_claims_on_their_way() -> None:
    pool = Pool(8, 4, foreground_taken=1, background_taken=2, claiming=3)
    assert pool.free(background=False) == 2


def test_a_claim_on_its_way_takes_of_the_share_of_background() -> None:
    pool = Pool(8, 4, claiming=4, claiming_background=4)
    assert pool.free(background=True) == 0
    assert pool.free(background=False) == 4


def test_the_executor_with_the_most_room_is_chosen() -> None:
    small, large = session("small", slots=2), session("large", slots=9)
    reservation = among(small, large).reserve(work())
    assert reservation is not None
    assert reservation.session is large
    assert large.pools["shell"].foreground_taken == 1
    assert len(reservation.token) == 16


def test_the_preferred_alternative_is_chosen_before_the_most_room() -> None:
    preferred = session("preferred", slots=1, capabilities=frozenset({"agent/codex"}))
    fallback = session("fallback", slots=9, capabilities=frozenset({"agent/claude-code"}))
    several = among(fallback, preferred)
    wanted = work("agent/codex", "agent/claude-code")
    first, second = several.reserve(wanted), several.reserve(wanted)
    assert first is not None
    assert second is not None
    assert (first.session, first.harness) == (preferred, "agent/codex")
    assert (second.session, second.harness) == (fallback, "agent/claude-code")


def test_a_session_is_continued_where_it_is_or_not_at_once() -> None:
    home = session("home", slots=1, capabilities=frozenset({"agent/claude-code"}))
    large = session("large", slots=9, capabilities=frozenset({"agent/codex"}))
    several = among(large, home)
    wanted = replace(work("agent/codex", "agent/claude-code"), continues_on="home")
    taken = [reservation.session for _ in range(2) if (reservation := several.reserve(wanted))]
    assert taken == [home], "the claim decides how long it waits for a slot there"


@pytest.mark.parametrize(
    "unfit",
    [
        {"draining": True},
        {"closed": "gone"},
        {"ready": False},
        {"namespace": "other"},
        {"labels": {"gpu": "no"}},
        {"labels": {}},
        {"capabilities": frozenset({"function/shell"})},
        {"pools": {"functions": Pool(4, 2)}},
        {"pools": {"shell": Pool(0, 0)}},
    ],
    ids=str,
)
def test_an_unfit_executor_gets_nothing(unfit: dict[str, object]) -> None:
    fit = session("fit", slots=1, labels={"gpu": "yes", "zone": "b"})
    other = session("unfit", **({"slots": 9, "labels": {"gpu": "yes"}} | unfit))  # type: ignore[arg-type]
    several = among(other, fit)
    reservation = several.reserve(work(gpu="yes"))
    assert reservation is not None
    assert reservation.session is fit
    assert several.reserve(work(gpu="yes")) is None


def test_a_reservation_that_is_given_back_leaves_no_trace() -> None:
    one = session(slots=1)
    several = among(one)
    reservation = several.reserve(work(background=True))
    assert reservation is not None
    assert several.reserve(work()) is None
    several.cancel_reservation(reservation)
    assert (one.pools["shell"].background_taken, one.pools["shell"].foreground_taken) == (0, 0)


def test_a_slot_is_released_once() -> None:
    one = session()
    one.adopt(("e", 1), Held("r", "shell", True, b"", 0.0))
    one.adopt(("e", 1), Held("r", "shell", True, b"", 0.0))
    assert one.pools["shell"].background_taken == 1
    assert one.release(("e", 1))
    assert not one.release(("e", 1))
    assert one.pools["shell"].background_taken == 0


def test_an_attempt_of_a_pool_that_is_gone_can_be_adopted() -> None:
    one = session()
    one.adopt(("e", 1), Held("r", "agents", False, b"", 0.0))
    assert one.release(("e", 1))


@pytest.mark.invariant("I11")
def test_an_outbox_that_is_not_read_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUTBOX_MAX", 10)
    one = session()
    for i in range(11):
        assert not one.closed
        one.send_start((str(i), 1), pb.StartAttempt(effect_id=str(i), attempt=1))
    assert "outbox full" in one.closed
    assert among(one).reserve(work()) is None


@pytest.mark.invariant("I11")
def test_starts_go_down_in_messages_of_bounded_size() -> None:
    one = session()
    sizes = [10] * 450 + [1_500_000] * 3 + [3_000_000, 10]
    for i, size in enumerate(sizes):
        one.send_start((str(i), 1), pb.StartAttempt(effect_id=str(i), attempt=1, spec_json=b"x" * size))
    one.send_cancel(pb.CancelAttempt(ref=pb.AttemptRef(effect_id="c", attempt=1)))
    frames = list(one.take_frames())
    assert frames[0].WhichOneof("frame") == "cancel", "a cancel waits behind starts"
    batches = [[len(a.spec_json) for a in frame.start.attempts] for frame in frames[1:]]
    assert [size for batch in batches for size in batch] == sizes
    assert all(len(batch) <= module.STARTS_PER_MESSAGE for batch in batches)
    assert all(sum(batch) <= module.START_BYTES_PER_MESSAGE for batch in batches if len(batch) > 1)
    assert list(one.take_frames()) == []


def test_a_cancel_carries_the_secret_and_is_thinned() -> None:
    one = session()
    one.adopt(("e", 1), Held("r", "shell", False, b"secret", 0.0))
    for _ in range(5):
        one.send_cancel(pb.CancelAttempt(ref=pb.AttemptRef(effect_id="e", attempt=1)))
    [frame] = one.take_frames()
    assert [cancel.token for cancel in frame.cancel.attempts] == [b"secret"]


def test_a_newer_session_takes_the_place_of_the_older() -> None:
    older, newer = session(), session()
    several = among(older, newer)
    assert older.closed
    assert not several.remove(older), "the end of the older is not the executor's"
    assert several.get("x") is newer
    assert several.remove(newer)
    assert len(several) == 0


@pytest.mark.invariant("I5")
def test_void_session_brings_no_news_and_is_in_no_newer_ones_way() -> None:
    """In another life of the database its number, and those of its attempts, may be given anew."""
    old = session(session_no=7)
    made = among(old)
    old.hold(("e", 1), Held("run", "shell", False, b"", 0.0))
    old.hold(("f", 1), Held("run", "shell", False, b"", 0.0))
    old.release(("f", 1))
    assert old.was_given(("e", 1), "run")
    assert old.was_given(("f", 1), "run")
    old.void("another life")
    made.remove(old)
    assert not old.was_given(("e", 1), "run")
    assert not old.was_given(("f", 1), "run")
    assert old.closed == "another life"
    newer = session(session_no=7)
    assert made.add(newer)
    assert not made.remove(old), "its end would be taken for that of the newer one"
