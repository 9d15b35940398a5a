"""Holds on dispatch, the kill-switch: setting, releasing, listing, and which one an effect waits for."""

from collections.abc import Sequence

from backburner.scheduler.v1 import operator_service_pb2 as pb
from scheduler_service.api import limits
from scheduler_service.api.checks import Checks, checked
from scheduler_service.api.convert import timestamp
from scheduler_service.api.engine import EngineApi
from scheduler_service.errors import HoldNotFound, InvalidRequest, TooManyHolds, Violation
from scheduler_service.journal import Hold, SetHold
from scheduler_service.journal.client_reads import ClientReads
from scheduler_service.journal.client_views import EffectView, ExecutorView

#: Who did it when the caller does not say.
OPERATOR = "operator"


class Holds:
    """What operators ask about holds."""

    def __init__(self, engine: EngineApi, reads: ClientReads) -> None:
        self._engine = engine
        self._reads = reads

    async def set(self, asked: SetHold) -> pb.SetHoldResponse:
        """Sets or releases one."""
        outcome = await self._engine.operations.set_hold(asked)
        match outcome.outcome:
            case "past":
                raise InvalidRequest([Violation("hold.until", "is in the past, by the database's clock")])
            case "too_many":
                raise TooManyHolds
            case "not_found":
                raise HoldNotFound(asked.hold_id)
        assert outcome.hold is not None  # noqa: S101 - the other outcomes have one
        return pb.SetHoldResponse(hold=_message(outcome.hold))

    async def list(self) -> pb.ListHoldsResponse:
        """Those in force, oldest first."""
        return pb.ListHoldsResponse(holds=[_message(hold) for hold in await self._reads.holds()])


def parse(request: pb.SetHoldRequest) -> SetHold:
    """Parses SetHold."""
    asked = request.hold
    with checked() as check:
        reason = check.text("hold.reason", asked.reason, limits.REASON_BYTES_MAX)
        actor = check.text("hold.actor", asked.actor, limits.ACTOR_BYTES_MAX) or OPERATOR
        if request.release:
            return SetHold(hold_id=check.uuid("hold.hold_id", asked.hold_id), reason=reason, actor=actor, release=True)
        if asked.hold_id:
            check.refuse("hold.hold_id", "is only given for a release")
        return SetHold(
            namespace=check.namespace(asked.namespace, "hold.namespace") if asked.namespace else "",
            harness=check.text("hold.harness", asked.harness, limits.NAME_BYTES_MAX),
            executor_id=check.text("hold.executor_id", asked.executor_id, limits.NAME_BYTES_MAX),
            labels=_label(check, asked.label),
            until=check.time("hold.until", asked.until) if asked.HasField("until") else None,
            reason=reason,
            actor=actor,
        )


def hold_on(effect: EffectView, able: Sequence[ExecutorView], holds: Sequence[Hold]) -> Hold | None:
    """The hold that an effect waits for: None when one of its harnesses on an executor that is able is not held."""
    last: Hold | None = None
    executors = [executor.executor_id for executor in able] or [""]
    for capability in effect.capabilities:
        kind, _, name = capability.partition("/")
        harness = name if kind == "agent" else kind
        for executor_id in executors:
            by = (hold for hold in holds if hold.covers(effect.namespace, harness, executor_id, effect.labels))
            found = next(by, None)
            if found is None:
                return None
            last = last or found
    return last


def described(hold: Hold) -> str:
    """A hold in words."""
    parts = [
        f"{name} {value}"
        for name, value in (
            ("namespace", hold.namespace),
            ("harness", hold.harness),
            ("executor", hold.executor_id),
            ("label", _label_text(hold)),
        )
        if value
    ]
    said = f": {hold.reason}" if hold.reason else ""
    return f"{' and '.join(parts) or 'everything'} is held by {hold.actor}{said}"


def _label(check: Checks, label: str) -> dict[str, str]:
    name, equals, value = label.partition("=")
    if label and not equals:
        check.refuse("hold.label", "must be name=value")
        return {}
    return check.labels("hold.label", {name: value}) if label else {}


def _label_text(hold: Hold) -> str:
    return "".join(f"{name}={value}" for name, value in hold.labels.items())


def _message(hold: Hold) -> pb.Hold:
    return pb.Hold(
        hold_id=hold.hold_id,
        namespace=hold.namespace,
        harness=hold.harness,
        executor_id=hold.executor_id,
        label=_label_text(hold),
        until=timestamp(hold.until),
        reason=hold.reason,
        actor=hold.actor,
        create_time=timestamp(hold.created_at),
    )
