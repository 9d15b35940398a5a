"""Watches: every event once and in order, whatever happens to the stream; live frames only while their attempt runs."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from backburner.executor.v1 import executor_service_pb2_grpc
from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api.engine import ConnectedExecutor, LiveAttempt
from scheduler_service.api.watchers import Pace
from tests.integration.api.scene import INCARNATION, NOWHERE, Scene, external, log_row, refused, scene, shell
from tests.integration.api.test_progress_hub import FakeExecutor
from tests.support.eventually import eventually

End = pb.WatchEnd


async def rest(call: Any) -> AsyncIterator[Any]:
    """Frames to the end of a stream of which some were read."""
    while (frame := await call.read()) is not grpc.aio.EOF:
        yield frame


async def read(call: Any) -> Any:
    return await call.read()


async def collect(call: Any) -> list[Any]:
    return [frame async for frame in rest(call)]


def seqs(frames: list[Any]) -> list[int]:
    return [frame.event.seq for frame in frames if frame.HasField("event")]


@pytest.mark.invariant("I9")
async def test_a_watch_cut_at_random_and_resumed_sees_every_event_once_in_order(at: Scene) -> None:
    run_id = await at.create()
    seed = random.Random(7)

    async def grow() -> None:
        for n in range(150):
            # Half of it is what another replica writes, of which this one hears by its poll only.
            await at.append(run_id, *(log_row(n) for _ in range(seed.randint(1, 4))), tell=seed.random() < 0.5)
            await asyncio.sleep(seed.random() * 0.01)
        await at.end(run_id)

    async def watch_on() -> list[int]:
        seen: list[int] = []
        cuts = 0
        while True:
            call = at.client.WatchRun(pb.WatchRunRequest(run_id=run_id, after_seq=seen[-1] if seen else 0))
            left = seed.randint(0, 40)
            async for frame in call:
                if frame.HasField("event"):
                    seen.append(frame.event.seq)
                if frame.HasField("end"):
                    assert frame.end.reason == End.REASON_RUN_CLOSED
                    assert cuts > 3
                    return seen
                left -= 1
                if left < 0:
                    break
            call.cancel()
            cuts += 1

    async with asyncio.TaskGroup() as group:
        group.create_task(grow())
        watches = [group.create_task(watch_on()) for _ in range(4)]
    head = (await at.client.GetRun(pb.GetRunRequest(run_id=run_id))).run.head_seq
    for watch in watches:
        assert watch.result() == list(range(1, head + 1))
    await eventually(lambda: len(at.api.watchers) == 0)


async def test_without_a_position_there_is_a_snapshot_and_then_what_follows_it(at: Scene) -> None:
    run_id = await at.create()
    effect_id = await at.request(run_id, "ask", external())
    call = at.client.WatchRun(pb.WatchRunRequest(run_id=run_id))
    first = await read(call)
    assert (first.snapshot.seq, first.snapshot.run.head_seq) == (2, 2)
    assert [effect.effect_id for effect in first.snapshot.effects] == [effect_id]
    await at.append(run_id, log_row(1))
    await at.end(run_id)
    frames = await collect(call)
    assert seqs(frames) == [3, 4]
    assert (frames[-1].end.reason, frames[-1].end.resume_after_seq) == (End.REASON_RUN_CLOSED, 4)
    assert frames[-1].end.run.state == journal_pb2.RUN_STATE_COMPLETED


async def test_a_watch_of_an_ended_run_ends_at_once(at: Scene) -> None:
    run_id = await at.create()
    head = await at.end(run_id)
    for after in range(head + 1):
        frames = await collect(at.client.WatchRun(pb.WatchRunRequest(run_id=run_id, after_seq=after)))
        assert seqs(frames) == list(range(after + 1, head + 1))
        assert frames[-1].end.reason == End.REASON_RUN_CLOSED


async def test_a_watch_ends_when_the_run_is_parked_and_can_go_on_when_it_is_resumed(at: Scene) -> None:
    run_id = await at.create()
    parked = {"type": "PROCESS_RUNTIME_ERROR", "cause": 1, "data": {"error": {"kind": "EXCEPTION", "message": "x"}}}
    await at.append(run_id, parked)
    frames = await collect(at.client.WatchRun(pb.WatchRunRequest(run_id=run_id)))
    assert frames[-1].end.reason == End.REASON_PARKED
    await at.client.ResumeRun(pb.ResumeRunRequest(run_id=run_id))
    call = at.client.WatchRun(pb.WatchRunRequest(run_id=run_id, after_seq=1))
    assert [(await read(call)).event.seq for _ in range(2)] == [2, 3]
    await at.end(run_id)
    frames = await collect(call)
    assert seqs(frames) == [4]
    assert frames[-1].end.reason == End.REASON_RUN_CLOSED


async def test_positions_ahead_and_runs_that_are_not_there_are_refused(at: Scene) -> None:
    run_id = await at.create()
    ahead = at.client.WatchRun(pb.WatchRunRequest(run_id=run_id, after_seq=2)).read()
    await refused(ahead, grpc.StatusCode.OUT_OF_RANGE, "CURSOR_AHEAD")
    nowhere = at.client.WatchRun(pb.WatchRunRequest(run_id=NOWHERE)).read()
    await refused(nowhere, grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")
    other = at.client.WatchRun(pb.WatchRunRequest(run_id=run_id, namespace="other")).read()
    await refused(other, grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")


@pytest.mark.invariant("I11")
async def test_the_number_of_watches_is_bounded_and_a_cut_one_makes_room(database_url: str) -> None:
    async with scene(database_url, watchers_max=1) as at:
        run_id = await at.create()
        first = at.client.WatchRun(pb.WatchRunRequest(run_id=run_id))
        await read(first)
        second = at.client.WatchRun(pb.WatchRunRequest(run_id=run_id)).read()
        await refused(second, grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHERS")
        first.cancel()
        await eventually(lambda: len(at.api.watchers) == 0)
        third = at.client.WatchRun(pb.WatchRunRequest(run_id=run_id))
        assert (await read(third)).HasField("snapshot")
        third.cancel()


async def test_heartbeats_come_while_nothing_happens_and_a_lifetime_ends_the_watch(database_url: str) -> None:
    async with scene(database_url, pace=Pace(heartbeat_s=0.1, lifetime_s=0.5, poll_s=0.05)) as at:
        run_id = await at.create()
        frames = await collect(at.client.WatchRun(pb.WatchRunRequest(run_id=run_id)))
        assert sum(frame.HasField("heartbeat") for frame in frames) >= 3
        assert all(frame.heartbeat.seq == 1 for frame in frames if frame.HasField("heartbeat"))
        assert (frames[-1].end.reason, frames[-1].end.resume_after_seq) == (End.REASON_LIFETIME, 1)


async def test_a_replica_that_goes_away_sends_its_watchers_on(at: Scene) -> None:
    run_id = await at.create()
    call = at.client.WatchRun(pb.WatchRunRequest(run_id=run_id))
    await read(call)
    at.engine.draining = True
    frames = await collect(call)
    assert (frames[-1].end.reason, frames[-1].end.resume_after_seq) == (End.REASON_MOVED, 1)
    late = at.client.WatchRun(pb.WatchRunRequest(run_id=run_id)).read()
    await refused(late, grpc.StatusCode.UNAVAILABLE, "DRAINING")


@pytest.mark.invariant("I9", "I11")
async def test_a_reader_that_does_not_read_is_cut_and_resumes_without_a_gap(database_url: str) -> None:
    async with scene(database_url, pace=Pace(patience_s=0.3, poll_s=0.05)) as at:
        run_id = await at.create()
        big = {"type": "PROCESS_LOG", "cause": 1, "data": {"level": "INFO", "message": "x" * 8000}}
        for _ in range(20):
            await at.append(run_id, *[big] * 50)
        call = at.client.WatchRun(pb.WatchRunRequest(run_id=run_id, after_seq=0))
        seen = [(await read(call)).event.seq]
        await eventually(lambda: len(at.api.watchers) == 0)  # given up while the reader sleeps
        frames = await collect(call)
        seen += seqs(frames)
        assert frames[-1].end.reason == End.REASON_SLOW
        assert frames[-1].end.resume_after_seq == seen[-1]
        await at.end(run_id)
        resumed = await collect(at.client.WatchRun(pb.WatchRunRequest(run_id=run_id, after_seq=seen[-1])))
        assert seen + seqs(resumed) == list(range(1, 1003))


@asynccontextmanager
async def live_executor(at: Scene) -> AsyncIterator[FakeExecutor]:
    servicer, server = FakeExecutor(), grpc.aio.server()
    executor_service_pb2_grpc.add_ExecutorServiceServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    await at.connect_executor(address=address)
    at.engine.executors = [ConnectedExecutor(executor_id="x", incarnation=INCARNATION, address=address)]
    try:
        yield servicer
    finally:
        await server.stop(None)


LIVE = [pb.WatchRunRequest.INCLUDE_PROGRESS, pb.WatchRunRequest.INCLUDE_OUTPUT]


async def test_live_frames_stand_between_an_attempts_dispatch_and_its_end(at: Scene) -> None:
    async with live_executor(at) as executor:
        run_id = await at.create()
        call = at.client.WatchRun(pb.WatchRunRequest(run_id=run_id, include=LIVE))
        await read(call)
        effect_id = await at.request(run_id, "e", shell(), dispatch=True)
        frames: list[Any] = []

        async def take() -> None:
            async for frame in rest(call):
                frames.append(frame)  # noqa: PERF401  # seen while they come

        reading = asyncio.create_task(take())
        await eventually(lambda: executor.open == 1)
        executor.say(progress=journal_pb2.Progress(ordinal=1, percent=10))
        executor.say(usage=journal_pb2.Usage(output_tokens=5))
        executor.say(output=executor_pb.OutputChunk(stream=1, offset=0, data=b"hello"))  # type: ignore[arg-type]
        executor.say(progress=journal_pb2.Progress(ordinal=2, percent=20))
        await eventually(lambda: any(f.progress.progress.ordinal == 2 for f in frames))
        await at.executor_call(
            "attempts_settle_v1", run_id, effect_id, executor_id="x", outcome="succeeded", elapsed_s=1, final=False
        )
        await eventually(lambda: executor.open == 0)
        executor.say(progress=journal_pb2.Progress(ordinal=3))
        await at.end(run_id)
        await reading
    kinds = [frame.WhichOneof("frame") for frame in frames]
    dispatched = next(i for i, f in enumerate(frames) if f.event.HasField("effect_dispatched"))
    resolved = next(i for i, f in enumerate(frames) if f.event.HasField("effect_resolved"))
    live = [i for i, kind in enumerate(kinds) if kind in ("progress", "output", "gap")]
    assert live
    assert all(dispatched < i < resolved for i in live)
    assert [f.progress.progress.ordinal for f in frames if f.progress.HasField("progress")] == [1, 2]
    assert b"".join(f.output.chunk.data for f in frames if f.HasField("output")) == b"hello"


async def test_output_goes_on_where_the_watcher_left_off(at: Scene) -> None:
    async with live_executor(at) as executor:
        run_id = await at.create()
        effect_id = await at.request(run_id, "e", shell(), dispatch=True)
        await at.record_output(run_id, effect_id, 1, 0, b"0123456789")
        position = pb.OutputPosition(effect_id=effect_id, attempt=1, stream=1, offset=4)  # type: ignore[arg-type]
        call = at.client.WatchRun(pb.WatchRunRequest(run_id=run_id, include=LIVE, output_positions=[position]))
        got: list[Any] = []

        async def take() -> None:
            async for frame in call:
                if frame.HasField("output"):
                    got.append((frame.output.chunk.offset, frame.output.chunk.data))
                elif frame.HasField("gap"):
                    got.append("gap")

        reading = asyncio.create_task(take())
        await eventually(lambda: got == [(4, b"456789")] and executor.open)
        await at.record_output(run_id, effect_id, 1, 10, b"ab")
        executor.say(output=executor_pb.OutputChunk(stream=1, offset=8, data=b"89abcd"))  # type: ignore[arg-type]
        executor.say(output=executor_pb.OutputChunk(stream=1, offset=20, data=b"z"))  # type: ignore[arg-type]
        await eventually(lambda: len(got) == 4)
        assert got == [(4, b"456789"), (10, b"abcd"), "gap", (20, b"z")]
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def test_an_executor_that_cannot_be_dialled_is_said_and_heartbeats_show_progress(at: Scene) -> None:
    await at.connect_executor()
    run_id = await at.create()
    effect_id = await at.request(run_id, "e", shell(), dispatch=True)
    progress = journal_pb2.Progress(ordinal=4)
    at.engine.attempts = [
        LiveAttempt(effect_id=effect_id, effect_key="e", attempt=1, executor_id="x", progress=progress)
    ]
    call = at.client.WatchRun(pb.WatchRunRequest(run_id=run_id, include=LIVE[:1]))
    await read(call)
    gap, live = await read(call), await read(call)
    assert (gap.gap.reason, gap.gap.effect_id) == (pb.LiveGap.REASON_EXECUTOR_UNREACHABLE, effect_id)
    assert live.progress.progress.ordinal == 4
    call.cancel()


async def test_one_effect_is_watched_until_it_has_settled(at: Scene) -> None:
    run_id = await at.create()
    effect_id = await at.request(run_id, "ask", external())
    other = await at.request(run_id, "other", external())
    name = pb.EffectName(effect_id=effect_id)
    call = at.client.WatchEffect(pb.WatchEffectRequest(effect=name))
    assert (await read(call)).snapshot.effect_id == effect_id
    for which in (other, effect_id):
        request = pb.ResolveEffectRequest(
            effect=pb.EffectName(effect_id=which), succeeded=pb.ExternalSuccess(choice="ok")
        )
        await at.client.ResolveEffect(request)
    frames = await collect(call)
    assert [frame.event.effect_id for frame in frames if frame.HasField("event")] == [effect_id]
    assert frames[-1].end.reason == End.REASON_EFFECT_SETTLED
    again = await collect(at.client.WatchEffect(pb.WatchEffectRequest(effect=name, after_seq=0)))
    assert [frame.event.seq for frame in again if frame.HasField("event")] == [2, 5]
    assert again[-1].end.reason == End.REASON_EFFECT_SETTLED


async def test_recorded_output_is_streamed_from_an_offset_with_holes_named(at: Scene) -> None:
    await at.connect_executor()
    run_id = await at.create()
    effect_id = await at.request(run_id, "e", shell(), dispatch=True)
    await at.record_output(run_id, effect_id, 1, 0, b"head")
    await at.record_output(run_id, effect_id, 1, 100, b"tail")
    await at.record_output(run_id, effect_id, 2, 0, b"err")
    name = pb.EffectName(effect_id=effect_id)
    frames = [f async for f in at.client.StreamOutput(pb.StreamOutputRequest(effect=name))]
    assert [f.WhichOneof("frame") for f in frames] == ["chunk", "omitted", "chunk", "chunk", "end"]
    assert (frames[1].omitted.offset, frames[1].omitted.bytes) == (4, 96)
    request = pb.StreamOutputRequest(effect=name, stream=1, offset=102)  # type: ignore[arg-type]
    (chunk, _) = [f async for f in at.client.StreamOutput(request)]
    assert (chunk.chunk.offset, chunk.chunk.data) == (102, b"il")


async def test_a_transcript_is_for_who_asks_for_it(at: Scene) -> None:
    await at.connect_executor()
    run_id = await at.create()
    effect_id = await at.request(run_id, "e", shell(), dispatch=True)
    await at.record_output(run_id, effect_id, 1, 0, b"out")
    await at.record_output(run_id, effect_id, 3, 0, b"{}\n")
    request = pb.StreamOutputRequest(effect=pb.EffectName(effect_id=effect_id))
    assert [f.chunk.data async for f in at.client.StreamOutput(request) if f.HasField("chunk")] == [b"out"]
    request.stream = executor_pb.OUTPUT_STREAM_TRANSCRIPT
    (chunk, _) = [f.chunk async for f in at.client.StreamOutput(request)]
    assert (chunk.stream, chunk.data) == (executor_pb.OUTPUT_STREAM_TRANSCRIPT, b"{}\n")


async def test_output_is_followed_until_the_attempt_has_ended(at: Scene) -> None:
    await at.connect_executor()
    run_id = await at.create()
    effect_id = await at.request(run_id, "e", shell(), dispatch=True)
    name = pb.EffectName(effect_id=effect_id)
    frames: list[Any] = []

    async def follow() -> None:
        async for frame in at.client.StreamOutput(pb.StreamOutputRequest(effect=name, follow=True)):
            frames.append(frame)  # noqa: PERF401  # seen while they come

    following = asyncio.create_task(follow())
    for n in range(5):
        await at.record_output(run_id, effect_id, 1, n * 70_000, bytes([48 + n]) * 70_000)
    await eventually(lambda: sum(len(f.chunk.data) for f in frames) == 350_000)
    await at.executor_call(
        "attempts_settle_v1", run_id, effect_id, executor_id="x", outcome="succeeded", elapsed_s=1, final=False
    )
    await asyncio.wait_for(following, 30)
    assert frames[-1].end.reason == End.REASON_EFFECT_SETTLED
    assert max(len(f.chunk.data) for f in frames) <= 65_536
    ahead = pb.StreamOutputRequest(effect=name, stream=1, offset=350_001)  # type: ignore[arg-type]
    await refused(at.client.StreamOutput(ahead).read(), grpc.StatusCode.OUT_OF_RANGE, "OFFSET_AHEAD")
    beyond = at.client.StreamOutput(pb.StreamOutputRequest(effect=name, attempt=2)).read()
    await refused(beyond, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
