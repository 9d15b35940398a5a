"""Effects: get, list, wait, cancel, resolve."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api import limits
from scheduler_service.api.callers import Callers
from scheduler_service.api.convert import effect_message
from scheduler_service.api.effect_requests import EffectList, EffectQuery, EffectRef, EffectsWait, Resolution
from scheduler_service.api.engine import EngineApi
from scheduler_service.api.pages import encode_token
from scheduler_service.api.presence import Presence
from scheduler_service.api.run_requests import RunRef
from scheduler_service.api.runs import ACTOR, Runs
from scheduler_service.api.sizes import fitted, page_of, within_answer
from scheduler_service.api.waiting import Situations, complete
from scheduler_service.api.waits import wait_until
from scheduler_service.errors import (
    Draining,
    EffectHasExecutor,
    EffectNotFound,
    EffectSettled,
    InvalidRequest,
    RunClosed,
    Violation,
)
from scheduler_service.journal import CancelRequest, ResolveRequest
from scheduler_service.journal.client_reads import ClientReads
from scheduler_service.journal.client_views import EffectView
from scheduler_service.journal.payloads import stored


class Effects:
    """What clients do with effects."""

    def __init__(
        self,
        engine: EngineApi,
        reads: ClientReads,
        *,
        situations: Situations,
        runs: Runs,
        callers: Callers,
        presence: Presence,
    ) -> None:
        self._presence = presence
        self._engine = engine
        self._reads = reads
        self._situations = situations
        self._runs = runs
        self._callers = callers

    async def read(self, ref: EffectRef, *, full: bool = True) -> EffectView:
        """An effect. Raises EffectNotFound."""
        filters = {"namespace": ref.namespace, "effect_id": ref.effect_id, "run_id": ref.run_id}
        if ref.key:
            filters["keys"] = [ref.key]  # type: ignore[assignment]
        page = await self._reads.effects(limit=1, full=full, filters=filters)
        if not page.rows:
            raise EffectNotFound(ref.namespace, effect_id=ref.effect_id, run_id=ref.run_id, key=ref.key)
        self._presence.seen(page.rows[0].run_id)
        return page.rows[0]

    async def message(self, effect: EffectView) -> pb.Effect:
        """An effect as a message, with what it waits for."""
        return fitted(complete(effect_message(effect), effect, await self._situations.now()))

    async def get(self, asked: EffectQuery) -> pb.GetEffectResponse:
        """One effect."""
        if asked.client_epoch:
            await self.admit(asked.effect, asked.client_epoch)
        return pb.GetEffectResponse(effect=await self.message(await self.read(asked.effect, full=asked.full)))

    async def admit(self, ref: EffectRef, client_epoch: int) -> EffectView:
        """The effect that a call is about; one with an epoch is its run's client's."""
        effect = await self.read(ref, full=False)
        await self._callers.admit(RunRef(effect.namespace, effect.run_id), client_epoch)
        return effect

    async def page(self, asked: EffectList) -> pb.ListEffectsResponse:
        """A page of effects, newest first."""
        filters: dict[str, Any] = asdict(asked.filter)
        if asked.before is not None:
            filters |= {"before_time": datetime.fromisoformat(asked.before[0]), "before_id": asked.before[1]}
        if asked.filter.run_id:
            self._presence.seen(asked.filter.run_id)
        page = await self._reads.effects(
            limit=asked.page_size, bytes_max=limits.ANSWER_BYTES_MAX, full=asked.full, filters=filters
        )
        messages = page_of(await self._messages(page.rows))
        answer = pb.ListEffectsResponse(effects=messages)
        if page.more or len(messages) < len(page.rows):
            last = page.rows[len(messages) - 1]
            position = (last.requested_at.isoformat(), last.effect_id)
            answer.next_page_token = encode_token(position, asdict(asked.filter))
        return answer

    async def wait(self, asked: EffectsWait, seconds: float) -> pb.WaitEffectsResponse:
        """The named effects once any or all have settled, or as they are when the time is over."""
        if self._engine.draining:
            raise Draining(self._engine.scheduler_id)
        names = sorted(set(asked.keys))
        await self._callers.admit(asked.run, asked.client_epoch)
        run = await self._runs.read(asked.run, full=False)
        known, _ = await self._reads.unsettled(run.run_id, names)
        if known < len(names):
            await self._refuse_unknown(asked.run, list(dict.fromkeys(asked.keys)))

        async def read() -> tuple[None, bool, int]:
            if run.client_driven:
                self._presence.seen(run.run_id)
            seen = self._engine.head(run.run_id)
            known, unsettled = await self._reads.unsettled(run.run_id, names)
            return None, unsettled < known if asked.any_of_them else unsettled == 0, seen

        _, timed_out = await wait_until(partial(self._engine.wait_head, run.run_id), read, seconds, self._leaving)
        effects = await self.all_of(asked.run, list(dict.fromkeys(asked.keys)))
        return pb.WaitEffectsResponse(effects=effects, timed_out=timed_out)

    def _leaving(self) -> bool:
        return self._engine.draining

    async def all_of(self, run: RunRef, keys: Sequence[str]) -> list[pb.Effect]:
        """The named effects in this order; specs and results that do not fit are left to GetEffect."""
        filters = {"namespace": run.namespace, "run_id": run.run_id, "keys": keys}
        full = await self._reads.effects(limit=len(keys), bytes_max=limits.ANSWER_BYTES_MAX, full=True, filters=filters)
        rows = full.rows
        if full.more:
            known = {row.key for row in rows}
            plain = await self._reads.effects(limit=len(keys), bytes_max=1 << 30, filters=filters)
            rows = [*rows, *(row for row in plain.rows if row.key not in known)]
        by_key = {message.key: message for message in await self._messages(rows)}
        return within_answer([by_key[key] for key in keys])

    async def cancel(self, ref: EffectRef, reason: str) -> pb.CancelEffectResponse:
        """Makes the cancel of an effect durable."""
        effect = await self.read(ref, full=False)
        outcome = await self._engine.request_cancel(
            CancelRequest(
                run_id=effect.run_id,
                effect_id=effect.effect_id,
                reason="EFFECT_REASON_CANCELLED_BY_USER",
                message=reason,
                actor=ACTOR,
            )
        )
        effect = await self.read(ref)
        if outcome.outcome == "settled" and effect.state != "CANCELLED":
            raise EffectSettled(effect.effect_id, effect.state)
        if outcome.outcome == "run_closed" and effect.state != "CANCELLED":
            raise RunClosed(effect.run_id, effect.run_state)
        return pb.CancelEffectResponse(effect=await self.message(effect))

    async def resolve(self, asked: Resolution) -> pb.ResolveEffectResponse:
        """Settles an external effect."""
        effect = await self.read(asked.effect)
        if effect.kind != "EXTERNAL":
            raise EffectHasExecutor(effect.effect_id, effect.kind)
        _check_choice(effect, asked)
        result, blob_text = stored_result(asked.result)
        outcome = await self._engine.resolve_external(
            ResolveRequest(
                run_id=effect.run_id,
                effect_id=effect.effect_id,
                actor=asked.actor,
                state=f"EFFECT_STATE_{asked.state}",
                result=result,
                error=asked.error,
                blob_text=blob_text,
            )
        )
        settled = await self.read(asked.effect)
        if outcome.outcome == "settled":
            raise EffectSettled(settled.effect_id, settled.state)
        if outcome.outcome == "has_executor":
            raise EffectHasExecutor(settled.effect_id, settled.kind)
        if outcome.outcome == "run_closed":
            raise RunClosed(settled.run_id, settled.run_state)
        return pb.ResolveEffectResponse(effect=await self.message(settled))

    async def _messages(self, rows: Sequence[EffectView]) -> list[pb.Effect]:
        situation = await self._situations.now()
        return [complete(effect_message(row), row, situation) for row in rows]

    async def _refuse_unknown(self, run: RunRef, names: Sequence[str]) -> None:
        page = await self._reads.effects(
            limit=limits.WAIT_KEYS_MAX, filters={"namespace": run.namespace, "run_id": run.run_id, "keys": names}
        )
        known = {row.key for row in page.rows}
        missing = [name for name in names if name not in known]
        if missing:
            raise EffectNotFound(run.namespace, run_id=run.run_id, key=missing[0], count=len(missing))


def session_of(effect: EffectView) -> dict[str, str] | None:
    """The harness session that a settled effect left, as it is stored; None when there is none."""
    settled = effect.settled or {}
    return (settled.get("result") or settled.get("partial") or {}).get("session")


def stored_result(result: Mapping[str, Any] | None) -> tuple[Mapping[str, Any] | None, str | None]:
    """A result as its row has it, and the text of a value that is too large for that."""
    if result is None or "value" not in result:
        return result, None
    payload, blob_text = stored(result["value"])
    return {**result, "value": payload}, blob_text


def _check_choice(effect: EffectView, asked: Resolution) -> None:
    choices = ((effect.spec or {}).get("external") or {}).get("choices") or []
    choice = (asked.result or {}).get("choice", "")
    if asked.state == "SUCCEEDED" and choices and choice not in choices:
        raise InvalidRequest([Violation("succeeded.choice", f"must be one of {', '.join(choices)}")])
