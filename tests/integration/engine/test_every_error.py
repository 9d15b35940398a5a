"""Every reason of the API is provoked through gRPC, and says what it must: code, domain, metadata, paths, waiting time.

The registry cannot rot: a reason without an entry fails, and so does an entry without a reason.
"""

import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import grpc
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

import backburner as bb
from backburner.scheduler.v1 import dispatch_service_pb2 as dispatch_pb
from backburner.scheduler.v1 import operator_service_pb2 as operator_pb
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.errors import DOMAIN, STATUS
from scheduler_service.journal import JournalUnavailable
from tests.integration.engine.world import World, world
from tests.support.client_program import ClientProgram, external, function
from tests.support.eventually import eventually

NOWHERE: Final = "01890a5d-ac96-774b-bcce-b302099a8057"


@bb.process("errors/ask")
async def ask(ctx: bb.Context, files: list[str] | None = None) -> None:
    """Has an effect of each kind open."""
    ctx.start(bb.shell("true", label="sh"), key="sh")
    await ctx.start(bb.approval("Go?", choices=["yes", "no"]), key="ask")


@dataclass(frozen=True)
class Provoked:
    """How a reason is provoked: `by` makes the call that must be refused; the rest is what the refusal must carry."""

    by: Callable[["Scene"], Awaitable[Any]]
    metadata: frozenset[str] = frozenset()
    fields: tuple[str, ...] = ()


class Scene:
    """A scheduler with a run that asks."""

    def __init__(self, at: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = at
        self.client = at.client
        self.monkeypatch = monkeypatch
        self.run_id = ""

    async def begin(self) -> None:
        """A fresh run whose effects are there."""
        self.run_id = await self.at.create("errors/ask")
        await self.at.row(self.run_id, "EFFECT_REQUESTED", "ask")

    def effect(self, key: str) -> pb.EffectName:
        return pb.EffectName(run_id=self.run_id, key=key)

    async def end(self) -> None:
        """The run ends."""
        await self.at.cancel(self.run_id)
        await self.at.result(self.run_id)


async def invalid(at: Scene) -> None:
    request = pb.CreateRunRequest(process="errors/ask", key="no spaces", namespace="NO")
    await at.client.CreateRun(request)


async def too_large(at: Scene) -> None:
    request = pb.CreateRunRequest(process="errors/ask")
    json_format.ParseDict({"files": ["x" * (1 << 20)]}, request.input)
    await at.client.CreateRun(request)


async def no_process(at: Scene) -> None:
    await at.client.CreateRun(pb.CreateRunRequest(process="nobody"))


async def no_run(at: Scene) -> None:
    await at.client.GetRun(pb.GetRunRequest(run_id=NOWHERE))


async def pruned(at: Scene) -> None:
    await at.end()
    await at.at.query("SELECT backburner.prune_runs_v1(%s)",
                      '{"older_than_s": 0, "states": [], "dry_run": false, "runs_max": 9, "rows_max": 999999,'
                      ' "actor": "ada", "reason": ""}')  # fmt: skip
    at.at.runs.clear()
    await at.client.GetRun(pb.GetRunRequest(run_id=at.run_id))


async def no_effect(at: Scene) -> None:
    await at.client.GetEffect(pb.GetEffectRequest(effect=at.effect("nothing")))


async def other_input(at: Scene) -> None:
    for files in ([], ["a"]):
        request = pb.CreateRunRequest(process="errors/ask", key="once")
        json_format.ParseDict({"files": files}, request.input)
        await at.client.CreateRun(request)


async def request_id_again(at: Scene) -> None:
    request_id = str(uuid.uuid4())
    for name in ("one", "two"):
        await at.client.SignalRun(pb.SignalRunRequest(run_id=at.run_id, name=name, request_id=request_id))


async def closed(at: Scene) -> None:
    await at.end()
    await at.client.HaltRun(pb.HaltRunRequest(run_id=at.run_id))


async def not_parked(at: Scene) -> None:
    await at.client.ResumeRun(pb.ResumeRunRequest(run_id=at.run_id))


async def halted(at: Scene) -> None:
    program = await ClientProgram.start(at.client)
    await at.client.HaltRun(pb.HaltRunRequest(run_id=program.run_id, reason="look"))
    await program.finish()


async def not_client_driven(at: Scene) -> None:
    await ClientProgram(at.client, at.run_id, 1, created=False, head_seq=1).finish()


async def client_superseded(at: Scene) -> None:
    first = await ClientProgram.start(at.client, "errors/taken-over")
    await ClientProgram.start(at.client, "errors/taken-over")
    await first.request({"a": external()})


async def effects_open(at: Scene) -> None:
    program = await ClientProgram.start(at.client)
    await program.request({"a": external(background=True)})
    await program.finish()


async def other_work(at: Scene) -> None:
    program = await ClientProgram.start(at.client)
    for choice in ("yes", "no"):
        await program.request({"a": external(choice)})


async def other_group(at: Scene) -> None:
    program = await ClientProgram.start(at.client)
    for key, most in (("a", 2), ("b", 3)):
        await program.request({key: function(group={"id": "g", "max_concurrency": most})})


async def queue_full(at: Scene) -> None:
    program = await ClientProgram.start(at.client)
    await at.at.query(
        "UPDATE backburner.run_heads SET open_effects = backburner.open_effects_max() WHERE run_id = %s RETURNING 1",
        program.run_id,
    )
    await program.request({"a": external()})


async def long_history(at: Scene) -> None:
    await at.client.HaltRun(pb.HaltRunRequest(run_id=at.run_id))
    await at.at.query(
        "UPDATE backburner.run_heads SET seq = backburner.history_max() WHERE run_id = %s RETURNING 1", at.run_id
    )
    at.at.runs.remove(at.run_id)  # its journal is not as long as its head now says
    await at.client.SignalRun(pb.SignalRunRequest(run_id=at.run_id, name="go", request_id=str(uuid.uuid4())))


async def settled(at: Scene) -> None:
    for choice in ("yes", "no"):
        request = pb.ResolveEffectRequest(effect=at.effect("ask"), succeeded=pb.ExternalSuccess(choice=choice))
        await at.client.ResolveEffect(request)


async def has_executor(at: Scene) -> None:
    request = pb.ResolveEffectRequest(effect=at.effect("sh"), succeeded=pb.ExternalSuccess(choice="yes"))
    await at.client.ResolveEffect(request)


async def cursor_ahead(at: Scene) -> None:
    await at.client.WatchRun(pb.WatchRunRequest(run_id=at.run_id, after_seq=99)).read()


async def offset_ahead(at: Scene) -> None:
    await at.end()
    request = pb.StreamOutputRequest(effect=at.effect("sh"), stream=1, offset=5)  # type: ignore[arg-type]
    await at.client.StreamOutput(request).read()


async def too_many_watchers(at: Scene) -> None:
    request = pb.WatchRunRequest(run_id=at.run_id)
    first, second = at.client.WatchRun(request), at.client.WatchRun(request)
    await first.read()
    try:
        await second.read()
    finally:
        first.cancel()


async def other_contract(at: Scene) -> None:
    executor = at.at.executor("old")
    hello = executor.hello()
    hello.contract = 99
    await ended(await executor.open(dispatch_pb.ConnectRequest(hello=hello)))


async def superseded(at: Scene) -> None:
    executor = at.at.executor("twice")
    first = await executor.connect()
    await executor.connect()
    await ended(first)


async def no_blob(at: Scene) -> None:
    await at.at.client.ReadBlob(pb.ReadBlobRequest(run_id=at.run_id, digest="0" * 64)).read()


async def no_executor(at: Scene) -> None:
    await at.at.operator.DrainExecutor(operator_pb.DrainExecutorRequest(executor_id="nobody", drain=True))


async def executor_restarted(at: Scene) -> None:
    await at.at.executor("again").connect()
    request = operator_pb.ExpireExecutorRequest(executor_id="again", incarnation="older")
    await at.at.operator.ExpireExecutor(request)


async def other_attempt(at: Scene) -> None:
    request = operator_pb.SettleEffectRequest(effect=at.effect("sh"), attempt=7)
    request.failed.message = "gone"
    await at.at.operator.SettleEffect(request)


async def without_executor(at: Scene) -> None:
    request = operator_pb.SettleEffectRequest(effect=at.effect("ask"))
    request.failed.message = "gone"
    await at.at.operator.SettleEffect(request)


async def no_hold(at: Scene) -> None:
    request = operator_pb.SetHoldRequest(hold=operator_pb.Hold(hold_id=NOWHERE), release=True)
    await at.at.operator.SetHold(request)


async def too_many_holds(at: Scene) -> None:
    await at.at.query(
        "INSERT INTO backburner.dispatch_holds SELECT gen_random_uuid(), 'full', n::text, '', '{}', NULL, '', '', now()"
        " FROM generate_series(1, backburner.holds_max()) n RETURNING 1"
    )
    try:
        await at.at.operator.SetHold(operator_pb.SetHoldRequest())
    finally:
        await at.at.query("DELETE FROM backburner.dispatch_holds RETURNING 1")


async def no_budget(at: Scene) -> None:
    await at.at.operator.ClearBudget(operator_pb.ClearBudgetRequest(label="team=a"))


async def too_many_budgets(at: Scene) -> None:
    await at.at.query(
        "INSERT INTO backburner.label_budgets SELECT gen_random_uuid(), 'full', 'n', n::text, false, '{1,1,1,1}',"
        " '{0,0,0,0}', 0, false, '2020-01-01', '', '', now()"
        " FROM generate_series(1, backburner.label_budgets_max()) n RETURNING 1"
    )
    request = operator_pb.SetBudgetRequest(budget=operator_pb.LabelBudget(label="team=a"))
    request.budget.budget.turns = 1
    try:
        await at.at.operator.SetBudget(request)
    finally:
        await at.at.query("DELETE FROM backburner.label_budgets RETURNING 1")


async def no_database(at: Scene) -> None:
    await with_reads(at, JournalUnavailable("no route to host"))


async def a_bug(at: Scene) -> None:
    await with_reads(at, KeyError("password=1234"))


async def draining(at: Scene) -> None:
    at.at.engine.begin_drain()
    await at.client.CreateRun(pb.CreateRunRequest(process="errors/ask"))


async def with_reads(at: Scene, error: Exception) -> None:
    """A read of the journal raises; the error is made where Postgres would make it."""

    @contextlib.asynccontextmanager
    async def connection() -> AsyncIterator[None]:
        raise error
        yield

    with at.monkeypatch.context() as patch:
        patch.setattr(at.at.engine.journal, "connection", connection)
        await at.client.GetRun(pb.GetRunRequest(run_id=at.run_id))


async def ended(stream: Any) -> None:
    """Raises what a control stream ended with."""
    await eventually(lambda: stream.error)
    raise stream.error


def names(*metadata: str) -> frozenset[str]:
    return frozenset(metadata)


PROVOKED: Final = {
    "INVALID_REQUEST": Provoked(invalid, names("violations"), ("namespace", "key")),
    "PAYLOAD_TOO_LARGE": Provoked(too_large, names("violations"), ("input",)),
    "PROCESS_NOT_FOUND": Provoked(no_process, names("process")),
    "RUN_NOT_FOUND": Provoked(no_run, names("namespace", "run")),
    "RUN_PRUNED": Provoked(pruned, names("namespace", "run_id")),
    "EFFECT_NOT_FOUND": Provoked(no_effect, names("namespace", "run_id", "key", "count")),
    "RUN_KEY_CONFLICT": Provoked(other_input, names("namespace", "key", "recorded_digest", "asked_digest")),
    "REQUEST_ID_REUSED": Provoked(request_id_again, names("namespace", "request_id")),
    "RUN_CLOSED": Provoked(closed, names("run_id", "state")),
    "RUN_HALTED": Provoked(halted, names("run_id", "halt_reason")),
    "RUN_NOT_CLIENT_DRIVEN": Provoked(not_client_driven, names("run_id", "process")),
    "CLIENT_SUPERSEDED": Provoked(client_superseded, names("run_id", "client_epoch", "newest_epoch")),
    "EFFECTS_OPEN": Provoked(effects_open, names("run_id", "keys", "count")),
    "EFFECT_KEY_CONFLICT": Provoked(
        other_work, names("run_id", "key", "recorded_digest", "asked_digest", "keys", "count")
    ),
    "GROUP_CONFLICT": Provoked(other_group, names("run_id", "group_id", "declared", "key", "count")),
    "QUEUE_FULL": Provoked(queue_full, names("run_id", "open_effects", "open_effects_max")),
    "NOT_PARKED": Provoked(not_parked, names("run_id", "state")),
    "HISTORY_LIMIT": Provoked(long_history, names("run_id", "head_seq")),
    "EFFECT_SETTLED": Provoked(settled, names("effect_id", "state")),
    "EFFECT_HAS_EXECUTOR": Provoked(has_executor, names("effect_id", "kind")),
    "CURSOR_AHEAD": Provoked(cursor_ahead, names("run_id", "after_seq", "head_seq")),
    "OFFSET_AHEAD": Provoked(offset_ahead, names("effect_id", "attempt", "offset", "size")),
    "BLOB_NOT_FOUND": Provoked(no_blob, names("run_id", "digest")),
    "TOO_MANY_WATCHERS": Provoked(too_many_watchers, names("watchers_max")),
    "CONTRACT_UNSUPPORTED": Provoked(other_contract, names("contract", "served")),
    "SESSION_SUPERSEDED": Provoked(superseded, names("executor_id", "session_no", "incarnation")),
    "EXECUTOR_NOT_FOUND": Provoked(no_executor, names("executor_id")),
    "EXECUTOR_RESTARTED": Provoked(executor_restarted, names("executor_id", "asked", "incarnation")),
    "ATTEMPT_SUPERSEDED": Provoked(other_attempt, names("effect_id", "asked", "attempt")),
    "EFFECT_WITHOUT_EXECUTOR": Provoked(without_executor, names("effect_id", "kind")),
    "HOLD_NOT_FOUND": Provoked(no_hold, names("hold_id")),
    "TOO_MANY_HOLDS": Provoked(too_many_holds),
    "BUDGET_NOT_FOUND": Provoked(no_budget, names("of")),
    "TOO_MANY_BUDGETS": Provoked(too_many_budgets),
    "DATABASE_UNAVAILABLE": Provoked(no_database),
    "INTERNAL": Provoked(a_bug, names("incident")),
    "DRAINING": Provoked(draining, names("scheduler_id")),  # last: nothing is taken afterwards
}


@pytest.fixture
async def at(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    async with world(database_url, {ask.name: ask}, watchers_max=1) as made:
        yield Scene(made, monkeypatch)


def test_every_reason_is_provoked() -> None:
    assert {reason for _, reason in STATUS.values()} == set(PROVOKED)


async def test_every_refusal_says_what_it_must(at: Scene, subtests: pytest.Subtests) -> None:
    codes = {reason: code for code, reason in STATUS.values()}
    retry = {reason: kind.retry_after_s for kind, (_, reason) in STATUS.items()}
    for reason, expected in PROVOKED.items():
        with subtests.test(reason):
            if reason != "DRAINING":
                await at.begin()
            status = await refusal(expected.by(at))
            assert status.code == codes[reason].value[0], status.message
            found = details(status)
            info = found["ErrorInfo"]
            assert (info.reason, info.domain) == (reason, DOMAIN)
            assert frozenset(info.metadata) == expected.metadata
            assert all(info.metadata.values())
            assert "1234" not in str(status)
            assert tuple(v.field for v in found["BadRequest"].field_violations) == expected.fields
            assert found["RetryInfo"].retry_delay.ToTimedelta().total_seconds() == (retry[reason] or 0.0)


async def refusal(call: Awaitable[Any]) -> Any:
    """The google.rpc.Status that a call is refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(cast("grpc.Call", caught.value))
    assert status is not None, caught.value
    return status


def details(status: Any) -> dict[str, Any]:
    """Its details by name; what is not there is empty."""
    kinds = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
    found = {kind.DESCRIPTOR.name: kind() for kind in kinds}
    for packed in status.details:
        packed.Unpack(found[packed.TypeName().rpartition(".")[2]])
    return found
