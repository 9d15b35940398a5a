"""An executor that a test scripts: the real control stream, the real functions of the journal, no children."""

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import orjson
import psycopg

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from backburner.scheduler.v1 import dispatch_service_pb2_grpc as pb_grpc
from tests.support.eventually import eventually

Row = dict[str, Any]
#: What an attempt ends with: fields of an item of attempts_settle_v1.
SUCCEEDED: Row = {"outcome": "succeeded"}
FAILED: Row = {"outcome": "failed", "reason": "EFFECT_REASON_EXITED_NONZERO", "death": "DEATH_PROVEN"}
CANCELLED: Row = {"outcome": "cancelled", "reason": "EFFECT_REASON_CANCELLED_BY_USER", "death": "DEATH_PROVEN"}


@dataclass(eq=False)
class Stream:
    """One session and everything that came down on it."""

    call: Any
    welcome: pb.Welcome = field(default_factory=pb.Welcome)
    starts: list[pb.StartAttempt] = field(default_factory=list)
    cancels: list[pb.CancelAttempt] = field(default_factory=list)
    moved: str = ""
    error: grpc.aio.AioRpcError | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def write(self, frame: pb.ConnectRequest) -> None:
        """Sends a frame up; gRPC takes one at a time."""
        async with self.turn:
            await self.call.write(frame)


@dataclass(eq=False)
class ScriptedExecutor:
    """Says hello, hears starts and cancels, settles what the test tells it to."""

    channel: grpc.aio.Channel
    dsn: str
    executor_id: str = "x"
    incarnation: str = field(default_factory=lambda: str(uuid.uuid4()))
    pools: Mapping[str, tuple[int, int]] = field(default_factory=lambda: {"functions": (100, 50), "shell": (10, 5)})
    functions: Sequence[str] = ("probe",)
    harnesses: Sequence[str] = ("shell", "function")
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    #: Called for each start; what it returns settles the attempt at once. None: the test does it.
    answer: Callable[[pb.StartAttempt], Row | None] = lambda start: None
    #: Whether the scheduler gives work to this session yet: that is a moment after its welcome.
    taken: Callable[[int], bool] = lambda session_no: True
    #: How often it says that it is there; 0: never.
    beat_s: float = 0.3
    #: True: each time it reports too what it was given and has not settled.
    reports: bool = False
    #: False: results are committed and nobody is told.
    notices: bool = True
    streams: list[Stream] = field(default_factory=list)
    _settled: set[tuple[str, int]] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _connection: psycopg.AsyncConnection[Any] | None = None

    @property
    def stream(self) -> Stream:
        return self.streams[-1]

    @property
    def starts(self) -> list[pb.StartAttempt]:
        """All starts of all sessions, in order."""
        return [start for stream in self.streams for start in stream.starts]

    @property
    def cancels(self) -> list[pb.CancelAttempt]:
        return [cancel for stream in self.streams for cancel in stream.cancels]

    def hello(self, attempts: Sequence[pb.StartAttempt] = (), succeeds: Sequence[str] = ()) -> pb.Hello:
        return pb.Hello(
            executor_id=self.executor_id,
            incarnation=self.incarnation,
            contract=1,
            namespace=self.namespace,
            pools=[pb.Pool(name=n, slots=s, background_slots=b) for n, (s, b) in self.pools.items()],
            harnesses=[pb.Harness(name=name) for name in self.harnesses],
            functions=self.functions,
            labels=self.labels,
            attempts=[reported(start) for start in attempts],
            succeeds=succeeds,
        )

    async def connect(self, attempts: Sequence[pb.StartAttempt] = (), succeeds: Sequence[str] = ()) -> Stream:
        """A new session, once it is welcome."""
        stream = await self.open(pb.ConnectRequest(hello=self.hello(attempts, succeeds)))
        await eventually(lambda: stream.welcome.session_no or stream.error, message="no welcome")
        if stream.error is not None:
            raise stream.error
        if self.beat_s:
            self._spawn(self._beats(stream))
        await eventually(lambda: stream.ended.is_set() or self.taken(stream.welcome.session_no), message="no work")
        return stream

    async def _beats(self, stream: Stream) -> None:
        while not stream.ended.is_set():
            held = [start for start in self.starts if (start.effect_id, start.attempt) not in self._settled]
            told = pb.ExecutorHeartbeat(report=self.reports, attempts=map(reported, held) if self.reports else ())
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await stream.write(pb.ConnectRequest(heartbeat=told))
            await asyncio.sleep(self.beat_s)

    async def open(self, first: pb.ConnectRequest) -> Stream:
        """A stream with this first frame; nothing is waited for."""
        stream = Stream(pb_grpc.DispatchServiceStub(self.channel).Connect())
        self.streams.append(stream)
        with contextlib.suppress(grpc.aio.AioRpcError):  # the reader sees it too
            await stream.write(first)
        self._spawn(self._read(stream))
        return stream

    async def _read(self, stream: Stream) -> None:
        try:
            async for frame in stream.call:
                await self._take(stream, frame)
        except grpc.aio.AioRpcError as error:
            stream.error = error
        finally:
            stream.ended.set()

    async def _take(self, stream: Stream, frame: pb.ConnectResponse) -> None:
        if frame.HasField("welcome"):
            stream.welcome = frame.welcome
        stream.moved = frame.moved.reason or stream.moved
        stream.cancels += frame.cancel.attempts
        stream.starts += frame.start.attempts
        for start in frame.start.attempts:
            assert frame.start.session_no == stream.welcome.session_no, "a start of another session"
            outcome = self.answer(start)
            if outcome is not None:
                await self.settle(start, **outcome)

    async def hang_up(self) -> None:
        """Cuts the newest stream, as a network would."""
        self.stream.call.cancel()
        await self.stream.ended.wait()

    async def send(self, **frame: Any) -> None:
        await self.stream.write(pb.ConnectRequest(**frame))

    async def beat(self, *running: pb.StartAttempt, report: bool = True) -> None:
        """A heartbeat with a whole report."""
        attempts = [reported(start) for start in running]
        await self.send(heartbeat=pb.ExecutorHeartbeat(report=report, attempts=attempts))

    async def reject(self, start: pb.StartAttempt, reason: pb.RejectedAttempt.Reason.ValueType) -> None:
        await self.send(rejected=pb.Rejected(attempts=[pb.RejectedAttempt(ref=ref_of(start), reason=reason)]))

    async def start_of(self, key: str, attempt: int = 1, timeout_s: float = 30.0) -> pb.StartAttempt:
        """The start of this attempt, once it has come."""

        def found() -> pb.StartAttempt | None:
            return next((s for s in self.starts if (s.effect_key, s.attempt) == (key, attempt)), None)

        start = await eventually(found, timeout_s, message=lambda: f"no start of {key}/{attempt}: {self.starts}")
        assert start is not None
        return start

    async def settle(self, start: pb.StartAttempt, value: Any = None, **outcome: Any) -> str:
        """Commits an outcome with the attempt's token, then tells, unless the test forbids it."""
        item: Row = {"elapsed_s": 0.01, "executor_id": self.executor_id} | SUCCEEDED | outcome
        if item["outcome"] == "succeeded":
            item["result"] = {"value": {"value": value}}
        else:
            item["error"] = {"reason": item["reason"], "message": "said the test"}
        return await self._call("attempts_settle_v1", start, item, frees=True)

    async def started(self, start: pb.StartAttempt) -> str:
        return await self._call("attempts_started_v1", start, {"pid": 1}, frees=False)

    async def _call(self, function: str, start: pb.StartAttempt, item: Row, *, frees: bool) -> str:
        item |= {"run_id": start.run_id, "effect_id": start.effect_id, "attempt": start.attempt}
        item["token"] = start.token.hex()
        statement = (
            "SELECT outcome, seq, type, (extract(epoch FROM recorded_at) * 1000000)::bigint, data "
            f"FROM backburner.{function}(%s::jsonb)"
        )
        async with self._turn:
            if self._connection is None:
                self._connection = await psycopg.AsyncConnection.connect(self.dsn, autocommit=True)
            cursor = await self._connection.execute(statement.encode(), [orjson.dumps([item]).decode()])
            [(outcome, seq, kind, at, data)] = await cursor.fetchall()
        if frees:
            self._settled.add((start.effect_id, start.attempt))
        if outcome == "ok" and self.notices:
            event = pb.JournaledEvent(
                run_id=start.run_id, seq=seq, type=kind, recorded_at_us=at, effect_id=start.effect_id,
                effect_key=start.effect_key, attempt=start.attempt, data_json=data.encode(), frees_slot=frees,
            )  # fmt: skip
            await self.send(journaled=pb.Journaled(events=[event]))
        return str(outcome)

    async def close(self) -> None:
        for stream in self.streams:
            stream.call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._connection is not None:
            await self._connection.close()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)


def ref_of(start: pb.StartAttempt) -> pb.AttemptRef:
    return pb.AttemptRef(effect_id=start.effect_id, attempt=start.attempt)


def reported(start: pb.StartAttempt) -> pb.ReportedAttempt:
    """A running attempt, as a report has it."""
    return pb.ReportedAttempt(
        ref=ref_of(start), state=executor_pb.Attempt.STATE_RUNNING, pool=start.pool, background=start.background,
        run_id=start.run_id,
    )  # fmt: skip
