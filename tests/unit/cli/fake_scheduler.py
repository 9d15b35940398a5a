"""A scheduler that answers from a script, for tests of the commands."""

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
EFFECT = "2ed6657d-e927-568b-95e1-2665a8aea6a2"


class FakeScheduler(
    scheduler_service_pb2_grpc.SchedulerServiceServicer, operator_service_pb2_grpc.OperatorServiceServicer
):
    """Has one run `key:rel/1` with the effects `tests` and `approve`; records what it was asked."""

    def __init__(self) -> None:
        self.state: journal.RunState.ValueType = journal.RUN_STATE_COMPLETED
        self.asked: list[Any] = []
        self.never_ends = False
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
        return pb.ListRunsResponse(runs=[self.run(run_id) for run_id in self.runs])

    def GetEffect(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        name = request.effect
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

    def ReadJournal(self, request: Any, context: Any) -> Any:
        event = journal.JournalEvent(seq=request.after_seq + 1, type=journal.EVENT_TYPE_RUN_CREATED)
        event.run_created.process = "build"
        seq = request.after_seq + 1
        return pb.ReadJournalResponse(events=[event], head_seq=2, next_after_seq=seq)

    def CancelRun(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return pb.CancelRunResponse(run=self.run())

    def CancelEffect(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return pb.CancelEffectResponse(effect=self.effect("tests"))

    def ResolveEffect(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return pb.ResolveEffectResponse(effect=self.effect("approve"))

    def StreamOutput(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
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
