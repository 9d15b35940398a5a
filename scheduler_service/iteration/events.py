"""Events and errors as the loop takes them, from what appends, claims, notices and the iteration thread answer."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from scheduler_service.errors import InvalidRequest, Violation
from scheduler_service.iteration.worker import Blocked
from scheduler_service.journal import ClaimedAttempt
from scheduler_service.replay import Event, parked_error


def event_of_row(row: Mapping[str, Any], seq: int, recorded_at: datetime, actor: str) -> Event:
    """A row that this replica appended."""
    return Event(
        seq=seq,
        type=row["type"],
        recorded_at=recorded_at,
        cause=row.get("cause") or 0,
        effect_id=row.get("effect_id") or "",
        effect_key=row.get("effect_key") or "",
        attempt=row.get("attempt") or 0,
        actor=actor,
        data=row["data"],
    )


def event_of_notice(row: pb.JournaledEvent, actor: str) -> Event:
    """A row that an executor has committed, as its notice tells. Raises InvalidRequest when it cannot be one."""
    try:
        recorded_at, data = _time_of(row.recorded_at_us), orjson.loads(row.data_json)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(
            [Violation("journaled.events", f"{row.type} of effect {row.effect_id}: {error}")]
        ) from error
    if not isinstance(data, dict):
        raise InvalidRequest([Violation("journaled.events", f"{row.type} of effect {row.effect_id}: no JSON object")])
    return Event(
        seq=row.seq,
        type=row.type,
        recorded_at=recorded_at,
        cause=0,
        effect_id=row.effect_id,
        effect_key=row.effect_key,
        attempt=row.attempt,
        actor=actor,
        data=data,
    )


def _time_of(microseconds: int) -> datetime:
    whole, rest = divmod(microseconds, 1_000_000)
    return datetime.fromtimestamp(whole, UTC).replace(microsecond=rest)


def event_of_claim(attempt: ClaimedAttempt, actor: str) -> Event:
    """The dispatch that a claim has committed."""
    return Event(
        seq=attempt.seq,
        type="EFFECT_DISPATCHED",
        recorded_at=attempt.recorded_at,
        cause=0,
        effect_id=attempt.effect_id,
        effect_key=attempt.effect_key,
        attempt=attempt.attempt,
        actor=actor,
        data=attempt.data,
    )


def error_of(result: Blocked | BaseException) -> dict[str, Any]:
    """The RunError of a step that blocked or raised outside process code."""
    if isinstance(result, Blocked):
        message = (
            f"{result.line}: a step of process code ran for {result.seconds:.1f} s without waiting, and holds up all "
            "runs of its scheduler; move long computation and blocking calls into a @bb.function"
        )
        return {"kind": "BLOCKED", "message": message, "traceback": result.stack[-16_000:]}
    return parked_error(result)
