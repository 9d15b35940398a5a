"""Somebody sets the wall clock of the services while timers run: none fires before its time, none waits for hours."""

import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from backburner.journal.v1 import journal_pb2
from scheduler_service.journal.verify import verify
from tests.crash.chaos.clients import Caller
from tests.crash.chaos.world import World, world
from tests.support.eventually import eventually
from tests.support.journals import journal_of, of_type

pytestmark = [pytest.mark.crash, pytest.mark.timeout(240)]

SECONDS = 5.0
#: A plan, and the row after which its wait has begun.
PLANS: Sequence[tuple[dict[str, Any], str]] = (
    ({"kind": "sleep", "seconds": SECONDS}, "TIMER_SET"),
    ({"kind": "timer", "seconds": SECONDS}, "EFFECT_REQUESTED"),
    ({"kind": "flaky", "attempts": 8, "failures": 3}, "EFFECT_ATTEMPT_FAILED"),
)


@pytest.mark.invariant("I12")
@pytest.mark.parametrize("jump_s", [7200, -7200])
async def test_what_waits_goes_on_at_its_time(tmp_path: Path, jump_s: int) -> None:
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(world(tmp_path, schedulers=1, executors=1))
        caller = Caller(random.Random(0))
        await caller.open(made.addresses, stack)
        run_ids = [await _begun(made, caller, *plan) for plan in PLANS]
        for service in made.services:
            service.log.with_suffix(".clock").write_text(str(jump_s))
        run_ids.append(await _begun(made, caller, *PLANS[0]))  # whoever counts timers anew goes by the new clock
        for run_id in run_ids:
            run: Any = await eventually(lambda: caller.ended(run_id), 90, lambda: made.schedulers[0].tail)  # noqa: B023
            assert run.state == journal_pb2.RUN_STATE_COMPLETED
        found = [violation async for verified in verify(made.dsn, run_ids) for violation in verified.violations]
    assert not found


async def _begun(made: World, caller: Caller, step: dict[str, Any], row: str) -> str:
    """A run that waits."""
    given = Struct()
    given.update({"folder": str(made.folder), "plan": [step]})
    run_id = (await caller.create(process="chaos", input=given)).run.run_id
    await eventually(lambda: _has(made.dsn, run_id, row), 60, lambda: made.schedulers[0].tail)
    return run_id


async def _has(dsn: str, run_id: str, kind: str) -> bool:
    return bool(of_type(await journal_of(dsn, run_id), kind))
