"""Slots and outboxes of sessions against a model of them: any sequence of reservations, starts, ends and reports."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from scheduler_service.dispatch.sessions import Held, Pool, Ref, Reservation, Session, Sessions
from scheduler_service.dispatch.work import Work

SLOTS, BACKGROUND_SLOTS = 4, 2
EXECUTORS = ("a", "b")


class Machine(RuleBasedStateMachine):
    """Two executors with one pool; the model is a list of reservations, and a dict of what holds a slot where."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions = Sessions()
        self.reservations: list[Reservation] = []
        self.held: dict[str, dict[Ref, bool]] = {}
        self.queued: dict[str, list[Ref]] = {}
        self.foreign: dict[str, int] = {}
        self.count = 0
        for name in EXECUTORS:
            self._connect(name)

    def _connect(self, name: str) -> None:
        session = Session(
            executor_id=name, incarnation="i", session_no=1, namespace="default", address="", version="",
            capabilities=frozenset({"shell"}), labels={}, pools={"shell": Pool(SLOTS, BACKGROUND_SLOTS)}, ready=True,
        )  # fmt: skip
        self.sessions.add(session)
        self.held[name], self.queued[name], self.foreign[name] = {}, [], 0

    def _session(self, name: str) -> Session:
        session = self.sessions.get(name)
        assert session is not None
        return session

    def _taken(self, name: str, *, background: bool | None = None) -> int:
        reserved = [r.work.background for r in self.reservations if r.session is self._session(name)]
        return [background in (None, item) for item in [*reserved, *self.held[name].values()]].count(True)

    def _room(self, name: str, *, background: bool) -> int:
        room = SLOTS - self._taken(name) - self.foreign[name]
        share = BACKGROUND_SLOTS - self._taken(name, background=True)
        return max(0, min(room, share)) if background else room

    @rule(background=st.booleans())
    def reserve(self, background: bool) -> None:
        """A slot is given exactly when there is one, on the executor with the most room."""
        rooms = {name: self._room(name, background=background) for name in EXECUTORS}
        work = Work("SHELL", "sh", "shell", ("shell",), background, {}, None, False, "default")
        reservation = self.sessions.reserve(work)
        if reservation is None:
            assert max(rooms.values()) <= 0
        else:
            assert rooms[reservation.session.executor_id] == max(rooms.values())
            self.reservations.append(reservation)

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        """The dispatch is committed: the attempt holds the slot and its start is sent."""
        reservation = self._drawn(data, self.reservations)
        if reservation is None:
            return
        self.reservations.remove(reservation)
        session: Session = reservation.session
        background = reservation.work.background
        if session is not self.sessions.get(session.executor_id):
            return  # the session ended meanwhile: its slots went with it
        ref = self._new_ref()
        session.hold(ref, Held("run", "shell", background, reservation.token, 0.0))
        session.send_start(ref, pb.StartAttempt(effect_id=ref[0], attempt=ref[1]))
        self.held[session.executor_id][ref] = background
        self.queued[session.executor_id].append(ref)

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        """The dispatch was not committed."""
        reservation = self._drawn(data, self.reservations)
        if reservation is not None:
            self.reservations.remove(reservation)
            self.sessions.cancel_reservation(reservation)

    @rule(name=st.sampled_from(EXECUTORS), background=st.booleans())
    def adopt(self, name: str, background: bool) -> None:
        """An attempt of an earlier session is taken over, once however often it is reported."""
        ref = self._new_ref()
        for _ in range(2):
            self._session(name).adopt(ref, Held("run", "shell", background, b"", 0.0))
        self.held[name][ref] = background

    @rule(name=st.sampled_from(EXECUTORS), data=st.data())
    def release(self, name: str, data: st.DataObject) -> None:
        """The attempt ends: its slot is free, once, and late news of it is still taken."""
        ref = self._drawn(data, list(self.held[name]))
        if ref is None:
            return
        del self.held[name][ref]
        assert self._session(name).release(ref)
        assert not self._session(name).release(ref)
        assert self._session(name).was_given(ref, "run")
        assert not self._session(name).was_given(ref, "another run")

    @rule(name=st.sampled_from(EXECUTORS), unknown=st.integers(0, 2), ended=st.integers(0, 2), data=st.data())
    def report(self, name: str, unknown: int, ended: int, data: st.DataObject) -> None:
        """What it reports and nobody here counts takes a slot for as long as it is reported, unless it has ended."""
        known = data.draw(st.sets(st.sampled_from(sorted(self.held[name])))) if self.held[name] else set()
        running, finished = executor_pb.Attempt.STATE_RUNNING, executor_pb.Attempt.STATE_FINISHED
        told = [(ref, running) for ref in known]
        told += [(self._new_ref(), running) for _ in range(unknown)] + [
            (self._new_ref(), finished) for _ in range(ended)
        ]
        self._session(name).note_report(
            pb.ReportedAttempt(ref=pb.AttemptRef(effect_id=ref[0], attempt=ref[1]), state=state, pool="shell")
            for ref, state in told
        )
        self.foreign[name] = unknown

    @rule(name=st.sampled_from(EXECUTORS))
    def send(self, name: str) -> None:
        """Every start that was queued is sent, once and in order, under the session's number."""
        frames = list(self._session(name).take_frames())
        starts = [(start.effect_id, start.attempt) for frame in frames for start in frame.start.attempts]
        assert starts == self.queued[name]
        assert all(frame.start.session_no == 1 for frame in frames)
        self.queued[name] = []

    @rule(name=st.sampled_from(EXECUTORS))
    def reconnect(self, name: str) -> None:
        """A new session begins with nothing; the older one is closed and cannot remove it."""
        older = self._session(name)
        self._connect(name)
        assert older.closed
        assert not self.sessions.remove(older)

    @invariant()
    def slots_add_up(self) -> None:
        for name in EXECUTORS:
            pool = self._session(name).pools["shell"]
            assert pool.foreground_taken == self._taken(name, background=False)
            assert pool.background_taken == self._taken(name, background=True)
            assert pool.foreign == self.foreign[name]

    def _new_ref(self) -> Ref:
        self.count += 1
        return (f"effect-{self.count}", 1)

    @staticmethod
    def _drawn(data: st.DataObject, items: list[Any]) -> Any:
        return data.draw(st.sampled_from(items)) if items else None


@pytest.mark.invariant("I11")
def test_slots_and_outboxes_do_what_the_model_does() -> None:
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)
    )
