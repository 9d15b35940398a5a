"""SettleEffect: an operator settles what is stuck, by hand."""

import time
from dataclasses import dataclass, replace
from typing import Any, Final

from backburner.scheduler.v1 import operator_service_pb2 as pb
from backburner.scheduler.v1 import scheduler_service_pb2 as client_pb
from scheduler_service.api import limits
from scheduler_service.api.checks import checked
from scheduler_service.api.effect_requests import Resolution, resolution
from scheduler_service.api.effects import Effects, stored_result
from scheduler_service.api.engine import EngineApi
from scheduler_service.api.holds import OPERATOR
from scheduler_service.errors import AttemptSuperseded, EffectSettled, EffectWithoutExecutor
from scheduler_service.journal import SettleOrder
from scheduler_service.journal.client_views import EffectView

#: How long an answer waits for the owner of the run to do it; the order stands whatever becomes of the call.
_WAIT_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class Settlement:
    """SettleEffect. `attempt`: the one that was seen; None: the newest."""

    resolution: Resolution
    attempt: int | None
    reason: str


class Settlements:
    """Settles by hand, through the owner of the run."""

    def __init__(self, engine: EngineApi, effects: Effects) -> None:
        self._engine = engine
        self._effects = effects

    async def settle(self, asked: Settlement) -> pb.SettleEffectResponse:
        """Orders it, and waits a little until it is done."""
        effect = await self._effects.read(asked.resolution.effect, full=False)
        outcome = await self._engine.operations.order_settlement(_order(asked, effect))
        if outcome != "ok":
            effect = await self._effects.read(asked.resolution.effect)
        match outcome:
            case "settled":
                raise EffectSettled(effect.effect_id, effect.state)
            case "no_executor":
                raise EffectWithoutExecutor(effect.effect_id, effect.kind)
            case "other_attempt":
                raise AttemptSuperseded(effect.effect_id, asked.attempt or 0, effect.attempt)
        effect = await self._until_settled(asked)
        return pb.SettleEffectResponse(effect=await self._effects.message(effect))

    async def _until_settled(self, asked: Settlement) -> EffectView:
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            effect = await self._effects.read(asked.resolution.effect)
            if effect.settled_seq or time.monotonic() >= deadline:
                return effect
            await self._engine.wait_head(effect.run_id, self._engine.head(effect.run_id), _LOOK_SECONDS)


def parse(request: pb.SettleEffectRequest) -> Settlement:
    """Parses SettleEffect."""
    same = client_pb.ResolveEffectRequest(effect=request.effect, namespace=request.namespace, actor=request.actor)
    if request.WhichOneof("outcome") == "succeeded":
        same.succeeded.CopyFrom(request.succeeded)
    elif request.WhichOneof("outcome") == "failed":
        same.failed.CopyFrom(request.failed)
    with checked() as check:
        reason = check.text("reason", request.reason, limits.REASON_BYTES_MAX)
        attempt = check.not_negative("attempt", request.attempt) if request.HasField("attempt") else None
    return Settlement(replace(resolution(same), actor=request.actor or OPERATOR), attempt, reason)


def _order(asked: Settlement, effect: EffectView) -> SettleOrder:
    data: dict[str, Any] = {}
    result, blob_text = stored_result(asked.resolution.result)
    if result is not None:
        data["result"] = result
    if asked.resolution.error is not None:
        data["error"] = asked.resolution.error
    return SettleOrder(
        effect_id=effect.effect_id,
        attempt=effect.attempt if asked.attempt is None else asked.attempt,
        state=asked.resolution.state,
        data=data,
        blob_text=blob_text,
        reason=asked.reason,
        actor=asked.resolution.actor,
    )
