"""A scheduler that answers from a script, for tests of the commands."""

import threading
import time
from concurrent import futures
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from backburner.executor.v1 import executor_service_pb2 as executor
from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import (
    operator_service_pb2 as op,
)
from backburner.scheduler.v1 import (
    operator_service_pb2_grpc,
    scheduler_service_pb2_grpc,
)
from backburner.scheduler.v1 import (
    scheduler_service_pb2 as pb,
)

RUN = "0198f2c4-a1b2-7c3d-8e4f-0123456789ab"
OTHER = "0198f2c4-a1b2-7c3d-8e4f-0000006789ab"
BLOB = bytes(range(256)) * 10
EFFECT = "2ed6657d-e927-568b-95e1-2665a8aea6a2"


class PlayedEffect:
    """An effect that `exec` requests: its live frames, what was recorded of its output, and how it ends."""

    def __init__(self) -> None:
        self.frames: list[pb.WatchEffectResponse] = []
        self.recorded = {"stdout": b"", "stderr": b""}
        self.end = pb.Effect(effect_id=EFFECT, run_id=RUN, key="make", kind=journal.EFFECT_KIND_SHELL, attempt=1)
        self.end.state = journal.EFFECT_STATE_SUCCEEDED
        self.end.result.exit_code = 0
        self.cancelled = threading.Event()
        self.waits_for_cancel = False
        self.run_closed = False

    def live(self, stream: executor.OutputStream.ValueType, offset: int, data: bytes) -> None:
        frame = pb.WatchEffectResponse()
        frame.output.attempt = 1
        frame.output.chunk.stream, frame.output.chunk.offset, frame.output.chunk.data = stream, offset, data
        self.frames.append(frame)

    def wrote(self, name: str, data: bytes) -> None:
        """What the child wrote in all, whether any live frame has it or not."""
        self.recorded[name] = data
        getattr(self.end.result, name).total_bytes = len(data)

    def watch(self, context: Any) -> Any:
        yield from self.frames
        while self.waits_for_cancel and not self.cancelled.is_set() and context.is_active():
            yield pb.WatchEffectResponse(heartbeat=pb.WatchHeartbeat(seq=1))
            time.sleep(0.02)
        yield pb.WatchEffectResponse(end=pb.WatchEnd(reason=pb.WatchEnd.REASON_EFFECT_SETTLED))


class FakeScheduler(
    scheduler_service_pb2_grpc.SchedulerServiceServicer, operator_service_pb2_grpc.OperatorServiceServicer
):
    """Has one run `key:rel/1` with the effects `tests` and `approve`; records what it was asked."""

    def __init__(self) -> None:
        self.state: journal.RunState.ValueType = journal.RUN_STATE_COMPLETED
        self.asked: list[Any] = []
        self.never_ends = False
        self.played = PlayedEffect()
        self.not_parked = ""
        self.runs = [RUN, OTHER]

    def run(self, run_id: str = RUN) -> pb.Run:
        run = pb.Run(run_id=run_id, process="build", key="rel/1", state=self.state, head_seq=3)
        run.create_time.GetCurrentTime()
        if self.state == journal.RUN_STATE_COMPLETED:
            run.result.value.struct_value.update({"passed": 3})
        else:
            run.error.kind, run.error.message = "EFFECT_FAILED", "tests failed"
        run.waiting_on.add(message="effect tests runs on local")
        return run

    def effect(self, key: str) -> pb.Effect:
        effect = pb.Effect(effect_id=EFFECT, run_id=RUN, key=key, background=True)
        effect.state = journal.EFFECT_STATE_WAITING if key == "approve" else journal.EFFECT_STATE_RUNNING
        effect.waiting_on.message = "somebody has to answer" if key == "approve" else ""
        effect.request_time.GetCurrentTime()
        if key == "approve":
            effect.spec.external.prompt = "Deploy?"
            effect.spec.external.choices.extend(["yes", "no"])
        return effect

    def CreateRun(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        if request.HasField("client"):
            return pb.CreateRunResponse(run=pb.Run(run_id=RUN, client_driven=True), created=True, client_epoch=7)
        if request.process != "build":
            refuse(context, grpc.StatusCode.NOT_FOUND, "no such process", "PROCESS_NOT_FOUND")
        return pb.CreateRunResponse(run=self.run(), created=True)

    def GetServerInfo(self, request: Any, context: Any) -> Any:
        return pb.GetServerInfoResponse(processes=["build", "deploy"])

    def GetRun(self, request: Any, context: Any) -> Any:
        if request.run_id not in ("", RUN, OTHER) or (request.key and request.key != "rel/1"):
            refuse(context, grpc.StatusCode.NOT_FOUND, "no such run", "RUN_NOT_FOUND")
        return pb.GetRunResponse(run=self.run(request.run_id or RUN))

    def ListRuns(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return pb.ListRunsResponse(runs=[self.run(run_id) for run_id in self.runs])

    def GetEffect(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        name = request.effect
        if any(isinstance(asked, pb.RequestEffectsRequest) for asked in self.asked):
            return pb.GetEffectResponse(effect=self.played.end)
        if not name.effect_id and (name.run_id, name.key) not in ((RUN, "tests"), (RUN, "approve")):
            refuse(context, grpc.StatusCode.NOT_FOUND, "no such effect", "EFFECT_NOT_FOUND")
        return pb.GetEffectResponse(effect=self.effect(name.key or "tests"))

    def ListEffects(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return pb.ListEffectsResponse(effects=[self.effect("tests"), self.effect("approve")])

    def WatchRun(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        created = journal.JournalEvent(seq=1, type=journal.EVENT_TYPE_RUN_CREATED)
        created.run_created.process = "build"
        yield pb.WatchRunResponse(event=created)
        while self.never_ends and context.is_active():
            yield pb.WatchRunResponse(heartbeat=pb.WatchHeartbeat(seq=1))
            time.sleep(0.05)
        parked = self.state in (journal.RUN_STATE_PROCESS_ERROR, journal.RUN_STATE_HALTED)
        reason = pb.WatchEnd.REASON_PARKED if parked else pb.WatchEnd.REASON_RUN_CLOSED
        yield pb.WatchRunResponse(end=pb.WatchEnd(reason=reason, run=self.run()))

    def RequestEffects(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        if self.played.run_closed:
            refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "the run has ended", "RUN_CLOSED")
        return pb.RequestEffectsResponse(effects=[pb.Effect(effect_id=EFFECT, run_id=RUN, key=request.effects[0].key)])

    def FinishRun(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return pb.FinishRunResponse(run=self.run())

    def WatchEffect(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        yield from self.played.watch(context)

    def HaltRun(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        self.state = journal.RUN_STATE_HALTED
        return pb.HaltRunResponse(run=self.run(request.run_id))

    def ResumeRun(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        if request.run_id == self.not_parked:
            refuse(context, grpc.StatusCode.FAILED_PRECONDITION, f"run {request.run_id} is not parked", "NOT_PARKED")
        self.state = journal.RUN_STATE_RUNNING
        return pb.ResumeRunResponse(run=self.run(request.run_id))

    def SignalRun(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return pb.SignalRunResponse(seq=9)

    def ReadBlob(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        for offset in range(request.offset, len(BLOB), 1000):
            yield pb.ReadBlobResponse(offset=offset, data=BLOB[offset : offset + 1000])

    def ReadJournal(self, request: Any, context: Any) -> Any:
        event = journal.JournalEvent(seq=request.after_seq + 1, type=journal.EVENT_TYPE_RUN_CREATED)
        event.run_created.process = "build"
        seq = request.after_seq + 1
        return pb.ReadJournalResponse(events=[event], head_seq=2, next_after_seq=seq)

    def CancelRun(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        self.played.cancelled.set()
        return pb.CancelRunResponse(run=self.run())

    def CancelEffect(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return pb.CancelEffectResponse(effect=self.effect("tests"))

    def ResolveEffect(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return pb.ResolveEffectResponse(effect=self.effect("approve"))

    def StreamOutput(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        if request.follow and request.stream:
            name = "stdout" if request.stream == executor.OUTPUT_STREAM_STDOUT else "stderr"
            frame = pb.StreamOutputResponse()
            frame.chunk.stream, frame.chunk.offset = request.stream, request.offset
            frame.chunk.data = self.played.recorded[name][request.offset :]
            yield frame
            return
        streams = (executor.OUTPUT_STREAM_STDOUT, executor.OUTPUT_STREAM_STDERR)
        for stream, data in zip(streams, (b"out\xff\n", b"err\n"), strict=True):
            frame = pb.StreamOutputResponse()
            frame.chunk.stream, frame.chunk.data = stream, data
            yield frame

    def ListExecutors(self, request: Any, context: Any) -> Any:
        one = op.Executor(executor_id="local", state=op.Executor.STATE_CONNECTED)
        one.pools.add(name="shell", slots=8)
        one.slots_taken["shell"] = 2
        return op.ListExecutorsResponse(executors=[one])


def refuse(context: Any, code: grpc.StatusCode, message: str, reason: str) -> None:
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="backburner"))
    context.abort_with_status(rpc_status.to_status(status))


def serve(fake: FakeScheduler) -> tuple[grpc.Server, str]:
    """Serve it on a free port; gives server and address."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    # A threaded server, beside whatever loop the tests have; the stubs are typed for the asyncio one.
    untyped: Any = server
    scheduler_service_pb2_grpc.add_SchedulerServiceServicer_to_server(fake, untyped)
    operator_service_pb2_grpc.add_OperatorServiceServicer_to_server(fake, untyped)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"
