"""Each sequence of "Clients in any language", by a client in Python with the generated stubs alone.

How such a client dies and comes back is shown by tests/crash/test_client_dies.py.
"""

import datetime as dt
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import psutil
import pytest

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from backburner.scheduler.v1 import scheduler_service_pb2_grpc as pb_grpc
from tests.clients.python.client import SERVICE_CONFIG, Client, connect, inbox, refusal, shell
from tests.crash.watchers import RunWatcher
from tests.support.client_program import RUN_STATE, STATE, external, fresh_key, function, spec
from tests.support.eventually import eventually
from tests.support.services import ROOT, Stack

pytestmark = pytest.mark.e2e

READ_FILE = "tests.e2e.processes.wait_for_file"


@pytest.fixture
async def stub(stack: Stack) -> AsyncIterator[pb_grpc.SchedulerServiceStub]:
    """The service as a client reaches it."""
    async with connect(stack.address) as channel:
        yield pb_grpc.SchedulerServiceStub(channel)


@pytest.fixture
async def client(stub: pb_grpc.SchedulerServiceStub) -> Client:
    """A client that holds a run of its own."""
    return await Client.start(stub, fresh_key())


def until(path: Path) -> str:
    """A line for the shell that waits until the test makes the file."""
    return f"while [ ! -e {path} ]; do sleep 0.02; done"


def test_the_client_needs_no_service_and_its_service_config_is_the_readmes() -> None:
    listed = "import sys, tests.clients.python.client; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", listed], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"scheduler_service", "executor_service"}.isdisjoint(loaded.stdout.split())
    assert SERVICE_CONFIG in re.sub(r"\s+", " ", (ROOT / "README.md").read_text())


async def test_start_gives_the_same_run_again_with_a_greater_epoch(stub: pb_grpc.SchedulerServiceStub) -> None:
    key = fresh_key()
    first, second = await Client.start(stub, key), await Client.start(stub, key)
    assert (first.created, second.created) == (True, False)
    assert second.run_id == first.run_id
    assert second.epoch > first.epoch > 0


@pytest.mark.invariant("I2", "I5")
async def test_what_was_asked_is_answered_from_the_journal(stub: pb_grpc.SchedulerServiceStub, tmp_path: Path) -> None:
    key, marks, release = fresh_key(), tmp_path / "marks", tmp_path / "release"
    effects = {
        "tests": shell(f"echo $$ >> {marks}; {until(release)}; echo passed", background=True),
        "sum": function("tests.e2e.processes.add", 2, 3),
    }
    first = await Client.start(stub, key)
    await first.request(effects)
    await first.wait("sum")
    second = await Client.start(stub, key)
    tests, added = await second.request(effects)
    assert not tests.HasField("settle_time")
    assert added.state == STATE.EFFECT_STATE_SUCCEEDED
    assert await second.value(added.result.value) == 5
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await first.request({"late": shell("true")})
    assert refusal(refused.value)[0] == "CLIENT_SUPERSEDED"
    release.touch()
    [tests] = await second.wait("tests")
    assert tests.result.stdout.tail == "passed\n"
    assert len(marks.read_text().splitlines()) == 1


async def test_wait_for_any_for_all_and_not_for_ever(client: Client, tmp_path: Path) -> None:
    release = tmp_path / "release"
    await client.request({"quick": shell("true"), "slow": shell(until(release))})
    settled = {effect.key: effect.state for effect in await client.wait("quick", "slow", any_of_them=True)}
    assert settled.pop("quick") == STATE.EFFECT_STATE_SUCCEEDED
    assert STATE.EFFECT_STATE_SUCCEEDED not in settled.values()
    request = pb.WaitEffectsRequest(run_id=client.run_id, keys=["quick", "slow"], mode=pb.WaitEffectsRequest.MODE_ALL)
    request.max_wait.FromMilliseconds(50)
    assert (await client.stub.WaitEffects(request)).timed_out
    release.touch()
    both = await client.wait("quick", "slow")
    assert [effect.state for effect in both] == [STATE.EFFECT_STATE_SUCCEEDED] * 2


@pytest.mark.invariant("I9")
async def test_a_watch_that_is_cut_goes_on_where_it_was(client: Client, stack: Stack, tmp_path: Path) -> None:
    release = tmp_path / "release"
    half = """echo '::backburner {"percent": 50, "step": "half"}'; echo one"""
    watcher, steps = RunWatcher(stack.address, client.run_id), set()
    call = watcher.watch(client.stub)
    await client.request({"work": shell(f"{half}; {until(release)}; echo two")})
    async for frame in call:
        watcher.take(frame)
        steps.add(frame.progress.progress.step)
        if "half" in steps and watcher.bytes_seen:
            break
    call.cancel()
    snapshot = await client.snapshot()
    assert [effect.key for effect in snapshot.effects] == ["work"]
    assert snapshot.seq >= watcher.after_seq
    release.touch()
    [work] = await client.wait("work")
    run = await client.finish("done")
    async for frame in watcher.watch(client.stub):
        watcher.take(frame)
    assert watcher.ends == {"RUN_CLOSED": 1}
    assert watcher.seqs == list(range(1, run.head_seq + 1))
    assert watcher.outputs[work.effect_id, 1, 1].endswith(b"one\ntwo\n")


async def test_output_is_read_by_offset_and_followed(client: Client, tmp_path: Path) -> None:
    release, seen = tmp_path / "release", b""
    await client.request({"say": shell(f"echo one; {until(release)}; echo two")})
    await eventually(lambda: dispatched(client, "say"))
    async for data in client.output("say"):
        seen += data
        release.touch()
    assert seen == b"one\ntwo\n"
    assert b"".join([data async for data in client.output("say", offset=4)]) == b"two\n"


async def dispatched(client: Client, key: str) -> bool:
    """Whether the effect has an attempt."""
    answer = await client.stub.GetEffect(pb.GetEffectRequest(effect=client.name(key)))
    return answer.effect.attempt > 0


async def test_a_large_result_is_a_blob(client: Client, tmp_path: Path) -> None:
    text = "".join(f"{n:07d}\n" for n in range(12_500))  # 100 kB
    (tmp_path / "large").write_text(text)
    await client.request({"large": function(READ_FILE, str(tmp_path / "large"))})
    [large] = await client.wait("large")
    assert large.result.value.WhichOneof("source") == "blob"
    assert await client.value(large.result.value) == text


@pytest.mark.invariant("I6")
async def test_a_cancelled_child_is_proven_dead(client: Client, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    await client.request({"long": shell(f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; sleep 600")})
    await eventually(pid_file.exists)
    child = psutil.Process(int(pid_file.read_text()))
    assert (await client.cancel_effect("long")).state == STATE.EFFECT_STATE_CANCELLING
    [long] = await client.wait("long")
    assert (long.state, long.death) == (STATE.EFFECT_STATE_CANCELLED, journal.DEATH_PROVEN)
    assert not child.is_running()


async def test_a_question_is_found_and_answered_without_its_run(client: Client) -> None:
    await client.request({"approve": external("yes", "no")})
    [question] = [effect for effect in await inbox(client.stub) if effect.run_id == client.run_id]
    answer = pb.ResolveEffectRequest(effect=pb.EffectName(effect_id=question.effect_id), actor="ann")
    answer.succeeded.choice = "yes"
    await client.stub.ResolveEffect(answer)
    [approved] = await client.wait("approve")
    assert approved.result.choice == "yes"


async def test_a_client_has_timers_and_child_runs(client: Client) -> None:
    due = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)
    timer = spec(timer={"fire_at": due.isoformat()})
    await client.request({"nap": timer, "child": spec(run={"process": "cli.returns", "input": {"n": 5}})})
    nap, child = await client.wait("nap", "child")
    assert nap.settle_time.ToDatetime(dt.UTC) >= due
    assert await client.value(child.result.value) == {"n": 5}
    of_child = (await client.stub.GetRun(pb.GetRunRequest(run_id=child.child_run_id))).run
    assert (of_child.state, of_child.parent_run_id) == (RUN_STATE.RUN_STATE_COMPLETED, client.run_id)


async def test_finish_names_what_is_open_and_waits_for_it_when_told(client: Client, tmp_path: Path) -> None:
    release = tmp_path / "release"
    await client.request({"open": shell(until(release), background=True)})
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.finish(7)
    reason, metadata = refusal(refused.value)
    assert (refused.value.code(), reason) == (grpc.StatusCode.FAILED_PRECONDITION, "EFFECTS_OPEN")
    assert (metadata["keys"], metadata["count"]) == ("open", "1")
    assert (await client.finish(7, wait=True)).state == RUN_STATE.RUN_STATE_CLOSING
    release.touch()
    run = await client.ended()
    assert (run.state, await client.value(run.result)) == (RUN_STATE.RUN_STATE_COMPLETED, 7)
