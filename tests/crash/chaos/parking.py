"""A spent quota when nothing is broken: the effect is parked without a slot, the breaker opens, and closes again."""

import asyncio
import time
from typing import Any, Final

import grpc
import psycopg
from google.protobuf import json_format
from psycopg.rows import dict_row

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import operator_service_pb2 as operator_pb
from backburner.scheduler.v1 import operator_service_pb2_grpc as operator_grpc
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.crash.chaos import agents
from tests.crash.chaos.clients import Caller
from tests.crash.chaos.world import World

#: Seconds until the provider takes requests again.
RESET_SECONDS: Final = 8
_WAIT_SECONDS: Final = 60.0
_SCRIPT: Final = {
    "requests": 1,
    "fail": {"message": f"usage limit reached, try again in {RESET_SECONDS} s", "attempts": 1},
}
_STATE: Final = "SELECT state, not_before FROM backburner.effects WHERE run_id = %s"
_BREAKERS: Final = "SELECT harness, account, until, failures FROM backburner.provider_breakers WHERE harness = %s"


async def parked_and_back(world: World, caller: Caller) -> list[str]:
    """Parks one effect, and says what is wrong with how it waits and goes on."""
    request = pb.CreateRunRequest()
    step = {"kind": "agent", "harness": agents.QUOTA, "attempts": 2, "script": _SCRIPT, "on_quota": "park"}
    json_format.ParseDict({"folder": str(world.folder), "plan": [step]}, request.input)
    run_id = (await caller.create(process="chaos", input=request.input)).run.run_id
    async with await psycopg.AsyncConnection.connect(world.dsn, row_factory=dict_row, autocommit=True) as connection:
        found = await _waits(world, connection, run_id)
        run = None
        deadline = time.monotonic() + _WAIT_SECONDS
        while run is None and time.monotonic() < deadline:
            run = await caller.ended(run_id)
        if run is None or run.state != journal_pb2.RUN_STATE_COMPLETED or "ok " not in str(run.result):
            found.append(f"what was parked did not go on: {run or run_id}")
        left = await (await connection.execute(_BREAKERS, [agents.QUOTA])).fetchall()
    return found + [f"a breaker is left open, though its account is used again: {row}" for row in left]


async def _waits(world: World, connection: psycopg.AsyncConnection[Any], run_id: str) -> list[str]:
    """It is parked, and its executor's slot is free again before it goes on."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while not await _is_parked(connection, run_id):
        if time.monotonic() > deadline:
            return [f"run {run_id}: a spent quota did not park its effect"]
        await asyncio.sleep(0.1)
    taken: list[str] = []
    while await _is_parked(connection, run_id):
        taken = [slot for address in world.addresses for slot in await _taken(address)]
        if not taken:
            break
    return [f"run {run_id}: a parked effect holds slots: {taken}"] if taken else []


async def _is_parked(connection: psycopg.AsyncConnection[Any], run_id: str) -> bool:
    rows = await (await connection.execute(_STATE, [run_id])).fetchall()
    return [row["state"] for row in rows] == ["PARKED"]


async def _taken(address: str) -> list[str]:
    """Slots of agents that a scheduler counts as taken."""
    async with grpc.aio.insecure_channel(address) as channel:
        operator = operator_grpc.OperatorServiceStub(channel)
        try:
            answer = await operator.ListExecutors(operator_pb.ListExecutorsRequest(), timeout=5, wait_for_ready=True)
        except grpc.aio.AioRpcError:  # it is just starting: the other one will have the session
            return []
    return [f"{one.executor_id}: {one.slots_taken['agents']}" for one in answer.executors if one.slots_taken["agents"]]
