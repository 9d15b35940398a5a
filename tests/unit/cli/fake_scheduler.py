"""A scheduler that answers from a script, for tests of the commands."""

import threading
import time
from concurrent import futures
from typing import Any, Final

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
HOLD = "01890a5d-ac96-774b-bcce-b302099a80aa"
BREAKER: Final = op.Breaker(
    namespace="default", harness="codex", account="openai:me", state=op.Breaker.STATE_HALF_OPEN,
    reason=journal.EFFECT_REASON_AUTHENTICATION, message="no key",
)  # fmt: skip
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
        self.behind = 0
        """How many times the record is still behind what came live."""

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
        self.continues = False
        self.blames = ""
        self.findings: list[op.Finding] = []
        self.executors: list[op.Executor] = []

    def run(self, run_id: str = RUN) -> pb.Run:
        run = pb.Run(run_id=run_id, process="build", key="rel/1", state=self.state, head_seq=3)
        if self.continues and run_id == RUN:
            run.state = journal.RUN_STATE_CONTINUED
            return run
        run.create_time.GetCurrentTime()
        if self.state == journal.RUN_STATE_COMPLETED:
            run.result.value.struct_value.update({"passed": 3})
        else:
            run.error.kind, run.error.message, run.error.effect_key = "EFFECT_FAILED", "tests failed", self.blames
        run.waiting_on.add(message="effect tests runs on local")
        return run

    def effect(self, key: str) -> pb.Effect:
        effect = pb.Effect(effect_id=EFFECT, run_id=RUN, key=key, background=True)
        effect.state = journal.EFFECT_STATE_WAITING if key == "approve" else journal.EFFECT_STATE_RUNNING
        effect.waiting_on.message = "somebody has to answer" if key == "approve" else ""
        if key == self.blames:
            effect.state = journal.EFFECT_STATE_FAILED
            effect.error.reason = journal.EFFECT_REASON_EXITED_NONZERO
            effect.result.exit_code, effect.result.stderr.tail = 2, "no rule to make target\n"
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
        if request.HasField("after_seq"):
            yield pb.WatchRunResponse(event=created)
        if self.continues and request.run_id == RUN:
            yield from self.continued(with_event=request.HasField("after_seq"))
            return
        while self.never_ends and context.is_active():
            yield pb.WatchRunResponse(heartbeat=pb.WatchHeartbeat(seq=1))
            time.sleep(0.05)
        parked = self.state in (journal.RUN_STATE_PROCESS_ERROR, journal.RUN_STATE_HALTED)
        reason = pb.WatchEnd.REASON_PARKED if parked else pb.WatchEnd.REASON_RUN_CLOSED
        yield pb.WatchRunResponse(end=pb.WatchEnd(reason=reason, run=self.run()))

    def continued(self, *, with_event: bool) -> Any:
        if with_event:
            yield pb.WatchRunResponse(event=self.continuation())
        yield pb.WatchRunResponse(end=pb.WatchEnd(reason=pb.WatchEnd.REASON_RUN_CLOSED, run=self.run()))

    def continuation(self) -> journal.JournalEvent:
        event = journal.JournalEvent(seq=2, type=journal.EVENT_TYPE_RUN_CONTINUED)
        event.run_continued.new_run_id = OTHER
        return event

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
        if self.continues:
            return pb.ReadJournalResponse(events=[self.continuation()], head_seq=2, next_after_seq=2)
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
            if self.played.behind:
                self.played.behind -= 1
                refuse(context, grpc.StatusCode.OUT_OF_RANGE, "nothing is recorded there yet", "OFFSET_AHEAD")
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
        one = op.Executor(executor_id="local", incarnation="i1", state=op.Executor.STATE_CONNECTED)
        one.pools.add(name="shell", slots=8)
        one.slots_taken["shell"] = 2
        return op.ListExecutorsResponse(executors=[one, *self.executors])

    def PruneRuns(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        more = not request.dry_run and len(self.asked) < 4
        return op.PruneRunsResponse(runs=5, journal_rows=40, more=more)

    def Diagnose(self, request: Any, context: Any) -> Any:
        return op.DiagnoseResponse(findings=self.findings)

    def BulkAction(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        if request.dry_run:
            return op.BulkActionResponse(applied=2)
        if not request.page_token:
            return op.BulkActionResponse(applied=1, remaining=1, next_page_token="more")
        return op.BulkActionResponse(refused=1)

    def DrainExecutor(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        state = op.Executor.STATE_DRAINING if request.drain else op.Executor.STATE_CONNECTED
        return op.DrainExecutorResponse(executor=op.Executor(executor_id=request.executor_id, state=state))

    def ExpireExecutor(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return op.ExpireExecutorResponse(attempts_lost=3)

    def SettleEffect(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        effect = self.effect("tests")
        effect.state = journal.EFFECT_STATE_FAILED if request.HasField("failed") else journal.EFFECT_STATE_SUCCEEDED
        return op.SettleEffectResponse(effect=effect)

    def SetHold(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        hold = op.Hold()
        hold.CopyFrom(request.hold)
        hold.hold_id = hold.hold_id or HOLD
        return op.SetHoldResponse(hold=hold)

    def ListHolds(self, request: Any, context: Any) -> Any:
        hold = op.Hold(hold_id=HOLD, harness="codex", reason="provider is down", actor="ada")
        hold.create_time.GetCurrentTime()
        return op.ListHoldsResponse(holds=[hold])

    def SetBudget(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return op.SetBudgetResponse(budget=request.budget)

    def ListBudgets(self, request: Any, context: Any) -> Any:
        budget = op.LabelBudget(namespace="default", label="team=a", per_day=True, costs_unknown=2, actor="ada")
        budget.budget.cost_usd, budget.used.cost_usd = 50, 1.2
        budget.create_time.GetCurrentTime()
        return op.ListBudgetsResponse(budgets=[budget])

    def ClearBudget(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return op.ClearBudgetResponse()

    def RaiseBudget(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return op.RaiseBudgetResponse()

    def ListUsage(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        total = pb.UsageTotal(attempts=5, open_attempts=1)
        total.usage.input_tokens, total.usage.cost_usd, total.usage.costs_unknown = 12_300, 1.2, 3
        group = pb.UsageTotal(key="codex", attempts=1)
        group.usage.input_tokens = 7
        return pb.ListUsageResponse(groups=[group], total=total, groups_left_out=4)

    def ListBreakers(self, request: Any, context: Any) -> Any:
        return op.ListBreakersResponse(breakers=[BREAKER])

    def ResetBreakers(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return op.ResetBreakersResponse(breakers=[BREAKER] if request.harness != "pi" else [])

    def ListAudit(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        entry = op.AuditEntry(audit_id="1", action="SET_HOLD", subject=HOLD, actor="ada", reason="provider is down")
        return op.ListAuditResponse(entries=[entry], next_page_token="" if request.page_token else "more")


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
