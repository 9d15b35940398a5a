"""Timeouts of a running attempt: what keeps it alive, which reason it ends with, and a result in the same instant."""

import asyncio
import random
import threading
import time
from pathlib import Path
from typing import Any, Final

import pytest

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.process_group import ProcessGroup
from executor_service.server import ExecutorServer
from tests.integration.executor import functions
from tests.integration.executor.conftest import stderr_pids
from tests.support.children import alive, program
from tests.support.eventually import eventually
from tests.support.fake_scheduler import Dispatch, FakeScheduler, Settled

pytestmark = [pytest.mark.usefixtures("executor"), pytest.mark.timeout(180)]

SECONDS = 60.0
KILL_GRACE: Final = "0.2s"

#: Says its pid; then for `argv[2]` beats of 0.1 s gives the sign of life that `argv[1]` names, and after that none.
LIVELY: Final = """
import os, sys, time
kind, beats = sys.argv[1], int(sys.argv[2])
reports = int(os.environ["BACKBURNER_PROGRESS_FD"])
os.write(2, b"pid=%d\\n" % os.getpid())
for beat in range(beats):
    if kind in ("output", "both"):
        os.write(1, b"tick\\n")
    if kind in ("progress", "both"):
        os.write(reports, b'{"step": "beat %d"}\\n' % beat)
    time.sleep(0.1)
if kind == "both":
    time.sleep(300)
"""


def sh(line: str) -> dict[str, Any]:
    return {"shell": {"command_line": line, "check": True}}


@pytest.mark.parametrize("kind", ["output", "progress"])
async def test_one_sign_of_life_is_enough(scheduler: FakeScheduler, kind: str) -> None:
    """Many times the bound passes, and the silence is never that long by the one thing alone."""
    timeouts = {"silence": "3s", "kill_grace": KILL_GRACE}
    settled = await scheduler.run(SECONDS, timeouts=timeouts, shell=program(LIVELY, kind, "60"))
    assert settled.data["state"] == "EFFECT_STATE_SUCCEEDED", settled
    assert float(settled.data["elapsed"].removesuffix("s")) > 4, "the bound was not even passed"


async def test_silence_has_its_own_reason_though_the_child_lives(scheduler: FakeScheduler) -> None:
    timeouts = {"silence": "1s", "start_to_close": "100s", "kill_grace": KILL_GRACE}
    dispatch = await scheduler.one(timeouts=timeouts, total_remaining_s=100, shell=program(LIVELY, "both", "15"))
    [child] = await stderr_pids(scheduler, dispatch)
    settled = await scheduler.settled(dispatch, SECONDS)
    assert (settled.data["state"], settled.reason) == ("EFFECT_STATE_TIMED_OUT", "TIMEOUT_SILENCE")
    assert settled.data["result"]["stdout"]["tail"] == "tick\n" * 15, "it ended before it was silent"
    assert settled.data["death"] == "DEATH_PROVEN"
    assert not alive(child)


async def test_a_function_that_only_reports_is_not_silent(scheduler: FakeScheduler) -> None:
    work = {"function": {"function": "exec.steps", "args": [[f"step {n}" for n in range(40)], 0.1]}}
    settled = await scheduler.run(SECONDS, timeouts={"silence": "2s"}, **work)
    assert settled.data["state"] == "EFFECT_STATE_SUCCEEDED", settled


async def test_what_was_said_while_the_executor_was_stopped_is_no_silence(
    scheduler: FakeScheduler, executor: ExecutorServer
) -> None:
    """The executor stands still for longer than the bound; the child has gone on talking, and that is heard first."""
    dispatch = await scheduler.one(timeouts={"silence": "1s"}, shell=program(LIVELY, "output", "30"))
    await _runs(executor, dispatch)
    time.sleep(2)  # noqa: ASYNC251 - this is the stop
    assert (await scheduler.settled(dispatch, SECONDS)).data["state"] == "EFFECT_STATE_SUCCEEDED"


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("bound", ["start_to_close", "silence", "total"])
async def test_what_ended_in_time_while_the_executor_was_stopped_has_not_timed_out(
    scheduler: FakeScheduler, executor: ExecutorServer, tmp_path: Path, bound: str
) -> None:
    """Its end and its deadline are found in the same turn of the loop: it was not late, and is not run again."""
    given: dict[str, Any] = {"timeouts": {bound: "2s"}} if bound != "total" else {"total_remaining_s": 2}
    line = f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; exit 0"
    dispatch = await scheduler.one(max_attempts=3, **given, **sh(line))
    await _runs(executor, dispatch)
    _stop_for(3, tmp_path / "go")
    settled = await scheduler.settled(dispatch, SECONDS)
    assert (settled.type, settled.data.get("state")) == ("EFFECT_RESOLVED", "EFFECT_STATE_SUCCEEDED"), settled


async def test_a_call_that_returned_while_the_executor_was_stopped_has_not_timed_out(
    scheduler: FakeScheduler, executor: ExecutorServer
) -> None:
    functions.BEGAN["waits"] = threading.Event()
    work = {"function": "exec.blocks_for", "args": ["waits", 1.0]}
    dispatch = await scheduler.one(timeouts={"start_to_close": "2s"}, function=work)
    await eventually(functions.BEGAN["waits"].is_set, SECONDS)
    time.sleep(3)  # noqa: ASYNC251 - this is the stop
    settled = await scheduler.settled(dispatch, SECONDS)
    assert settled.data["state"] == "EFFECT_STATE_SUCCEEDED", settled
    assert settled.value == "waits"


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("by", ["start_to_close", "total", "cancel"])
async def test_a_child_that_has_ended_is_late_no_more_and_can_be_cancelled(
    scheduler: FakeScheduler, executor: ExecutorServer, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """The proof of death takes its time, which is none of the child's; but a cancel is a cancel."""
    ended, prove = asyncio.Event(), asyncio.Event()
    finish = ProcessGroup.finish

    async def slow(group: ProcessGroup) -> bool:
        ended.set()
        await prove.wait()
        return await finish(group)

    monkeypatch.setattr(ProcessGroup, "finish", slow)
    bounds: dict[str, dict[str, Any]] = {
        "start_to_close": {"timeouts": {"start_to_close": "2s"}}, "total": {"total_remaining_s": 2}, "cancel": {},
    }  # fmt: skip
    dispatch = await scheduler.one(**bounds[by], **sh("echo done"))
    await asyncio.wait_for(ended.wait(), SECONDS)
    held = executor.attempts.get(dispatch.effect_id, 1)
    assert held is not None
    if by == "cancel":
        executor.attempts.cancel(pb.CancelAttempt(ref=dispatch.ref, reason="CANCELLED_BY_USER", message="enough"))
    else:
        due = held._timers[by.replace("_", " ")].when()
        await eventually(lambda: asyncio.get_running_loop().time() > due + 0.1, SECONDS)
    prove.set()
    settled = await scheduler.settled(dispatch, SECONDS)
    if by == "cancel":
        assert (settled.type, settled.reason) == ("EFFECT_CANCELLED", "CANCELLED_BY_USER")
        assert settled.data["partial"]["stdout"]["tail"] == "done\n"
    else:
        assert settled.data["state"] == "EFFECT_STATE_SUCCEEDED", settled
    assert settled.data["death"] == "DEATH_PROVEN"


@pytest.mark.invariant("I2", "I10")
@pytest.mark.parametrize("bound", ["start_to_close", "total"])
async def test_a_deadline_and_a_result_in_the_same_instant_settle_once(scheduler: FakeScheduler, bound: str) -> None:
    """Many children end around their deadline: each is one thing or the other, entirely, and dead."""
    draw = random.Random(7)
    given: dict[str, Any] = {"timeouts": {"kill_grace": KILL_GRACE}}
    if bound == "total":
        given["total_remaining_s"] = 1.0
    else:
        given["timeouts"]["start_to_close"] = "1s"
    expected = f"TIMEOUT_{bound.upper()}"
    for _ in range(3):
        lasts = [0.0, 60.0, *(draw.uniform(0.7, 1.0) for _ in range(6))]  # one of each kind for certain
        work = [program(f"import time; time.sleep({seconds}); print('whole')") for seconds in lasts]
        starts = [await scheduler.one(shell={**shell, "check": True}, **given) for shell in work]
        ended = [await _one_end(scheduler, dispatch) for dispatch in starts]
        assert [(row.data["state"], row.reason) for row in ended[:2]] == [
            ("EFFECT_STATE_SUCCEEDED", ""), ("EFFECT_STATE_TIMED_OUT", expected)
        ]  # fmt: skip
        for settled in ended:
            told = (settled.data["state"], settled.reason)
            assert settled.data["death"] == "DEATH_PROVEN"
            if told == ("EFFECT_STATE_SUCCEEDED", ""):
                result = settled.data["result"]
                assert (result["exit_code"], result["stdout"]["tail"]) == (0, "whole\n"), settled
            else:  # what it wrote, or even gave, is kept with that, and is no result
                assert told == ("EFFECT_STATE_TIMED_OUT", expected), settled


async def _one_end(scheduler: FakeScheduler, dispatch: Dispatch) -> Settled:
    """The only row that settles the effect."""
    settled = await scheduler.settled(dispatch, SECONDS)
    rows = await scheduler.rows(dispatch)
    assert [row for row in rows if row.type in ("EFFECT_RESOLVED", "EFFECT_CANCELLED")] == [settled]
    return settled


async def _runs(executor: ExecutorServer, dispatch: Dispatch) -> None:
    """Its child runs."""

    def look() -> bool:
        held = executor.attempts.get(dispatch.effect_id, 1)
        return held is not None and held.pid > 0

    await eventually(look, SECONDS)


def _stop_for(seconds: float, then: Path) -> None:
    """The executor stands still; in the middle of it, somebody else makes the file."""
    then.touch()
    time.sleep(seconds)
