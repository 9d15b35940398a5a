"""Run control: halt, resume, signal."""

import hashlib

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api.engine import EngineApi
from scheduler_service.api.run_requests import RunRef, Signal
from scheduler_service.api.runs import ACTOR, Runs
from scheduler_service.authoring.values import canonical_json
from scheduler_service.errors import HistoryLimit, NotParked, RequestIdReused, RunClosed, RunNotFound
from scheduler_service.journal import ControlRequest, SignalRequest


class Control:
    """What clients and operators do to runs that go on."""

    def __init__(self, engine: EngineApi, runs: Runs) -> None:
        self._engine = engine
        self._runs = runs

    async def halt(self, ref: RunRef, reason: str) -> pb.HaltRunResponse:
        """Pauses a run. A halted one stays as it is."""
        await self._runs.read(ref, full=False)
        outcome = await self._engine.control.halt(ControlRequest(run_id=ref.run_id, reason=reason, actor=ACTOR))
        run = await self._runs.read(ref)
        if outcome.outcome == "run_closed":
            raise RunClosed(ref.run_id, run.state, run.next_run_id)
        return pb.HaltRunResponse(run=await self._runs.message(run))

    async def resume(self, ref: RunRef, reason: str) -> pb.ResumeRunResponse:
        """Lets a halted or parked run go on."""
        await self._runs.read(ref, full=False)
        outcome = await self._engine.control.resume(ControlRequest(run_id=ref.run_id, reason=reason, actor=ACTOR))
        run = await self._runs.read(ref)
        if outcome.outcome in ("run_closed", "not_parked"):
            raise NotParked(ref.run_id, run.state)
        return pb.ResumeRunResponse(run=await self._runs.message(run))

    async def signal(self, asked: Signal) -> pb.SignalRunResponse:
        """Sends a message to a run, once for each request id."""
        ref = asked.run
        run = await self._runs.read(ref, full=False)
        outcome = await self._engine.control.signal(_signal_request(asked))
        match outcome.outcome:
            case "request_conflict":
                raise RequestIdReused(ref.namespace, asked.request_id)
            case "run_closed":
                now = await self._runs.read(ref, full=False)
                raise RunClosed(ref.run_id, now.state, now.next_run_id)
            case "history_limit":
                raise HistoryLimit(ref.run_id, outcome.head_seq)
            case "not_found":
                raise RunNotFound(ref.namespace, run.run_id)
        return pb.SignalRunResponse(seq=outcome.seq)


def _signal_request(asked: Signal) -> SignalRequest:
    said = {"run_id": asked.run.run_id, "name": asked.name, "value": asked.value}
    return SignalRequest(
        run_id=asked.run.run_id,
        namespace=asked.run.namespace,
        request_id=asked.request_id,
        digest=hashlib.sha256(canonical_json(said)).hexdigest(),
        data={"name": asked.name, "value": {"value": asked.value}},
        actor=ACTOR,
    )
