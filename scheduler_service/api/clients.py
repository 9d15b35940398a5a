"""Client-driven runs: RequestEffects and FinishRun, and what their refusals say."""

import uuid
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api import limits
from scheduler_service.api.checks import checked
from scheduler_service.api.client_requests import AskedEffect, EffectsAsked, Finish
from scheduler_service.api.effect_requests import EffectRef
from scheduler_service.api.effect_specs import spec_digest
from scheduler_service.api.effects import Effects, session_of
from scheduler_service.api.engine import EngineApi
from scheduler_service.api.run_requests import RunRef
from scheduler_service.api.runs import ACTOR, Runs
from scheduler_service.errors import (
    ClientSuperseded,
    Draining,
    EffectKeyConflict,
    EffectNotFound,
    EffectsOpen,
    GroupConflict,
    HistoryLimit,
    QueueFull,
    RunClosed,
    RunHalted,
    RunNotClientDriven,
    RunNotFound,
)
from scheduler_service.iteration.rows import projection
from scheduler_service.journal import ClientRequest, ClientRequestOutcome, FinishRun, FinishRunOutcome
from scheduler_service.journal.client_views import RunView

_DONE: Final = ("ok", "recorded", "already")


class Clients:
    """What the clients of client-driven runs do."""

    def __init__(self, engine: EngineApi, runs: Runs, effects: Effects) -> None:
        self._engine = engine
        self._runs = runs
        self._effects = effects

    async def request(self, asked: EffectsAsked) -> pb.RequestEffectsResponse:
        """The effects as they are recorded, those that were new requested in one commit."""
        run = await self._client_driven(asked.run)
        await self._take_sessions(asked)
        rows = [_row(run.run_id, effect) for effect in asked.effects]
        outcome = await self._engine.clients.request(
            ClientRequest(
                run_id=run.run_id,
                namespace=run.namespace,
                client_epoch=asked.client_epoch,
                actor=ACTOR,
                rows=rows,
            )
        )
        if outcome.outcome not in _DONE:
            await self._refuse_request(asked, rows, outcome)
        keys = [effect.key for effect in asked.effects]
        return pb.RequestEffectsResponse(effects=await self._effects.all_of(asked.run, keys))

    async def _take_sessions(self, asked: EffectsAsked) -> None:
        """Notes the session of each effect to continue in the spec that continues it. Raises InvalidRequest."""
        wanted = [(index, effect.spec) for index, effect in enumerate(asked.effects) if "continue_from" in effect.spec]
        with checked() as check:
            for index, spec in wanted:
                if "continue_session" in spec:
                    continue
                path = f"effects[{index}].spec.continue_from"
                try:
                    earlier = await self._effects.read(EffectRef(asked.run.namespace, effect_id=spec["continue_from"]))
                except EffectNotFound:
                    check.refuse(path, "is no effect of this namespace")
                    continue
                if not earlier.settled_seq:
                    check.refuse(path, "has not settled: wait for it first")
                if session := session_of(earlier):
                    spec["continue_session"] = session

    async def finish(self, asked: Finish) -> pb.FinishRunResponse:
        """Ends a run, or has it closed."""
        run = await self._client_driven(asked.run)
        outcome = await self._engine.clients.finish(
            FinishRun(
                run_id=run.run_id,
                client_epoch=asked.client_epoch,
                state=asked.state,
                data=asked.data,
                wait=asked.wait,
                actor=ACTOR,
                blob_text=asked.blob_text,
            )
        )
        run = await self._runs.read(asked.run)
        if outcome.outcome not in _DONE:
            self._refuse_finish(asked, run, outcome)
        return pb.FinishRunResponse(run=await self._runs.message(run))

    async def _client_driven(self, ref: RunRef) -> RunView:
        run = await self._runs.read(ref, full=False)
        if not run.client_driven:
            raise RunNotClientDriven(run.run_id, run.process)
        if self._engine.draining:
            raise Draining(self._engine.scheduler_id)
        return run

    async def _refuse_request(
        self, asked: EffectsAsked, rows: Sequence[dict[str, Any]], outcome: ClientRequestOutcome
    ) -> NoReturn:
        run_id, detail = asked.run.run_id, outcome.detail
        match outcome.outcome:
            case "superseded":
                raise ClientSuperseded(run_id, asked.client_epoch, detail["client_epoch"])
            case "key_conflict":
                digests = {row["effect_key"]: row["data"]["digest"] for row in rows}
                raise EffectKeyConflict(run_id, detail["conflicts"], digests)
            case "group_conflict":
                raise GroupConflict(run_id, detail["conflicts"])
            case "history_limit":
                raise HistoryLimit(run_id, outcome.head_seq)
            case "queue_full":
                raise QueueFull(run_id, detail["open_effects"], limits.OPEN_EFFECTS_MAX)
            case "run_closed":
                raise RunClosed(run_id, (await self._runs.read(asked.run, full=False)).state)
            case _:
                raise RunNotFound(asked.run.namespace, run_id)

    def _refuse_finish(self, asked: Finish, run: RunView, outcome: FinishRunOutcome) -> NoReturn:
        detail = outcome.detail
        match outcome.outcome:
            case "superseded":
                raise ClientSuperseded(run.run_id, asked.client_epoch, detail["client_epoch"])
            case "effects_open":
                raise EffectsOpen(run.run_id, detail["open"], detail["open_count"])
            case "halted":
                raise RunHalted(run.run_id, run.halt_reason)
            case "run_closed":
                raise RunClosed(run.run_id, run.state)
            case _:
                raise RunNotFound(asked.run.namespace, run.run_id)


def _row(run_id: str, effect: AskedEffect) -> dict[str, Any]:
    return {
        "type": "EFFECT_REQUESTED",
        "effect_id": str(uuid.uuid5(uuid.UUID(run_id), effect.key)),
        "effect_key": effect.key,
        "data": {"spec": effect.spec, "digest": spec_digest(effect.spec)},
        "x": projection(effect.spec),
        "use_recorded": effect.use_recorded,
    }
