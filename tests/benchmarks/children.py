"""Figures of children: how quick a cancel is, how long the proof of death takes, and what a flood of output costs."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import psutil
import psycopg

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.support.children import FLOOD_AT, program
from tests.support.client_program import ClientProgram, spec
from tests.support.services import Stack

#: Acknowledgement of a cancel to settlement, and what the settlement says, by the journal's own times.
_CANCELS = """
    SELECT extract(epoch FROM s.recorded_at - a.recorded_at) * 1000, s.data->>'death'
    FROM backburner.journal a JOIN backburner.journal s USING (run_id, effect_id)
    WHERE a.run_id = %s AND a.type = 'EFFECT_CANCEL_REQUESTED' AND s.type = 'EFFECT_CANCELLED'
"""


async def cancels(stack: Stack, dsn: str, work: dict[str, Any], count: int, **fields: Any) -> list[tuple[float, str]]:
    """Cancels so many attempts one after another, each as soon as it runs: milliseconds and what is said of death."""
    client = await ClientProgram.start(stack.client)
    for number in range(count):
        key = f"child/{number}"
        await client.request({key: spec(shell=work, **fields)})
        await _running(stack, client.run_id, key)
        name = pb.EffectName(run_id=client.run_id, key=key)
        await stack.client.CancelEffect(pb.CancelEffectRequest(effect=name, reason="measured"), timeout=30)
        await client.wait(key)
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        rows = await (await connection.execute(_CANCELS, [client.run_id])).fetchall()
    assert len(rows) == count, rows
    return [(float(ms), str(death)) for ms, death in rows]


@asynccontextmanager
async def flooded(stack: Stack, mb_per_s: int) -> AsyncIterator[None]:
    """A child that writes so much a second; cancelled in the end. 0: as much as it can."""
    client = await ClientProgram.start(stack.client)
    await client.request({"flood": spec(shell=program(FLOOD_AT, str(mb_per_s)), background=True)})
    await _running(stack, client.run_id, "flood")
    try:
        yield
    finally:
        name = pb.EffectName(run_id=client.run_id, key="flood")
        await stack.client.CancelEffect(pb.CancelEffectRequest(effect=name, reason="measured"), timeout=30)
        await client.wait("flood")


async def cpu_of(stack: Stack, seconds: float) -> float:
    """Share of a core that the executor takes."""
    executor = psutil.Process(stack.executor.pid)
    before, began = executor.cpu_times(), time.perf_counter()
    await asyncio.sleep(seconds)
    after = executor.cpu_times()
    return (after.user + after.system - before.user - before.system) / (time.perf_counter() - began)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which such a share of them lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def living(text: str) -> int:
    """Living processes with this text in their command line, which stands in for what a daemon cannot hide."""
    found = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            found += text in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
    return found


async def _running(stack: Stack, run_id: str, key: str) -> None:
    name = pb.EffectName(run_id=run_id, key=key)
    while True:
        effect = (await stack.client.GetEffect(pb.GetEffectRequest(effect=name), timeout=30)).effect
        if effect.attempt and effect.HasField("start_time"):
            return
        await asyncio.sleep(0.02)
