"""The fast path: a slot is taken before the append, the dispatch is in the append, the start follows the commit.

What gets no slot, or loses it to a fence, waits in the queue and is the dispatcher's.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import orjson

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from scheduler_service.dispatch.queue import Dispatcher
from scheduler_service.dispatch.sessions import Held, Reservation, Sessions
from scheduler_service.dispatch.work import POOLS, harness_of
from scheduler_service.iteration.rows import timestamp, work_of
from scheduler_service.replay.events import Event


class Asker(Protocol):
    """The run that asks for effects."""

    @property
    def run_id(self) -> str:
        """Its id."""

    @property
    def namespace(self) -> str:
        """Its namespace."""


Rows = Sequence[Mapping[str, Any]]
#: Slots taken for an append, by effect id.
Reservations = dict[str, Reservation]


class FastPath:
    """Takes slots for an append's requests, and sends what it committed."""

    def __init__(self, sessions: Sessions, dispatcher: Dispatcher) -> None:
        self._sessions = sessions
        self._dispatcher = dispatcher
        #: Set by the engine: hears of a cancel for an executor that is not connected here.
        self.on_cancel_elsewhere: Callable[[str], None] = lambda executor_id: None

    def reserve(self, run: Asker, rows: Sequence[dict[str, Any]]) -> Reservations:
        """Takes a slot for each request that can have one, and notes the dispatch in its row."""
        reservations: Reservations = {}
        for row in rows:
            x = row.get("x")
            if x is None or x["kind"] not in POOLS or x["not_before"] is not None:
                continue
            reservation = self._dispatcher.reserve(work_of(x, run.namespace))
            if reservation is not None:
                reservations[row["effect_id"]] = reservation
                x["dispatch"] = _dispatch_of(reservation)
        return reservations

    def give_back(self, reservations: Reservations) -> None:
        """Frees the slots of an append that was not committed."""
        for reservation in reservations.values():
            self._dispatcher.give_back(reservation)

    def send(self, run: Asker, rows: Rows, reservations: Reservations, events: Sequence[Event]) -> None:
        """Sends committed dispatches; requests that were queued instead go to the dispatcher."""
        dispatched = {event.effect_id for event in events if event.type == "EFFECT_DISPATCHED"}
        reused = {event.effect_id for event in events if event.type == "EFFECT_REUSED"}
        for row in rows:
            x = row.get("x")
            if x is None or x["kind"] not in POOLS or row["effect_id"] in reused:
                continue
            reservation = reservations.pop(row["effect_id"], None)
            if reservation is not None and row["effect_id"] in dispatched:
                if reservation.late:
                    self._dispatcher.give_back(reservation)
                    continue  # reconciliation finds it
                if x["group_id"] is not None:
                    self._dispatcher.in_group(row["effect_id"])
                self._start(run, row, reservation)
                continue
            if reservation is not None:
                self._dispatcher.give_back(reservation)
            not_before = timestamp(x["not_before"]).timestamp() if x["not_before"] else None
            grouped = x["group_id"] is not None
            work = work_of(x, run.namespace)
            self._dispatcher.queued(row["effect_id"], work, grouped=grouped, not_before=not_before)

    def send_cancels(self, run_id: str, cancels: Rows) -> None:
        """Sends committed cancels to the executors that are connected here; other replicas are told."""
        for cancel in cancels:
            session = self._sessions.get(cancel["executor_id"])
            if session is None:
                self.on_cancel_elsewhere(cancel["executor_id"])
                continue
            session.send_cancel(
                pb.CancelAttempt(
                    ref=pb.AttemptRef(effect_id=cancel["effect_id"], attempt=cancel["attempt"]),
                    reason=str(cancel.get("reason") or "").removeprefix("EFFECT_REASON_"),
                    message=cancel.get("message") or "",
                    run_id=run_id,
                )
            )

    def _start(self, run: Asker, row: Mapping[str, Any], reservation: Reservation) -> None:
        work = reservation.work
        start = pb.StartAttempt(
            run_id=run.run_id,
            effect_id=row["effect_id"],
            effect_key=row["effect_key"],
            attempt=1,
            token=reservation.token,
            harness=harness_of(reservation.harness),
            pool=work.pool,
            spec_json=orjson.dumps(row["data"]["spec"]),
            background=work.background,
            namespace=run.namespace,
            name=work.name,
        )
        if work.total_timeout_s is not None:
            start.total_remaining.FromNanoseconds(int(work.total_timeout_s * 1e9))
        held = Held(run.run_id, work.pool, work.background, reservation.token, time.monotonic())
        self._dispatcher.start(reservation.session, start, held)


def _dispatch_of(reservation: Reservation) -> dict[str, Any]:
    session = reservation.session
    return {
        "executor_id": session.executor_id,
        "incarnation": session.incarnation,
        "session_no": session.session_no,
        "token_hash": hashlib.sha256(reservation.token).hexdigest(),
        "harness": harness_of(reservation.harness),
    }
