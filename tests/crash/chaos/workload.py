"""The work that goes on while everything is attacked: runs of a process, and runs that a client drives."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, Final

from google.protobuf import json_format

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import operator_service_pb2 as operator_pb
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.crash.chaos import label_budgets, plans, processes
from tests.crash.chaos.clients import Caller, Refused
from tests.crash.chaos.real import Real
from tests.crash.chaos.watching import SeqWatcher
from tests.support.client_program import external, function, spec

_RUN: Final = journal_pb2.RunState
#: Refusals that say that the run or the effect is over, which a client without knowledge has to expect.
_OVER: Final = frozenset({"RUN_CLOSED", "EFFECT_SETTLED", "EFFECT_NOT_FOUND", "RUN_HALTED"})
_MARK: Final = f"{processes.__name__}.mark"
#: Share of the runs with a real agent CLI: each takes a second or more of a processor.
_REAL_SHARE: Final = 0.12
_FLAKY: Final = f"{processes.__name__}.flaky"


class Workload:
    """Some clients, each of which begins a run when its last one has ended, until told to stop."""

    def __init__(
        self, caller: Caller, addresses: Sequence[str], folder: str, draw: random.Random, real: Real | None = None
    ) -> None:
        self._caller = caller
        self._addresses = addresses
        self._folder = folder
        self._draw = draw
        self._real = real
        self._stopping = False
        self._clients: list[asyncio.Task[None]] = []
        self.runs: Counter[str] = Counter()
        #: Runs that were begun and not seen to end.
        self.open: set[str] = set()
        self.watchers: list[SeqWatcher] = []

    def start(self, clients: int) -> None:
        """Starts the clients."""
        self._stopping = False
        self._clients = [asyncio.create_task(self._client(), name=f"client-{n}") for n in range(clients)]

    def also(self, work: Coroutine[Any, Any, None]) -> None:
        """Something else that has to end before all is judged."""
        self._clients.append(asyncio.create_task(work, name="also"))

    async def finish(self, timeout_s: float) -> bool:
        """Waits until every client has seen its run end; False when that takes too long."""
        self._stopping = True
        _, pending = await asyncio.wait(self._clients, timeout=timeout_s)
        if pending:
            return False
        for client in self._clients:
            client.result()
        self._clients = []
        return True

    async def stop(self) -> None:
        """Ends the clients where they are."""
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _client(self) -> None:
        while not self._stopping:
            try:
                await (self._process() if self._draw.random() < 0.65 else self.client_driven())
            except (Refused, AssertionError) as error:
                self._caller.offences.append(f"a client of run {self.open} ends with {error!r}")
                return

    # -- runs of a process -------------------------------------------------------------------------------------

    async def _process(self) -> None:
        plan = plans.plan(self._draw)
        if self._real is not None and self._draw.random() < _REAL_SHARE:
            plan.append(self._real.step(self._draw))
        request = pb.CreateRunRequest()
        json_format.ParseDict({"folder": self._folder, "plan": plan}, request.input)
        budget = self._budget(plan)
        labels = {label_budgets.NAME: label_budgets.VALUE} if self._draw.random() < 0.7 else {}
        created = await self._caller.create(process="chaos", input=request.input, budget=budget, labels=labels)
        run_id = created.run.run_id
        self.open.add(run_id)
        watcher = self._watcher(run_id) if self._draw.random() < 0.3 else None
        meddling = asyncio.create_task(self._meddle(run_id, plan, budget))
        try:
            run = await self._end_of(run_id)
        finally:
            meddling.cancel()
            await asyncio.gather(meddling, return_exceptions=True)
        self._check_end(run, plan)
        if watcher is not None:
            await watcher.until_done()
        self.open.discard(run_id)

    def _watcher(self, run_id: str) -> SeqWatcher:
        watcher = SeqWatcher(self._addresses, run_id)
        watcher.start()
        self.watchers.append(watcher)
        return watcher

    async def _end_of(self, run_id: str) -> pb.Run:
        while True:
            run = await self._caller.ended(run_id)
            if run is None:
                await self._waits_for_something(run_id)
                continue
            if run.state == _RUN.RUN_STATE_HALTED:  # whoever paused it resumes it
                await asyncio.sleep(0.1)
                continue
            if run.state != _RUN.RUN_STATE_CONTINUED:
                return run
            run_id = run.next_run_id

    async def _waits_for_something(self, run_id: str) -> None:
        """A run that has not ended says what it waits for."""
        run = (await self._call("GetRun", pb.GetRunRequest(run_id=run_id))).run
        if not run.waiting_on and not run.HasField("end_time"):
            self._caller.offences.append(f"run {run_id} is {_RUN.Name(run.state)} and says not what it waits for")

    def _check_end(self, run: pb.Run, plan: list[plans.Step]) -> None:
        state = _RUN.Name(run.state).removeprefix("RUN_STATE_")
        self.runs[state] += 1
        if state == "COMPLETED" or (state == "CANCELLED" and run.cancel_requested):
            return
        self._caller.offences.append(f"run {run.run_id} is {state} {run.error}; its plan: {json.dumps(plan)}")

    def _budget(self, plan: list[plans.Step]) -> journal_pb2.Budget | None:
        """What a run with agents may consume. Who asks is answered: see `_raise`."""
        kinds = {step["kind"] for step in plan}
        if not kinds & plans.BY_AGENTS or self._draw.random() < 0.6:
            return None
        budget = journal_pb2.Budget(tokens=self._draw.choice((1_500, 6_000, 20_000)))
        if "continue" not in kinds and self._draw.random() < 0.4:
            budget.on_spent = journal_pb2.BUDGET_ACTION_ASK
        return budget

    async def _raise(self, run_id: str, tokens: float) -> None:
        """Raises the budget of a run again and again, as long as it goes on."""
        while True:
            await asyncio.sleep(self._draw.uniform(0.5, 3))
            tokens += 5_000
            budget = journal_pb2.Budget(tokens=tokens)
            await self._call("RaiseBudget", operator_pb.RaiseBudgetRequest(run_id=run_id, budget=budget))

    async def _meddle(self, run_id: str, plan: list[plans.Step], budget: journal_pb2.Budget | None) -> None:
        """Does from outside what the plan waits for, and some things that it does not."""
        kinds = [step["kind"] for step in plan]
        acts: list[Awaitable[Any]] = []
        if budget is not None and budget.on_spent == journal_pb2.BUDGET_ACTION_ASK:
            acts.append(self._raise(run_id, budget.tokens))
        for number, kind in enumerate(kinds):
            if kind == "continue":
                break
            if kind == "signal" and self._draw.random() < 0.8:
                acts.append(self._later(3, self._caller.signal, run_id))
            elif kind == "ask":
                acts.append(self._answer(run_id, str(number)))
            elif kind in ("shell", "call", "left", "agent") and self._draw.random() < 0.15:
                acts.append(self._later(2, self._caller.cancel_effect, run_id, str(number)))
        if self._draw.random() < 0.1:
            acts.append(self._later(4, self._caller.cancel_run, run_id))
        if self._draw.random() < 0.05:
            acts.append(self._halt(run_id))
        await asyncio.gather(*acts)  # all of them begin here, so that a cancel leaves none unawaited

    async def _later(self, most_s: float, act: Any, *args: Any) -> None:
        await asyncio.sleep(self._draw.uniform(0, most_s))
        try:
            await act(*args)
        except Refused as refused:
            if refused.reason not in _OVER:
                self._caller.offences.append(f"{act.__name__}{args}: {refused}")

    async def _answer(self, run_id: str, key: str) -> None:
        """Answers a question once it is asked, or tries to: it may never be."""
        for _ in range(10):
            await asyncio.sleep(self._draw.uniform(0.1, 1.5))
            try:
                await self._caller.answer(run_id, key, self._draw.choice(("yes", "no")))
            except Refused as refused:
                if refused.reason == "EFFECT_NOT_FOUND":
                    continue
                if refused.reason not in _OVER:
                    self._caller.offences.append(f"answer of {run_id}/{key}: {refused}")
            return

    async def _halt(self, run_id: str) -> None:
        """Pauses the run, and lets it go on whatever happened."""
        await self._later(2, self._call, "HaltRun", pb.HaltRunRequest(run_id=run_id, reason="chaos"))
        while True:
            try:
                await self._call("ResumeRun", pb.ResumeRunRequest(run_id=run_id))
            except Refused as refused:
                if refused.reason not in _OVER | {"NOT_PARKED"}:
                    self._caller.offences.append(f"resume of {run_id}: {refused}")
            await asyncio.sleep(0.5)

    async def _call(self, name: str, request: Any) -> Any:
        return await self._caller.call(name, request)

    # -- runs that a client drives -----------------------------------------------------------------------------

    async def client_driven(self) -> None:
        """One run that a client drives, from its first call to its last."""
        key = f"chaos/{self._draw.getrandbits(64):x}"
        answer = await self._caller.create(key=key, client=pb.ClientDriven())
        run_id, epoch = answer.run.run_id, answer.client_epoch
        self.open.add(run_id)
        for batch in range(self._draw.randint(1, 4)):
            if self._draw.random() < 0.2:  # the program was killed and begins anew: it is answered from the journal
                again = await self._caller.create(key=key, client=pb.ClientDriven())
                if again.run.run_id != run_id or again.client_epoch <= epoch:
                    self._caller.offences.append(f"{key} was {run_id} at {epoch}, then {again}")
                epoch = again.client_epoch
            await self._batch(run_id, epoch, batch)
        await self._finish(run_id, epoch)
        self.open.discard(run_id)
        self.runs["client-driven"] += 1

    async def _batch(self, run_id: str, epoch: int, number: int) -> None:
        """Requests some effects, sometimes cancels one, waits for all."""
        asked = {f"{number}/{n}": self._effect(run_id, f"{number}/{n}") for n in range(self._draw.randint(1, 6))}
        request = pb.RequestEffectsRequest(
            run_id=run_id, client_epoch=epoch, effects=[pb.EffectRequest(key=k, spec=s) for k, s in asked.items()]
        )
        for _ in range(2 if self._draw.random() < 0.2 else 1):
            await self._call("RequestEffects", request)
        self._caller.acknowledged.requests |= {(run_id, key) for key in asked}
        for key, one in asked.items():
            if one.HasField("external"):
                await self._later(0.5, self._caller.answer, run_id, key, "yes")
            elif self._draw.random() < 0.15:
                await self._later(1, self._caller.cancel_effect, run_id, key)
        wait = pb.WaitEffectsRequest(run_id=run_id, keys=list(asked))
        wait.max_wait.FromMilliseconds(4000)
        while (await self._call("WaitEffects", wait)).timed_out:
            continue

    def _effect(self, run_id: str, key: str) -> journal_pb2.EffectSpec:
        path = processes.mark_path(self._folder, run_id, key)
        attempts = self._draw.choice((1, 1, 3))
        fields: dict[str, Any] = {
            "retry": {"max_attempts": attempts, "initial": "0.05s", "backoff": 1.5},
            "background": self._draw.random() < 0.4,
        }
        kind = self._draw.random()
        if kind < 0.1:
            return external("yes", "no")
        if kind < 0.5:
            step = {"seconds": round(self._draw.uniform(0, 1.5), 3), "exit": self._draw.choice((0, 0, 0, 2))}
            return spec(shell={"command_line": processes.command(path, step)}, **fields)
        if kind < 0.7:
            return function(_FLAKY, path, self._draw.randint(0, 2), **fields)
        return function(_MARK, path, round(self._draw.uniform(0, 0.5), 3), **fields)

    async def _finish(self, run_id: str, epoch: int) -> None:
        request = pb.FinishRunRequest(run_id=run_id, client_epoch=epoch)
        request.succeeded.string_value = "done"
        await self._call("FinishRun", request)
        self._caller.acknowledged.finished.add(run_id)
