"""Waits, gets and watches of a run's own client: those that carry its epoch."""

from scheduler_service.api.engine import EngineApi
from scheduler_service.api.run_requests import RunRef
from scheduler_service.api.runs import ACTOR, Runs
from scheduler_service.errors import ClientSuperseded, RunNotClientDriven
from scheduler_service.journal import ClientRequest


class Callers:
    """Tells clients from those who only look: a client is fenced, and its silent run goes on."""

    def __init__(self, engine: EngineApi, runs: Runs) -> None:
        self._engine = engine
        self._runs = runs

    async def admit(self, ref: RunRef, client_epoch: int) -> None:
        """Lets a call go on; with epoch 0 anybody's. Raises RunNotFound, RunNotClientDriven, ClientSuperseded."""
        if not client_epoch:
            return
        run = await self._runs.read(ref, full=False)
        if not run.client_driven:
            raise RunNotClientDriven(run.run_id, run.process)
        if run.client_epoch == client_epoch and not run.client_idle:
            return  # most calls: nothing to write
        asked = ClientRequest(
            run_id=run.run_id, namespace=run.namespace, client_epoch=client_epoch, actor=ACTOR, rows=[]
        )
        outcome = await self._engine.clients.request(asked)
        if outcome.outcome == "superseded":
            raise ClientSuperseded(run.run_id, client_epoch, outcome.detail["client_epoch"])
