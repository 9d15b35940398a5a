"""What is attacked: both services as processes, with runs and effects that are worth attacking.

The executor that serves `default` has no slots for shell commands, so that no hostile command line is ever executed;
the other one serves the namespace `talk`, where clients' effects are not let in.
"""

import contextlib
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import operator_service_pb2 as operator_pb
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.attack.generator import Known
from tests.support.client_program import external, function, spec
from tests.support.eventually import eventually
from tests.support.journal_items import scene_at
from tests.support.journals import check_journal, journal_of
from tests.support.services import Service, Stack, result_value

MODULES: Final = "tests.attack.processes"
#: What must not be in a log, whatever is sent.
_BAD: Final = re.compile(
    r"Traceback|incident|never retrieved|was never awaited|Task was destroyed|Exception in|Unexpected", re.IGNORECASE
)


INCARNATIONS = ["7b0f4f0e-2f0e-4f43-9d4c-1f3d2b7f0a11", "7b0f4f0e-2f0e-4f43-9d4c-1f3d2b7f0a12"]


class Target:
    """The services, and the runs of the moment."""

    def __init__(self, stack: Stack, talker: Service) -> None:
        self.stack = stack
        self.talker = talker
        self.run_ids: list[str] = []
        self._talk: tuple[str, str] = ("", "")
        self._blob: tuple[str, str] = ("", "")

    async def start(self) -> None:
        """Starts everything."""
        await self.stack.start()
        self.talker.start()
        await eventually(self._connected, timeout=60, message=lambda: self.talker.tail)
        self._blob = await self._new_blob()
        with scene_at(self.stack.dsn) as scene:  # one that operators may drain and declare dead
            scene.hello("hostile-1", INCARNATIONS[0])

    async def executor_address(self) -> str:
        """Where the talking executor serves."""
        return (await self._connected()).address  # type: ignore[no-any-return]

    async def _connected(self) -> Any:
        answer = await self.stack.operator.ListExecutors(operator_pb.ListExecutorsRequest())
        return next((e for e in answer.executors if e.executor_id == "talker" and e.address), None)

    async def _effect(self, run_id: str, key: str, namespace: str = "", *, running: bool = False) -> str:
        """The id of an effect, once it is there."""
        request = pb.GetEffectRequest(effect=pb.EffectName(run_id=run_id, key=key), namespace=namespace)

        async def found() -> str:
            try:
                effect = (await self.stack.client.GetEffect(request)).effect
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.NOT_FOUND, error  # noqa: PT017  # "not yet"
                return ""
            return effect.effect_id if effect.attempt or not running else ""

        return await eventually(found, timeout=30, message=lambda: f"{self.stack.scheduler.tail}\n{self.talker.tail}")

    async def _new_blob(self) -> tuple[str, str]:
        """A run with a large value, and its digest."""
        run = await self.stack.result(await self.stack.create("blob"), 60)
        name = pb.EffectName(run_id=run.run_id, key="wide")
        effect = (await self.stack.client.GetEffect(pb.GetEffectRequest(effect=name))).effect
        return run.run_id, effect.result.value.blob.digest

    async def _new_talker(self) -> None:
        """A fresh attempt that talks, in the place of the one before."""
        client, before = self.stack.client, pb.EffectName(effect_id=self._talk[1])
        if before.effect_id:
            with contextlib.suppress(grpc.aio.AioRpcError):  # it has ended by the attack
                await client.CancelEffect(pb.CancelEffectRequest(effect=before, namespace="talk"))
        run = await client.CreateRun(pb.CreateRunRequest(process="talker", namespace="talk"))
        self._talk = run.run.run_id, await self._effect(run.run.run_id, "talk", "talk", running=True)

    async def known(self) -> tuple[Known, Mapping[str, Sequence[Any]]]:
        """Fresh victims: what is known of them by field name, and messages that name them."""
        await self._release_holds()
        await self._clear_budgets()
        await self._new_talker()
        plenty = journal_pb2.Budget(tokens=1e12)
        run_id = await self.stack.create("victim")
        ask = await self._effect(run_id, "ask")
        self.run_ids.append(run_id)
        halted = await self.stack.create("victim")
        await self.stack.client.HaltRun(pb.HaltRunRequest(run_id=halted))
        bounded_label = operator_pb.LabelBudget(label="team=a", budget=plenty)
        await self.stack.operator.SetBudget(operator_pb.SetBudgetRequest(budget=bounded_label))
        bounded = await self.stack.client.CreateRun(pb.CreateRunRequest(process="victim", budget=plenty))
        runs, epoch = [run_id, run_id, halted, self._talk[0], self._blob[0], bounded.run.run_id], 1
        self.run_ids.append(self._talk[0])
        try:
            answer = await self.stack.client.CreateRun(pb.CreateRunRequest(client=pb.ClientDriven(), key=f"c-{ask}"))
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED, error  # noqa: PT017
        else:
            runs, epoch = [*runs, answer.run.run_id, answer.run.run_id], answer.client_epoch
            self.run_ids.append(answer.run.run_id)
        known: dict[str, Sequence[Any]] = {
            "namespace": ["", "", "default", "talk"], "run_id": runs, "effect_id": [ask, self._talk[1]],
            "key": ["ask", "sh", "double", "talk", f"c-{ask}"], "keys": ["ask", "sh", "double"], "process": ["victim"],
            "processes": ["victim"], "request_id": ["", ask], "page_token": [""], "input": ["files", "depth"],
            "digest": [self._blob[1]], "choice": ["yes", "no"], "map_key": ["a", "b"],
            "label": ["team=a", "team=b"], "client_epoch": [epoch],
            "attempt": [0, 1], "name": ["go"], "after_seq": [0, 1, 2], "command_line": ["true"],
            "function": ["double"], "external": [1], "effects": [1], "effect": [1], "spec": [1],
            "attempts": [1], "hello": [1], "contract": [1],
            "executor_id": ["hostile-1", "hostile-2", "hostile-3"], "ref": [1], "outcome": [1], "succeeded": [1],
            "incarnation": INCARNATIONS,
        }  # fmt: skip
        names = [
            pb.EffectName(effect_id=ask), pb.EffectName(run_id=run_id, key="sh"),
            pb.EffectName(effect_id=self._talk[1]),
        ]  # fmt: skip
        return known, {
            pb.EffectName.DESCRIPTOR.full_name: names,
            journal_pb2.Budget.DESCRIPTOR.full_name: [plenty, journal_pb2.Budget(turns=1_000_000)],
            operator_pb.RaiseBudgetRequest.DESCRIPTOR.full_name: [
                operator_pb.RaiseBudgetRequest(run_id=bounded.run.run_id, budget=journal_pb2.Budget(tokens=2e12))
            ],
            operator_pb.LabelBudget.DESCRIPTOR.full_name: [bounded_label],
            pb.EffectRequest.DESCRIPTOR.full_name: list(_asked()),
        }

    async def _release_holds(self) -> None:
        """Or nothing is dispatched any more: the kill-switch works for whoever may call it."""
        operator = self.stack.operator
        for hold in (await operator.ListHolds(operator_pb.ListHoldsRequest())).holds:
            await operator.SetHold(
                operator_pb.SetHoldRequest(hold=operator_pb.Hold(hold_id=hold.hold_id), release=True)
            )

    async def _clear_budgets(self) -> None:
        """Likewise: a budget that is spent lets nothing start."""
        for budget in (await self.stack.operator.ListBudgets(operator_pb.ListBudgetsRequest())).budgets:
            await self.stack.operator.ClearBudget(
                operator_pb.ClearBudgetRequest(namespace=budget.namespace, label=budget.label)
            )

    async def check(self) -> None:
        """Asserts that nothing was lost: processes, logs, journals, and that sound calls work."""
        for service in (self.stack.scheduler, self.stack.executor, self.talker):
            assert service.process is not None
            assert service.process.poll() is None, f"{service.module} died\n{service.tail}"
            lines = service.log.read_text(errors="replace").splitlines()
            bad = [n for n, line in enumerate(lines) if _BAD.search(line)]
            assert not bad, "\n".join(lines[max(0, bad[0] - 3) : bad[0] + 60])
        run = await self.stack.result(await self.stack.create("sound", n=21), 60)
        assert run.state == journal_pb2.RUN_STATE_COMPLETED, run
        assert result_value(run) == 42
        for run_id in self.run_ids[-10:]:
            if rows := await journal_of(self.stack.dsn, run_id):  # the attack may have had it removed
                check_journal(rows)


def _asked() -> Iterator[pb.EffectRequest]:
    """Effects that a client may ask for; none of them runs a command."""
    for n in range(5):  # a batch that names a key twice is refused
        yield pb.EffectRequest(key=f"asked/{n}", spec=external("yes", "no"))
        yield pb.EffectRequest(key=f"called/{n}", spec=function("tests.attack.processes.double", n, background=True))
        yield pb.EffectRequest(key=f"child/{n}", spec=spec(run={"process": "sound", "input": {"n": n}}))
        yield pb.EffectRequest(key=f"timer/{n}", spec=spec(timer={"fire_at": "2100-01-01T00:00:00Z"}))
    recorded = pb.EffectRequest.ON_CONFLICT_USE_RECORDED
    yield pb.EffectRequest(key="asked/0", spec=external("no"), on_conflict=recorded)
    yield pb.EffectRequest(key="asked/0", spec=external("no"))


@asynccontextmanager
async def target(dsn: str, folder: Path) -> AsyncIterator[Target]:
    """A started target, killed at the end."""
    stack = Stack(dsn, folder, MODULES, executor_env={"BACKBURNER_SLOTS_SHELL": "0"})
    env = {"BACKBURNER_SLOTS_SHELL": "8", "BACKBURNER_NAMESPACE": "talk"}
    made = Target(stack, stack.new_executor("talker", **env))
    try:
        await made.start()
        yield made
    finally:
        made.talker.kill()
        await stack.close()
