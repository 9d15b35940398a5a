"""Circuit breakers of providers: listing, resetting, and which one an effect waits for."""

from collections.abc import Sequence
from datetime import datetime

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import operator_service_pb2 as pb
from scheduler_service.api import limits
from scheduler_service.api.checks import checked
from scheduler_service.api.convert import timestamp
from scheduler_service.api.engine import EngineApi
from scheduler_service.api.holds import OPERATOR
from scheduler_service.dispatch.work import harness_of
from scheduler_service.journal import Breaker, ResetBreakers
from scheduler_service.journal.client_reads import ClientReads
from scheduler_service.journal.client_views import EffectView, ExecutorView


class Breakers:
    """What operators ask about breakers."""

    def __init__(self, engine: EngineApi, reads: ClientReads) -> None:
        self._engine = engine
        self._reads = reads

    async def list(self) -> pb.ListBreakersResponse:
        """All of them, by name."""
        now = self._engine.journal.clock.read()
        return pb.ListBreakersResponse(breakers=[_message(one, now) for one in await self._reads.breakers()])

    async def reset(self, asked: ResetBreakers) -> pb.ResetBreakersResponse:
        """Closes those that match."""
        now = self._engine.journal.clock.read()
        closed = await self._engine.operations.reset_breakers(asked)
        return pb.ResetBreakersResponse(breakers=[_message(one, now) for one in closed])


def parse(request: pb.ResetBreakersRequest) -> ResetBreakers:
    """Parses ResetBreakers."""
    with checked() as check:
        return ResetBreakers(
            namespace=check.namespace(request.namespace, "namespace") if request.namespace else "",
            harness=check.text("harness", request.harness, limits.NAME_BYTES_MAX),
            account=check.text("account", request.account, limits.NAME_BYTES_MAX),
            executor_id=check.text("executor_id", request.executor_id, limits.NAME_BYTES_MAX),
            reason=check.text("reason", request.reason, limits.REASON_BYTES_MAX),
            actor=check.text("actor", request.actor, limits.ACTOR_BYTES_MAX) or OPERATOR,
        )


def breaker_on(
    effect: EffectView, able: Sequence[ExecutorView], breakers: Sequence[Breaker], now: datetime
) -> Breaker | None:
    """The breaker that an effect waits for, the one that ends first: None when a harness of it is free somewhere."""
    found: list[Breaker] = []
    for executor in able:
        for capability in effect.capabilities:
            if capability not in executor.capabilities:
                continue
            harness = harness_of(capability)
            which = (effect.namespace, harness, executor.executor_id, account_on(executor, harness))
            stopping = [one for one in breakers if one.stops(*which, now)]
            if not stopping:
                return None
            found.append(max(stopping, key=lambda one: one.until))
    return min(found, key=lambda one: one.until, default=None)


def account_on(executor: ExecutorView, harness: str) -> str:
    """The account that a harness has on an executor. Empty: not known."""
    return next((str(c.get("account", "")) for c in executor.harness_checks if c.get("name") == harness), "")


def described(breaker: Breaker, now: datetime) -> str:
    """A breaker in words."""
    account = f" (account {breaker.account})" if breaker.account else ""
    where = f" on executor {breaker.executor_id}" if breaker.executor_id else f" in namespace {breaker.namespace}"
    until = f"{breaker.until:%Y-%m-%d %H:%M:%S} UTC"
    if breaker.until > now:
        how = f"open until {until}"
    else:
        how = f"reset at {until}" if breaker.reset_known else f"half-open since {until}: one attempt a minute tries"
    return f"breaker of {breaker.harness}{account}{where}: {how}; {breaker.reason}: {breaker.message}"


def _state(breaker: Breaker, now: datetime) -> pb.Breaker.State.ValueType:
    if breaker.until > now:
        return pb.Breaker.STATE_OPEN
    return pb.Breaker.STATE_RESET if breaker.reset_known else pb.Breaker.STATE_HALF_OPEN


def _message(breaker: Breaker, now: datetime) -> pb.Breaker:
    return pb.Breaker(
        namespace=breaker.namespace,
        harness=breaker.harness,
        account=breaker.account,
        executor_id=breaker.executor_id,
        state=_state(breaker, now),
        reason=journal_pb2.EffectReason.Value(f"EFFECT_REASON_{breaker.reason}"),
        message=breaker.message,
        open_time=timestamp(breaker.opened_at),
        fail_time=timestamp(breaker.failed_at),
        until=timestamp(breaker.until),
        reset_known=breaker.reset_known,
    )
