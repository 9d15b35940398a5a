"""A real server over a real journal, with a small engine: what a replica's loop and an executor would do is said by the
test, step by step, through the same SQL functions.
"""

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import grpc
import psycopg
import pytest
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from backburner.scheduler.v1 import operator_service_pb2_grpc, scheduler_service_pb2_grpc
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api.engine import ConnectedExecutor, LiveAttempt, OperatorApi
from scheduler_service.api.ids import new_run_id
from scheduler_service.api.interceptor import ErrorInterceptor
from scheduler_service.api.register import ClientApi, client_api
from scheduler_service.api.watchers import Pace
from scheduler_service.authoring.definitions import AnyProcess, ProcessDefinition
from scheduler_service.iteration.rows import projection
from scheduler_service.journal import (
    Append,
    CancelOutcome,
    CancelRequest,
    ClientRequest,
    ClientRequestOutcome,
    CreateRun,
    CreateRunOutcome,
    ExecutorHello,
    FinishRun,
    FinishRunOutcome,
    Journal,
    OpenClient,
    OpenClientOutcome,
    ResolveOutcome,
    ResolveRequest,
    open_journal,
)

INCARNATION = "7b0f4f0e-2f0e-4f43-9d4c-1f3d2b7f0a11"
TOKEN = "00112233445566778899aabbccddeeff"
NOWHERE = "01890a5d-ac96-774b-bcce-b302099a8057"
Row = dict[str, Any]


async def _process(ctx: object, files: list[str] | None = None, depth: int = 1) -> None: ...


class StubClients:
    """Client-driven runs without a loop: commits, and has the engine hear of it."""

    def __init__(self, engine: "StubEngine") -> None:
        self._engine = engine
        self._journal = engine.journal

    async def open(self, request: OpenClient) -> OpenClientOutcome:
        outcome = await self._journal.clients.open(request)
        await self._engine.hear(request.run_id, outcome.head_seq)
        return outcome

    async def request(self, asked: ClientRequest) -> ClientRequestOutcome:
        outcome = await self._journal.clients.request(asked)
        await self._engine.hear(asked.run_id, outcome.head_seq)
        return outcome

    async def finish(self, request: FinishRun) -> FinishRunOutcome:
        outcome = await self._journal.clients.finish(request)
        await self._engine.hear(request.run_id, outcome.head_seq)
        return outcome

    async def seen(self, run_ids: Sequence[str]) -> Mapping[str, float]:
        return await self._journal.clients_seen(run_ids)


class StubEngine:
    """The engine's seam: commits through the journal and hears of what it commits, and of nothing else."""

    scheduler_id = "stub"

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.draining = False
        self.executors: list[ConnectedExecutor] = []
        self.attempts: list[LiveAttempt] = []
        self.expected: dict[tuple[str, str], float] = {}
        self._heads: dict[str, int] = {}
        self._news = asyncio.Condition()
        self.control = journal.controls
        self.clients = StubClients(self)
        self.operations = cast("OperatorApi", journal.operators)

    def processes(self) -> Mapping[str, AnyProcess]:
        return {"p": ProcessDefinition("p", _process)}

    async def create_run(self, request: CreateRun) -> CreateRunOutcome:
        return await self.journal.create_run(request)

    async def request_cancel(self, request: CancelRequest) -> CancelOutcome:
        outcome = await self.journal.request_cancel(request)
        await self.hear(request.run_id, outcome.head_seq)
        return outcome

    async def resolve_external(self, request: ResolveRequest) -> ResolveOutcome:
        outcome = await self.journal.resolve_external(request)
        await self.hear(request.run_id, outcome.head_seq)
        return outcome

    def expected_duration(self, namespace: str, name: str) -> float | None:
        return self.expected.get((namespace, name))

    def head(self, run_id: str) -> int:
        return self._heads.get(run_id, 0)

    async def wait_head(self, run_id: str, after_seq: int, timeout_s: float) -> int:
        try:
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(lambda: self.head(run_id) > after_seq)
        except TimeoutError:
            pass
        return self.head(run_id)

    async def wait_stopped(self, run_id: str, after_seq: int, timeout_s: float) -> None:
        await self.wait_head(run_id, after_seq, timeout_s)

    def connected(self) -> Sequence[ConnectedExecutor]:
        return self.executors

    def live(self, run_id: str) -> Sequence[LiveAttempt]:
        return self.attempts

    async def hear(self, run_id: str, seq: int) -> None:
        async with self._news:
            self._heads[run_id] = max(seq, self.head(run_id))
            self._news.notify_all()


class Scene:
    """What a test works with."""

    def __init__(self, dsn: str, engine: StubEngine, api: ClientApi, channel: grpc.aio.Channel) -> None:
        self.dsn = dsn
        self.engine = engine
        self.api = api
        self.channel = channel
        self.client = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
        self.operator = operator_service_pb2_grpc.OperatorServiceStub(channel)
        self.epochs: dict[int, int] = {}
        self._iterations: dict[str, int] = {}

    async def create(self, **fields: Any) -> str:
        """A run, created by the API."""
        answer = await self.client.CreateRun(pb.CreateRunRequest(**({"process": "p"} | fields)))
        return answer.run.run_id

    async def append(self, run_id: str, *rows: Row, tell: bool = True) -> int:
        """An iteration of the run's owner; answers with the head."""
        iteration = self._iterations.get(run_id, 0) + 1
        epoch = self.epochs[shard(run_id)]
        outcome = await self.engine.journal.append(
            Append(run_id=run_id, epoch=epoch, iteration=iteration, actor="scheduler/stub", rows=rows)
        )
        assert outcome.outcome == "ok", outcome
        self._iterations[run_id] = iteration
        if tell:
            await self.engine.hear(run_id, outcome.head_seq)
        return outcome.head_seq

    async def request(self, run_id: str, key: str, spec: Row, dispatch: bool = False) -> str:
        """An effect of a run; answers with its id. `dispatch` gives it to the executor `x` at once."""
        effect_id = effect_id_of(run_id, key)
        x = projection(spec)
        if dispatch:
            x["dispatch"] = {
                "executor_id": "x",
                "incarnation": INCARNATION,
                "session_no": self.session_no,
                "token_hash": hashlib.sha256(bytes.fromhex(TOKEN)).hexdigest(),
                "harness": x["harness"],
            }
        if x["kind"] == "RUN":
            data = {"process": "p", "parent_run_id": run_id, "parent_effect_id": effect_id}
            x["child"] = {"run_id": new_run_id(after=run_id), "input_digest": "d", "data": data}
        row = {
            "type": "EFFECT_REQUESTED", "cause": 1, "effect_id": effect_id, "effect_key": key,
            "data": {"spec": spec, "digest": "d"}, "x": x,
        }  # fmt: skip
        await self.append(run_id, row)
        return effect_id

    async def end(self, run_id: str, result: Any = None) -> int:
        """The run completes."""
        return await self.append(run_id, {"type": "RUN_COMPLETED", "cause": 1, "data": {"result": {"value": result}}})

    async def connect_executor(self, *, address: str = "", capabilities: Sequence[str] = ("shell",)) -> None:
        """The executor `x` says hello."""
        answer = await self.engine.journal.executor_hello(
            ExecutorHello(
                executor_id="x", incarnation=INCARNATION, holder="stub", address=address, namespace="default",
                pools={"shell": {"slots": 2, "background_slots": 1}}, capabilities=list(capabilities), labels={},
                version="test", draining=False, clock_skew_s=0.0,
            )
        )  # fmt: skip
        self.session_no = answer.session_no

    async def executor_call(self, function: str, run_id: str, effect_id: str, attempt: int = 1, **item: Any) -> Row:
        """A call of one of the executor's functions for an attempt."""
        item |= {"run_id": run_id, "effect_id": effect_id, "attempt": attempt, "token": TOKEN}
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            cursor = await connection.execute(
                f"SELECT outcome, seq FROM backburner.{function}(%s::jsonb)", [json.dumps([item])]
            )
            row = await cursor.fetchone()
        assert row is not None
        await self.engine.hear(run_id, row[1] or 0)
        return {"outcome": row[0], "seq": row[1]}

    async def record_output(self, run_id: str, effect_id: str, stream: int, offset: int, data: bytes) -> None:
        """The executor records captured output."""
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            await connection.execute(
                "SELECT backburner.output_append_v1(%s::uuid[], %s::uuid[], %s::int[], %s::bytea[], %s::smallint[],"
                " %s::bigint[], %s::bytea[])",
                [[run_id], [effect_id], [1], [bytes.fromhex(TOKEN)], [stream], [offset], [data]],
            )

    session_no = 0


def shard(run_id: str) -> int:
    return int(run_id[-2:], 16) % 16


def effect_id_of(run_id: str, key: str) -> str:
    return str(uuid.uuid5(uuid.UUID(run_id), key))


def log_row(number: int) -> Row:
    return {"type": "PROCESS_LOG", "cause": 1, "data": {"level": "INFO", "message": f"line {number}"}}


def shell(command: str = "true", **more: Any) -> Row:
    return {"name": "sh", "shell": {"command_line": command}} | more


def external(*choices: str) -> Row:
    return {"name": "ask", "external": {"prompt": "Deploy?", "choices": list(choices)}}


async def refused(call: Any, code: grpc.StatusCode, reason: str) -> error_details_pb2.ErrorInfo:
    """Asserts that a call is refused with this code and reason; answers with the ErrorInfo."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(cast("grpc.Call", caught.value))
    assert status is not None, caught.value
    info = error_details_pb2.ErrorInfo()
    assert any(packed.Unpack(info) for packed in status.details)
    assert (caught.value.code(), info.reason) == (code, reason), caught.value.details()
    return info


def struct(**values: Any) -> Struct:
    made = Struct()
    made.update(values)
    return made


@asynccontextmanager
async def scene(dsn: str, *, pace: Pace | None = None, watchers_max: int = 100) -> AsyncIterator[Scene]:
    """The whole of it; times are short unless the test says otherwise."""
    async with AsyncExitStack() as stack:
        journal = await stack.enter_async_context(open_journal(dsn, scheduler_id="stub"))
        engine = StubEngine(journal)
        api = client_api(engine, version="test", watchers_max=watchers_max, pace=pace or Pace(poll_s=0.1, hold_s=0.5))
        server = grpc.aio.server(
            interceptors=[ErrorInterceptor()], options=[("grpc.max_receive_message_length", 16 << 20)]
        )
        api.add_to(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(api.aclose)
        stack.push_async_callback(server.stop, None)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        made = Scene(dsn, engine, api, channel)
        leases = await journal.leases.claim("stub", address="", version="test", ttl_s=600.0)
        made.epochs = {lease.shard: lease.epoch for lease in leases}
        yield made
