"""A stand-in for the scheduler: a real DispatchService over real gRPC that a test scripts frame by frame.

The journal is real: sessions, requests, dispatches and cancels go through the scheduler's own SQL functions, so that
the executor under test writes against the true fences.
"""

import asyncio
import hashlib
import secrets
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import orjson
import psycopg
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from backburner.scheduler.v1 import dispatch_service_pb2_grpc as pb_grpc
from tests.support.eventually import eventually

Context = grpc.aio.ServicerContext[pb.ConnectRequest, pb.ConnectResponse]


@dataclass(eq=False)
class FakeSession:
    """One stream of an executor, with everything that came up on it."""

    hello: pb.Hello
    session_no: int
    outbox: asyncio.Queue[pb.ConnectResponse | None] = field(default_factory=asyncio.Queue)
    accepted: list[tuple[str, int]] = field(default_factory=list)
    rejected: list[pb.RejectedAttempt] = field(default_factory=list)
    events: list[pb.JournaledEvent] = field(default_factory=list)
    heartbeats: list[pb.ExecutorHeartbeat] = field(default_factory=list)
    draining: list[str] = field(default_factory=list)
    #: Frames but for heartbeats, of which a slow machine sees more.
    messages: int = 0
    closed: bool = False
    #: Incarnation whose session is to have ended this one.
    superseded_by: str = ""

    def send(self, frame: pb.ConnectResponse) -> None:
        """Sends any frame."""
        self.outbox.put_nowait(frame)

    def start(self, *dispatches: "Dispatch", session_no: int | None = None) -> None:
        """Sends start commands."""
        number = self.session_no if session_no is None else session_no
        starts = pb.StartAttempts(session_no=number, attempts=[d.start for d in dispatches])
        self.send(pb.ConnectResponse(start=starts))

    def cancel(self, dispatch: "Dispatch", reason: str = "CANCELLED_BY_USER", *, token: bool = True) -> None:
        """Sends the cancel of an attempt."""
        cancel = pb.CancelAttempt(ref=dispatch.ref, reason=reason, message="test", run_id=dispatch.run_id)
        if token:
            cancel.token = dispatch.start.token
        self.send(pb.ConnectResponse(cancel=pb.CancelAttempts(attempts=[cancel])))

    def supersede(self, incarnation: str) -> None:
        """Ends the stream as if a newer session of this incarnation had begun."""
        self.superseded_by = incarnation
        self.hang_up()

    def hang_up(self) -> None:
        """Ends the stream."""
        self.outbox.put_nowait(None)

    def events_of(self, dispatch: "Dispatch") -> list[pb.JournaledEvent]:
        """Notices of an attempt."""
        return [e for e in self.events if (e.effect_id, e.attempt) == (dispatch.effect_id, dispatch.start.attempt)]

    def was_rejected(self, dispatch: "Dispatch") -> list[pb.RejectedAttempt]:
        """Refusals of an attempt."""
        return [r for r in self.rejected if r.ref == dispatch.ref]


@dataclass(frozen=True)
class Dispatch:
    """An attempt that the journal says was dispatched."""

    run_id: str
    effect_id: str
    start: pb.StartAttempt

    @property
    def ref(self) -> pb.AttemptRef:
        return pb.AttemptRef(effect_id=self.effect_id, attempt=self.start.attempt)


@dataclass(frozen=True)
class Settled:
    """The row that settled an effect, or ended its attempt."""

    seq: int
    type: str
    data: Mapping[str, Any]

    @property
    def value(self) -> Any:
        return self.data["result"]["value"]["value"]

    @property
    def reason(self) -> str:
        why = self.data.get("error", {}).get("reason") or self.data.get("reason", "")
        return str(why).removeprefix("EFFECT_REASON_")


class FakeScheduler(pb_grpc.DispatchServiceServicer):
    """The service, its sessions, and the journal."""

    def __init__(self, dsn: str, *, heartbeat_s: float = 0.2) -> None:
        self.dsn = dsn
        self.heartbeat_s = heartbeat_s
        self.sessions: list[FakeSession] = []
        self.stale: list[pb.AttemptRef] = []
        #: When set, streams are refused with this status.
        self.refuse_with: grpc.StatusCode | None = None
        #: When false, the scheduler says nothing on its own: a half-dead peer.
        self.beats = True
        #: The grace that executors are told; 0: none.
        self.grace_s = 0.0
        self.address = ""
        self._server: grpc.aio.Server | None = None
        self._iterations: dict[str, int] = {}

    async def start(self, address: str = "127.0.0.1:0") -> None:
        """Serves."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        pb_grpc.add_DispatchServiceServicer_to_server(self, server)
        port = server.add_insecure_port(self.address or address)
        self.address = f"127.0.0.1:{port}"
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Goes away, with all its streams. `start` serves on the same port again."""
        for session in self.sessions:
            session.hang_up()
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def Connect(
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: Context
    ) -> AsyncIterator[pb.ConnectResponse]:
        if self.refuse_with is not None:
            await context.abort(self.refuse_with, "refused by the test")
        session = await self._hello((await anext(aiter(request_iterator))).hello)
        reader = asyncio.create_task(self._read(session, request_iterator))
        try:
            yield self._welcome(session)
            self.sessions.append(session)
            async for frame in self._frames(session):
                yield frame
            if session.superseded_by:
                await context.abort_with_status(rpc_status.to_status(_superseded(session.superseded_by)))
        finally:
            session.closed = True
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def session(self, after: int = 0) -> FakeSession:
        """The newest session, once there are more than `after`."""
        await eventually(lambda: len(self.sessions) > after, message="no session of the executor")
        return self.sessions[-1]

    async def request(self, count: int = 1, *, send: bool = True, **spec: Any) -> list[Dispatch]:
        """Commits one run with so many equal effects, dispatched to the newest session, and sends the starts."""
        session = await self.session()
        run_id = await self.create_run()
        dispatches = await self.dispatch(run_id, session, [(f"effect-{n}", spec) for n in range(count)])
        if send:
            session.start(*dispatches)
        return dispatches

    async def one(self, *, send: bool = True, **spec: Any) -> Dispatch:
        """Commits and sends one effect."""
        [dispatch] = await self.request(1, send=send, **spec)
        return dispatch

    async def run(self, timeout_s: float = 60.0, **spec: Any) -> Settled:
        """Commits and sends one effect, and waits until its attempt has ended."""
        return await self.settled(await self.one(**spec), timeout_s)

    async def settled(self, dispatch: Dispatch, timeout_s: float = 60.0) -> Settled:
        """Waits for the row that ends the attempt."""
        kinds = ["EFFECT_RESOLVED", "EFFECT_CANCELLED", "EFFECT_ATTEMPT_FAILED", "EFFECT_PARKED"]

        async def look() -> list[Settled]:
            return [row for row in await self.rows(dispatch) if row.type in kinds]

        found = await eventually(look, timeout=timeout_s, message=f"attempt {dispatch.ref} did not end")
        assert len(found) == 1, found
        return found[0]

    async def rows(self, dispatch: Dispatch, kind: str = "") -> list[Settled]:
        """The journal of an effect."""
        query = "SELECT seq, type, data FROM backburner.journal WHERE run_id = %s AND effect_id = %s ORDER BY seq"
        found = [Settled(*row) for row in await self.query(query, dispatch.run_id, dispatch.effect_id)]
        return [row for row in found if row.type == (kind or row.type)]

    async def output(self, dispatch: Dispatch, stream: int = 1) -> list[tuple[int, bytes]]:
        """The stored output chunks of an effect, by offset."""
        query = (
            "SELECT offset_, data FROM backburner.effect_output WHERE effect_id = %s AND stream = %s ORDER BY offset_"
        )
        return [(offset, bytes(data)) for offset, data in await self.query(query, dispatch.effect_id, stream)]

    async def create_run(self) -> str:
        """A client-driven run that nobody owns."""
        run_id = str(uuid.uuid4())
        item = {
            "run_id": run_id, "namespace": "default", "key": None, "process": "", "client_driven": True, "labels": {},
            "input_digest": "", "actor": "test", "data": {"namespace": "default", "client_driven": True}, "owner": None,
        }  # fmt: skip
        await self.query("SELECT * FROM backburner.create_runs_v1(%s::jsonb)", as_json([item]))
        return run_id

    async def dispatch(
        self, run_id: str, session: FakeSession, specs: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> list[Dispatch]:
        """Commits requests with their dispatches, as the owner's fast path does."""
        dispatches = [_dispatch(run_id, key, spec) for key, spec in specs]
        rows = [_request_row(d, session, spec) for d, (_, spec) in zip(dispatches, specs, strict=True)]
        iteration = self._iterations[run_id] = self._iterations.get(run_id, 0) + 1
        item = {"run_id": run_id, "epoch": 0, "iteration": iteration, "actor": "test", "rows": rows}
        [answer] = await self.query("SELECT outcome, extra FROM backburner.append_v1(%s::jsonb)", as_json([item]))
        assert answer[0] == "ok", answer
        assert len(answer[1]) == len(rows), "not all were dispatched"
        return dispatches

    async def request_cancel(self, dispatch: Dispatch, reason: str = "CANCELLED_BY_USER") -> None:
        """Commits a cancel; sending it is the test's."""
        item = {
            "run_id": dispatch.run_id, "effect_id": dispatch.effect_id, "reason": f"EFFECT_REASON_{reason}",
            "message": "test", "actor": "test",
        }  # fmt: skip
        await self.query("SELECT * FROM backburner.request_cancels_v1(%s::jsonb)", as_json([item]))

    async def _hello(self, hello: pb.Hello) -> FakeSession:
        p = {
            "executor_id": hello.executor_id, "incarnation": hello.incarnation, "holder": "test",
            "address": hello.address, "namespace": hello.namespace, "pools": {}, "capabilities": [], "labels": {},
            "version": hello.version, "draining": hello.draining, "clock_skew_s": 0, "succeeds": list(hello.succeeds),
        }  # fmt: skip
        [(number,)] = await self.query("SELECT session_no FROM backburner.executor_hello_v1(%s::jsonb)", as_json(p))
        return FakeSession(hello, number)

    def _welcome(self, session: FakeSession) -> pb.ConnectResponse:
        interval = duration_pb2.Duration()
        interval.FromNanoseconds(int(self.heartbeat_s * 1e9))
        welcome = pb.Welcome(
            session_no=session.session_no, scheduler_id="test", heartbeat_interval=interval, stale=self.stale
        )
        if self.grace_s:
            welcome.grace.FromNanoseconds(int(self.grace_s * 1e9))
        return pb.ConnectResponse(welcome=welcome)

    async def _frames(self, session: FakeSession) -> AsyncIterator[pb.ConnectResponse]:
        while True:
            try:
                async with asyncio.timeout(self.heartbeat_s):
                    frame = await session.outbox.get()
            except TimeoutError:
                if self.beats:
                    yield pb.ConnectResponse(heartbeat=pb.SchedulerHeartbeat())
                continue
            if frame is None:
                return
            yield frame

    async def _read(self, session: FakeSession, frames: AsyncIterator[pb.ConnectRequest]) -> None:
        async for frame in frames:
            session.messages += not frame.HasField("heartbeat")
            session.accepted += [(ref.effect_id, ref.attempt) for ref in frame.accepted.attempts]
            session.rejected += frame.rejected.attempts
            session.events += frame.journaled.events
            if frame.HasField("heartbeat"):
                session.heartbeats.append(frame.heartbeat)
            if frame.HasField("draining"):
                session.draining.append(frame.draining.reason)

    async def query(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Runs one statement against the journal."""
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            cursor = await connection.execute(query.encode(), parameters)
            return await cursor.fetchall()


def _superseded(incarnation: str) -> status_pb2.Status:
    status = status_pb2.Status(code=grpc.StatusCode.ABORTED.value[0], message="superseded")
    info = error_details_pb2.ErrorInfo(reason="SESSION_SUPERSEDED", metadata={"incarnation": incarnation})
    status.details.add().Pack(info)
    return status


_POOLS = {"function": "functions", "agent": "agents", "shell": "shell"}


def _dispatch(run_id: str, key: str, spec: Mapping[str, Any]) -> Dispatch:
    effect_id = str(uuid.uuid5(uuid.UUID(run_id), key))
    work = {name: value for name, value in spec.items() if name not in _HINTS}
    name = next((kind for kind in ("function", "agent") if kind in work), "shell")
    harness = {"function": "function/{function}", "agent": "{harness}"}.get(name, "shell").format_map(
        work.get(name, {})
    )
    start = pb.StartAttempt(
        run_id=run_id,
        effect_id=effect_id,
        effect_key=key,
        attempt=1,
        token=secrets.token_bytes(16),
        harness=harness,
        pool=_POOLS[name],
        spec_json=orjson.dumps({"name": name, **work}),
        background=bool(work.get("background")),
        namespace="default",
        name=name,
    )
    if (total := spec.get("total_remaining_s")) is not None:
        start.total_remaining.FromNanoseconds(int(total * 1e9))
    if (expected := spec.get("expected_s")) is not None:
        start.expected_duration.FromNanoseconds(int(expected * 1e9))
    return Dispatch(run_id, effect_id, start)


#: What a test gives beside the spec.
_HINTS = ("total_remaining_s", "expected_s", "max_attempts")


def _request_row(dispatch: Dispatch, session: FakeSession, spec: Mapping[str, Any]) -> dict[str, Any]:
    start = dispatch.start
    x = {
        "kind": start.name.upper(), "name": start.name, "harness": start.harness,
        "pool": start.pool, "capabilities": [f"agent/{start.harness}" if start.name == "agent" else start.harness],
        "background": start.background, "priority": 0,
        "max_attempts": spec.get("max_attempts", 1), "initial_s": 60, "backoff": 2, "max_interval_s": 300,
        "non_retryable": [], "on_run_end": "WAIT", "labels": {}, "executor_labels": {}, "poll_interval_s": 5,
        "dispatch": {
            "executor_id": session.hello.executor_id, "incarnation": session.hello.incarnation,
            "session_no": session.session_no, "token_hash": hashlib.sha256(start.token).hexdigest(),
            "harness": start.harness,
        },
    }  # fmt: skip
    return {
        "type": "EFFECT_REQUESTED", "cause": 0, "effect_id": dispatch.effect_id, "effect_key": start.effect_key,
        "attempt": 0, "data": {"spec": orjson.loads(start.spec_json), "digest": ""}, "x": x,
    }  # fmt: skip


def as_json(value: Any) -> str:
    return orjson.dumps(value).decode()


@asynccontextmanager
async def fake_scheduler(dsn: str, **options: Any) -> AsyncIterator[FakeScheduler]:
    """A serving stand-in."""
    scheduler = FakeScheduler(dsn, **options)
    await scheduler.start()
    try:
        yield scheduler
    finally:
        await scheduler.stop()
