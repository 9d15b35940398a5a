"""Keeps every way into the journal in use: calls and events that the ordinary work has only now and then."""

import asyncio
import datetime as dt
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from google.protobuf import json_format

from backburner.scheduler.v1 import operator_service_pb2 as operator_pb
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.crash.chaos.agents import AGENT
from tests.crash.chaos.arena import Arena
from tests.crash.chaos.clients import Refused

_PAUSE_SECONDS: Final = 0.15
#: How long an executor that is not there is held.
_HELD: Final = dt.timedelta(minutes=10)
#: Every so many turns the executor dies, so that attempts are lost.
_KILL_EVERY: Final = 12
#: A namespace in which nothing runs: budgets of labels make every claim of theirs wait for the others.
_ELSEWHERE: Final = "elsewhere"
#: Refusals that calls meet which come too soon or too late.
_EXPECTED: Final = ("NOT_PARKED", "EFFECT_NOT_FOUND", "RUN_HALTED", "RUN_CLOSED", "EFFECT_SETTLED")
_OF_ORDERS: Final = (
    "EXECUTOR_NOT_FOUND",
    "EXECUTOR_RESTARTED",
    "NO_EXECUTOR",
    "EFFECT_NOT_STARTED",
    "ATTEMPT_SUPERSEDED",  # it was dispatched between the look and the order
    "BUDGET_NOT_FOUND",  # its end was ordered twice, for the first answer was lost
)
_ASKS: Final[list[dict[str, Any]]] = [{"kind": "ask"}, {"kind": "signal"}]
_AGENTS: Final[list[dict[str, Any]]] = [
    {"kind": "agent", "harness": AGENT, "attempts": 9, "workspace": "worktree:never",
     "script": {"requests": 2, "pause": 0.05, "writes": True}},
]  # fmt: skip
_TALKS: Final[list[dict[str, Any]]] = [{"kind": "background", "attempts": 9, "seconds": 1.2, "output": 10}]


async def stir(place: Arena, enough: asyncio.Event, *, kills_executor: bool) -> None:
    """Until it is enough; what was begun is then brought to its end."""
    await asyncio.gather(_calls(place, enough), _network(place, enough, kills_executor=kills_executor))


async def _calls(place: Arena, enough: asyncio.Event) -> None:
    while not enough.is_set():
        talks = await _created(place, _TALKS)
        run_id = await _created(place, _ASKS)
        await _created(place, _AGENTS)
        place.work.also(place.work.client_driven())  # the others may be long in runs with agents
        await _silent_client(place)
        operator = [partial(place.caller.call, *order) for order in _orders(talks)]
        for act in (
            *operator,
            partial(place.caller.call, "HaltRun", pb.HaltRunRequest(run_id=run_id)),
            partial(place.caller.call, "BulkAction", _resume_one()),
            partial(place.caller.call, "ResumeRun", pb.ResumeRunRequest(run_id=run_id)),
            partial(place.caller.answer, run_id, "0", "yes"),
            partial(place.caller.signal, run_id),
            partial(place.caller.cancel_run, run_id),
        ):
            await asyncio.sleep(_PAUSE_SECONDS)
            try:
                await act()
            except Refused as refused:
                if refused.reason not in (*_EXPECTED, *_OF_ORDERS):
                    place.caller.offences.append(f"stirring: {refused}")


def _orders(run_id: str) -> Iterator[tuple[str, Any]]:
    """What operators order, of little consequence: executors that are not there, runs that there are none of."""
    hold = operator_pb.Hold(executor_id="nobody", reason="chaos", actor="chaos")
    # Far enough ahead: the call is repeated until it is answered, and by then it must not be in the past.
    hold.until.FromDatetime(dt.datetime.now(dt.UTC) + _HELD)
    yield "SetHold", operator_pb.SetHoldRequest(hold=hold)
    for drain in (True, False):
        order = operator_pb.DrainExecutorRequest(executor_id="executor-0", drain=drain, reason="chaos", actor="chaos")
        yield "DrainExecutor", order
    gone = operator_pb.ExpireExecutorRequest(executor_id="executor-0", incarnation=str(uuid.uuid4()), reason="chaos")
    yield "ExpireExecutor", gone
    settle = operator_pb.SettleEffectRequest(reason="chaos", actor="chaos")
    settle.effect.CopyFrom(pb.EffectName(run_id=run_id, key="0/slow"))
    settle.failed.message = "by hand"
    yield "SettleEffect", settle
    yield "ResetBreakers", operator_pb.ResetBreakersRequest(harness="nobody", reason="chaos", actor="chaos")
    budget = operator_pb.LabelBudget(namespace=_ELSEWHERE, label="team=nobody", reason="chaos", actor="chaos")
    budget.budget.tokens = 1000
    yield "SetBudget", operator_pb.SetBudgetRequest(budget=budget)
    yield "ClearBudget", operator_pb.ClearBudgetRequest(namespace=_ELSEWHERE, label=budget.label, reason="chaos")


def _resume_one() -> operator_pb.BulkActionRequest:
    """Some run that is paused goes on; whoever paused it resumes it anyway."""
    action = operator_pb.BulkActionRequest.ACTION_RESUME
    return operator_pb.BulkActionRequest(action=action, processes=["chaos"], reason="chaos", actor="chaos", limit=1)


async def _created(place: Arena, plan: list[dict[str, Any]]) -> str:
    request = pb.CreateRunRequest()
    json_format.ParseDict({"folder": str(place.world.folder), "plan": plan}, request.input)
    return (await place.caller.create(process="chaos", input=request.input)).run.run_id


async def _silent_client(place: Arena) -> None:
    """A run whose client is not heard of again; it is cancelled in the end, for everything must end."""
    client = pb.ClientDriven()
    client.idle_timeout.FromSeconds(1)
    run_id = (await place.caller.create(key=str(uuid.uuid4()), client=client)).run.run_id

    async def end() -> None:
        await asyncio.sleep(4)
        await place.caller.cancel_run(run_id)

    place.work.also(end())


async def _network(place: Arena, enough: asyncio.Event, *, kills_executor: bool) -> None:
    turn = 0
    while not enough.is_set():
        turn += 1
        await asyncio.sleep(_PAUSE_SECONDS * 4)
        if kills_executor and turn % _KILL_EVERY == 0:
            place.world.executors[0].kill()
            place.world.executors[0].start()
        else:
            place.world.control[0].cut()
