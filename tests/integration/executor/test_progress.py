"""Progress: what children and functions report, what of it is durable, and what watchers see."""

import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from backburner.executor.v1 import executor_service_pb2 as pb
from backburner.executor.v1 import executor_service_pb2_grpc as pb_grpc
from executor_service.server import ExecutorServer
from tests.integration.executor import functions
from tests.integration.executor.conftest import StartExecutor
from tests.support.eventually import eventually
from tests.support.fake_scheduler import Dispatch, FakeScheduler

Frames = list[pb.StreamProgressResponse]


def sh(command_line: str) -> dict[str, Any]:
    return {"shell": {"command_line": command_line, "check": True}}


@pytest.fixture
async def stub(executor: ExecutorServer) -> AsyncIterator[pb_grpc.ExecutorServiceStub]:
    async with grpc.aio.insecure_channel(executor.address) as channel:
        yield pb_grpc.ExecutorServiceStub(channel)


async def held(executor: ExecutorServer, dispatch: Dispatch) -> None:
    await eventually(lambda: executor.attempts.get(dispatch.effect_id, 1))


async def watch(stub: pb_grpc.ExecutorServiceStub, dispatch: Dispatch, **options: object) -> Frames:
    """All frames until the end."""
    request = pb.StreamProgressRequest(effect_id=dispatch.effect_id, attempt=1, **options)  # type: ignore[arg-type]
    call = stub.StreamProgress(request)
    try:
        return [frame async for frame in call]
    finally:
        call.cancel()


def kinds(frames: Frames) -> list[str]:
    return [str(frame.WhichOneof("frame")) for frame in frames]


REPORTS = r"""
echo '::backburner {"percent": 10, "step": "one", "step_index": 1, "step_count": 2, "eta_s": 30}'
echo '{"percent": 60, "step": "two", "data": {"files": 3.0}}' >$BACKBURNER_PROGRESS
echo '::backburner {"usage": {"input_tokens": 12, "cost_usd": 0.5, "model": "m"}}' >&2
echo '::backburner {"result": {"answer": 42.0}}'
"""


def until(go: Path) -> str:
    """The end of a command that goes on when a test makes the file: a slow machine must not miss it."""
    return f"while [ ! -e {go} ]; do sleep 0.02; done"


async def test_child_reports_progress_usage_and_result(
    scheduler: FakeScheduler, executor: ExecutorServer, tmp_path: Path
) -> None:
    dispatch = await scheduler.one(**sh(REPORTS + until(tmp_path / "go")))
    await held(executor, dispatch)
    attempt = executor.attempts.get(dispatch.effect_id, 1)
    assert attempt is not None
    await eventually(lambda: attempt.progress.usage is not None and attempt.progress.step == "two")
    (tmp_path / "go").touch()
    settled = await scheduler.settled(dispatch)
    assert settled.value == {"answer": 42}
    assert settled.data["result"]["usage"] == {"input_tokens": 12, "cost_usd": 0.5, "model": "m"}
    assert "::backburner" in settled.data["result"]["stdout"]["tail"], "captured output is what the child wrote"


AGENT = """
echo '::backburner {"tool": "Bash", "step": "pytest", "turns": 4, "turns_max": 20, "todos": 4, "todos_done": 1}'
"""


async def test_what_an_agent_does_is_in_the_stream_in_heartbeats_and_in_the_journal(
    scheduler: FakeScheduler, executor: ExecutorServer, stub: pb_grpc.ExecutorServiceStub, tmp_path: Path
) -> None:
    dispatch = await scheduler.one(**sh(AGENT + until(tmp_path / "go")))
    await held(executor, dispatch)
    attempt = executor.attempts.get(dispatch.effect_id, 1)
    assert attempt is not None
    await eventually(lambda: attempt.progress.turns)
    (tmp_path / "go").touch()
    frames = await watch(stub, dispatch, after_cursor=0)
    [live] = [frame.progress for frame in frames if frame.HasField("progress")]
    assert live == attempt.snapshot(small=True).progress
    assert (live.tool, live.step, live.turns, live.turns_max) == ("Bash", "pytest", 4, 20)
    assert (live.todos_done, live.todos, live.percent) == (1, 4, 25.0)
    [stored] = [row[0] for row in await scheduler.query("SELECT progress FROM backburner.effects")]
    assert stored == {
        "ordinal": 1, "tool": "Bash", "step": "pytest", "turns": 4, "turns_max": 20, "todos": 4, "todos_done": 1,
        "percent": 25.0,
    }  # fmt: skip


@pytest.mark.usefixtures("executor")
async def test_hostile_lines_change_nothing(scheduler: FakeScheduler) -> None:
    lines = r"""
    printf '::backburner\n::backburner {\n::backburner []\n::backburner {"percent": "much"}\n::backburner {"x": 1}\n'
    printf '::backburner {"percent": NaN}\n::backburner {"step": 3}\n\377\376::backburner {}\n' >&2
    printf '{"percent": 1e400}\n\000\000\n[[[[\n' >$BACKBURNER_PROGRESS
    head -c 3000000 /dev/zero | tr '\0' 'x' >$BACKBURNER_PROGRESS
    printf '\n{"result": "sound"}\n' >$BACKBURNER_PROGRESS
    """
    settled = await scheduler.run(**sh(lines))
    assert settled.data["state"] == "EFFECT_STATE_SUCCEEDED"
    assert settled.value == "sound"


@pytest.mark.usefixtures("executor")
@pytest.mark.parametrize("name", ["exec.odd_text", "exec.odd_text_in_thread"])
async def test_text_that_cannot_be_stored_is_replaced(scheduler: FakeScheduler, name: str) -> None:
    functions.BEGAN[name] = threading.Event()
    dispatch = await scheduler.one(function={"function": name, "args": [name]})
    session = scheduler.sessions[-1]
    [row] = await eventually(lambda: scheduler.rows(dispatch, "EFFECT_PROGRESS"))
    assert row.data["progress"]["step"] == "caf?\ufffd.txt"
    await eventually(lambda: "caf?\ufffd.txt" in {a.usage.model for b in session.heartbeats for a in b.changed})
    session.cancel(dispatch)
    settled = await scheduler.settled(dispatch)
    assert (settled.type, settled.data["partial"]["usage"]["model"]) == ("EFFECT_CANCELLED", "caf?\ufffd.txt")
    assert scheduler.sessions == [session], "the session lives on"


async def test_attempt_that_cannot_be_shown_ends_no_session(scheduler: FakeScheduler, executor: ExecutorServer) -> None:
    bad, good = await scheduler.request(2, **sh("sleep 5"))
    for dispatch in (bad, good):
        await held(executor, dispatch)
    attempt = executor.attempts.get(bad.effect_id, 1)
    assert attempt is not None
    session = scheduler.sessions[-1]
    session.heartbeats.clear()
    attempt.progress.step, attempt.progress.ordinal, attempt.changed = "\udcff", 1, True

    def both_reported() -> bool:
        return any({a.ref.effect_id for a in b.attempts} == {bad.effect_id, good.effect_id} for b in session.heartbeats)

    await eventually(lambda: not attempt.changed)
    session.heartbeats.clear()
    await eventually(both_reported)
    assert scheduler.sessions == [session]


@pytest.mark.parametrize("result", ["9007199254740993", r'"a\u0000b"'])
async def test_result_that_cannot_be_stored_fails(
    scheduler: FakeScheduler, executor: ExecutorServer, result: str
) -> None:
    assert executor.address
    settled = await scheduler.run(**sh(f"""echo '{{"result": {result}}}' >$BACKBURNER_PROGRESS"""))
    assert settled.reason == "INVALID_RESULT"


PROJECTED = "SELECT progress, progress_ordinal, progress_rows FROM backburner.effects WHERE effect_id = %s"


@pytest.mark.invariant("I11")
@pytest.mark.usefixtures("executor")
@pytest.mark.parametrize("ends", [False, True])
async def test_a_flood_of_reports_is_few_rows_and_the_last_one_is_projected(
    scheduler: FakeScheduler, *, ends: bool
) -> None:
    functions.BEGAN["flood"] = threading.Event()
    dispatch = await scheduler.one(
        function={"function": "exec.flood", "args": ["flood", 10_000], "kwargs": {"ends": ends}}
    )

    async def projected() -> bool:
        [(_, ordinal, _)] = await scheduler.query(PROJECTED, dispatch.effect_id)
        return bool(ordinal == 10_000)

    await eventually(projected)
    [(progress, _, rows)] = await scheduler.query(PROJECTED, dispatch.effect_id)
    assert (progress["step"], progress["percent"], "eta" in progress) == ("step 10000", 100, False)
    assert rows == len(await scheduler.rows(dispatch, "EFFECT_PROGRESS")) <= 10, "one commit a second"


@pytest.mark.usefixtures("executor")
async def test_new_steps_become_rows_one_commit_a_second(scheduler: FakeScheduler) -> None:
    names = [f"step-{n}" for n in range(12)]
    dispatch = await scheduler.one(function={"function": "exec.steps", "args": [names, 0.2]})
    await scheduler.settled(dispatch)
    rows = await scheduler.rows(dispatch, "EFFECT_PROGRESS")
    assert 2 <= len(rows) <= 4, "2.4 s of work"
    ordinals = [row.data["progress"]["ordinal"] for row in rows]
    assert ordinals == sorted(set(ordinals))
    [(projected, ordinal)] = await scheduler.query(
        "SELECT progress, progress_ordinal FROM backburner.effects WHERE effect_id = %s", dispatch.effect_id
    )
    assert projected["ordinal"] == ordinal >= ordinals[-1]


async def test_eta_is_estimated_from_past_attempts(scheduler: FakeScheduler, stub: pb_grpc.ExecutorServiceStub) -> None:
    dispatch = await scheduler.one(expected_s=60.0, **sh("sleep 0.5"))
    frames = await eventually(lambda: _try(watch(stub, dispatch)))
    assert frames is not None
    progress = frames[0].snapshot.attempt.progress
    assert progress.eta_estimated
    assert 50 < progress.eta.ToSeconds() <= 60


async def _try(call: object) -> Frames | None:
    try:
        return await call  # type: ignore[misc,no-any-return]
    except grpc.aio.AioRpcError:
        return None


async def test_watch_is_snapshot_then_frames_then_one_end(
    scheduler: FakeScheduler, executor: ExecutorServer, stub: pb_grpc.ExecutorServiceStub
) -> None:
    line = "sleep 0.3; for i in 1 2 3; do echo line$i; echo '::backburner {\"step\": \"s'$i'\"}'; sleep 0.1; done"
    dispatch = await scheduler.one(**sh(line))
    await held(executor, dispatch)
    frames = await watch(stub, dispatch, include_output=True)
    assert kinds(frames)[0] == "snapshot"
    assert kinds(frames)[-1] == "end"
    assert frames[-1].end.reason == pb.StreamEnd.REASON_ATTEMPT_ENDED
    assert [f.progress.step for f in frames if f.HasField("progress")] == ["s1", "s2", "s3"]
    output = [f.output for f in frames if f.HasField("output")]
    assert b"".join(chunk.data for chunk in output).count(b"line") == 3
    assert [c.offset for c in output] == [sum(len(o.data) for o in output[:n]) for n in range(len(output))]
    cursors = [f.cursor for f in frames if f.WhichOneof("frame") in ("progress", "output", "usage")]
    assert cursors == list(range(1, len(cursors) + 1))


@pytest.mark.invariant("I9")
async def test_watch_resumes_at_its_cursor(
    scheduler: FakeScheduler, executor: ExecutorServer, stub: pb_grpc.ExecutorServiceStub
) -> None:
    line = "for i in 1 2 3 4; do echo '::backburner {\"step\": \"s'$i'\"}'; done; sleep 1"
    dispatch = await scheduler.one(**sh(line))
    await held(executor, dispatch)
    first = stub.StreamProgress(pb.StreamProgressRequest(effect_id=dispatch.effect_id, after_cursor=0))
    seen: Frames = []
    while len(seen) < 2:
        frame = await first.read()
        assert isinstance(frame, pb.StreamProgressResponse)
        seen += [frame] if frame.HasField("progress") else []
    first.cancel()
    rest = await watch(stub, dispatch, after_cursor=seen[-1].cursor)
    steps = [f.progress.step for f in (*seen, *rest) if f.HasField("progress")]
    assert steps == ["s1", "s2", "s3", "s4"]
    assert kinds(rest)[0] == "progress", "no snapshot when resuming"


async def test_watcher_that_comes_too_late_gets_a_gap_and_a_snapshot(
    scheduler: FakeScheduler, executor: ExecutorServer, stub: pb_grpc.ExecutorServiceStub, tmp_path: Path
) -> None:
    line = (
        'for i in $(seq 600); do echo "{\\"percent\\": $((i / 6)), \\"step\\": \\"s$i\\"}"; done >$BACKBURNER_PROGRESS'
    )
    dispatch = await scheduler.one(**sh(f"{line}; {until(tmp_path / 'go')}"))
    await held(executor, dispatch)
    attempt = executor.attempts.get(dispatch.effect_id, 1)
    assert attempt is not None
    await eventually(lambda: attempt.progress.step == "s600")
    call = stub.StreamProgress(pb.StreamProgressRequest(effect_id=dispatch.effect_id, attempt=1, after_cursor=10))
    first_read = await call.read()
    (tmp_path / "go").touch()
    assert isinstance(first_read, pb.StreamProgressResponse)
    frames = [first_read, *await _rest(call)]
    assert kinds(frames)[:3] == ["gap", "snapshot", "progress"]
    gap, first = frames[0].gap, frames[2]
    assert gap.next_cursor == first.cursor
    assert gap.frames == first.cursor - 1 - 10
    assert frames[1].snapshot.attempt.progress.step == "s600"


async def test_slow_watcher_is_not_waited_for(
    scheduler: FakeScheduler, executor: ExecutorServer, stub: pb_grpc.ExecutorServiceStub, tmp_path: Path
) -> None:
    dispatch = await scheduler.one(**sh(f"{until(tmp_path / 'go')}; head -c 30000000 /dev/zero"))
    await held(executor, dispatch)
    call = stub.StreamProgress(pb.StreamProgressRequest(effect_id=dispatch.effect_id, include_output=True))
    first = await call.read()
    assert isinstance(first, pb.StreamProgressResponse)
    assert first.HasField("snapshot")
    (tmp_path / "go").touch()
    assert (await scheduler.settled(dispatch)).data["result"]["stdout"]["total_bytes"] == 30_000_000
    rest = await _rest(call)
    call.cancel()
    got = sum(len(f.output.data) for f in rest)
    assert got < 30_000_000
    assert any(f.HasField("gap") for f in rest)
    assert rest[-1].HasField("end")


async def _rest(call: grpc.aio.UnaryStreamCall[pb.StreamProgressRequest, pb.StreamProgressResponse]) -> Frames:
    frames: Frames = []
    while isinstance(frame := await call.read(), pb.StreamProgressResponse):
        frames.append(frame)
    return frames


async def test_idle_watch_carries_heartbeats_and_ends_with_its_lifetime(
    scheduler: FakeScheduler, start_executor: StartExecutor
) -> None:
    executor = await start_executor(watch_heartbeat_seconds=0.1, watch_lifetime_seconds=0.4)
    dispatch = await scheduler.one(**sh("sleep 5"))
    await held(executor, dispatch)
    async with grpc.aio.insecure_channel(executor.address) as channel:
        frames = await watch(pb_grpc.ExecutorServiceStub(channel), dispatch)
    assert kinds(frames)[1] == "heartbeat"
    assert frames[-1].end.reason == pb.StreamEnd.REASON_LIFETIME


async def test_errors_name_their_reason(scheduler: FakeScheduler, start_executor: StartExecutor) -> None:
    executor = await start_executor(watchers_max=1)
    dispatch = await scheduler.one(**sh("sleep 5"))
    await held(executor, dispatch)
    async with grpc.aio.insecure_channel(executor.address) as channel:
        stub = pb_grpc.ExecutorServiceStub(channel)
        unknown = pb.StreamProgressRequest(effect_id="no-such-effect", attempt=1)
        assert await _refused(stub, unknown) == (grpc.StatusCode.NOT_FOUND, "ATTEMPT_NOT_FOUND")
        ahead = pb.StreamProgressRequest(effect_id=dispatch.effect_id, attempt=1, after_cursor=999)
        assert await _refused(stub, ahead) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_AHEAD")
        call = stub.StreamProgress(pb.StreamProgressRequest(effect_id=dispatch.effect_id))
        await call.read()
        second = pb.StreamProgressRequest(effect_id=dispatch.effect_id)
        assert await _refused(stub, second) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHERS")
        call.cancel()


async def _refused(stub: pb_grpc.ExecutorServiceStub, request: pb.StreamProgressRequest) -> tuple[object, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.StreamProgress(request).read()
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    from google.rpc import error_details_pb2  # type: ignore[import-untyped]

    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    return caught.value.code(), info.reason


async def test_attempts_are_listed_and_drain_is_idempotent(
    scheduler: FakeScheduler, executor: ExecutorServer, stub: pb_grpc.ExecutorServiceStub
) -> None:
    dispatch = await scheduler.one(**sh("sleep 5"))
    await eventually(lambda: (attempt := executor.attempts.get(dispatch.effect_id, 1)) and attempt.pid)
    listed = await stub.ListAttempts(pb.ListAttemptsRequest())
    assert [(a.effect_id, a.attempt, a.state) for a in listed.attempts] == [
        (dispatch.effect_id, 1, pb.Attempt.STATE_RUNNING)
    ]
    assert listed.executor_id == "executor-under-test"
    assert not listed.draining
    for _ in range(2):
        assert (await stub.Drain(pb.DrainRequest(reason="test"))).running == 1
    assert (await stub.ListAttempts(pb.ListAttemptsRequest())).draining
