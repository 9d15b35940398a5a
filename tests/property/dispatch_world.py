"""Two schedulers, two executors and a bad network, in one process and in made-up time.

The real state machines of dispatch (sessions, claims, reconciliation, the control stream on both sides, an executor's
attempts) around a journal in memory.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Final

import grpc

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.attempts import Attempts
from executor_service.cut_off import CutOff
from executor_service.harness.base import Attempt
from executor_service.harness.registry import Harnesses
from executor_service.intake import Intake
from executor_service.invocation import Invocation
from executor_service.outbox import Outbox
from executor_service.outcome import Outcome
from executor_service.slots import Pool
from executor_service.spool import Spool
from scheduler_service.api.dispatch import DispatchServicer
from scheduler_service.dispatch.durations import Durations
from scheduler_service.dispatch.queue import Dispatcher
from scheduler_service.dispatch.reconcile import Reconciler
from scheduler_service.dispatch.sessions import Held, Sessions
from scheduler_service.dispatch.work import Work
from scheduler_service.errors import ServiceError
from scheduler_service.iteration.engine import Engine
from scheduler_service.iteration.executor_news import ExecutorNews
from scheduler_service.iteration.losses import Losses
from scheduler_service.journal import JournalUnavailable, LostAttempt
from scheduler_service.settings import Settings
from tests.property.dispatch_model import SPEC, Effect, Model

GRACE_SECONDS: Final = 4.0
SLOTS: Final = 3
_END: Final = object()
Ref = tuple[str, int]


class Wire:
    """One stream. Frames keep their order and take their time; what is under way when it breaks is lost.

    Each side notices the break when it does: until then it talks to nobody.
    """

    def __init__(self, world: "World", replica: "Replica") -> None:
        self._world = world
        self._draw = world.draw
        self._up: asyncio.Queue[Any] = asyncio.Queue()
        self._down: asyncio.Queue[Any] = asyncio.Queue()
        self._broken = False
        self._told = False
        self.replica = replica
        self._served = world.spawn(self._serve())
        replica.wires[self] = world.wires[self] = None

    # the executor's side: what its control stream sees of gRPC

    async def write(self, frame: pb.ConnectRequest) -> None:
        """Sends a frame up."""
        await asyncio.sleep(0)
        if self._told:
            raise _cut()
        self._send(self._up, pb.ConnectRequest.FromString(frame.SerializeToString()))

    def __aiter__(self) -> "Wire":
        return self

    async def __anext__(self) -> pb.ConnectResponse:
        frame = await self._down.get()
        if frame is _END:
            raise _cut()
        return pb.ConnectResponse.FromString(frame.SerializeToString())

    def cancel(self) -> None:
        """The executor hangs up."""
        self._told = True
        self.cut(executor_after_s=0.0)

    # the network

    def cut(self, *, executor_after_s: float | None = None) -> None:
        """Breaks; each side learns of it at once, or after a while."""
        if not self._broken:
            self._broken = True
            self._world.wires.pop(self, None)
            loop = asyncio.get_running_loop()
            late = self._draw.choice((0.0, 0.01, self._draw.uniform(0, 5)))
            loop.call_later(late, self._tell_scheduler)
            after = self._draw.choice((0.0, self._draw.uniform(0, 3))) if executor_after_s is None else executor_after_s
            loop.call_later(after, self._tell_executor)

    def _tell_scheduler(self) -> None:
        self._served.cancel()

    def _tell_executor(self) -> None:
        self._told = True
        self._down.put_nowait(_END)

    def _send(self, queue: asyncio.Queue[Any], frame: Any) -> None:
        """Frames arrive in their order; a slow one holds up those behind it."""
        loop = asyncio.get_running_loop()
        due = max(
            getattr(queue, "due", 0.0) + 1e-6, loop.time() + self._draw.choice((0.0, 0.001, self._draw.uniform(0, 0.2)))
        )
        queue.due = due  # type: ignore[attr-defined]
        loop.call_at(due, self._arrive, queue, frame)

    def _arrive(self, queue: asyncio.Queue[Any], frame: Any) -> None:
        if not self._broken:
            queue.put_nowait(frame)

    # the scheduler's side

    async def _serve(self) -> None:
        try:
            served: Any = self.replica.servicer.Connect(self._requests(), _NO_CONTEXT)
            async with contextlib.aclosing(served) as frames:
                async for frame in frames:
                    self._send(self._down, frame)
        except (ServiceError, JournalUnavailable):
            pass
        finally:
            self.replica.wires.pop(self, None)
            self.cut()

    async def _requests(self) -> AsyncIterator[pb.ConnectRequest]:
        while True:
            yield await self._up.get()


_NO_CONTEXT: Final[Any] = None


def _cut() -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "cut")


class PlayedLosses(Losses):
    """Losses over the model: whoever sees one declares it."""

    def __init__(self, replica: "Replica") -> None:
        super().__init__(replica.journal, replica.loop, replica.dispatcher, epochs={}, reported=lambda _: None)
        self._replica = replica

    async def lose(self, item: LostAttempt) -> None:
        await self._replica._lose(item)


class Replica(Engine):
    """What dispatch needs of a scheduler, without the loop of runs: an engine that only dispatches."""

    def __init__(self, world: "World", number: int) -> None:
        self.world = world
        self._settings = Settings(
            database_url="", scheduler_id=f"s{number}", grace_seconds=GRACE_SECONDS, heartbeat_seconds=1.0
        )
        self._journal = world.model  # type: ignore[assignment]
        self._draining = False
        self._tasks = set()
        self.killed = False
        self.wires: dict[Wire, None] = {}
        self.sessions = Sessions()
        self.durations = Durations()
        self.dispatcher = Dispatcher(
            self._journal, self.sessions, self.durations, world.model.clock,
            poll_s=0.5, session_wait_s=60.0, actor=f"s{number}",
        )  # fmt: skip
        self.shards = SimpleNamespace(epoch_of=self._epoch)  # type: ignore[assignment]
        self.loop = SimpleNamespace(actor=f"s{number}", hear=lambda *_: None)  # type: ignore[assignment]
        self.reconciler = Reconciler(
            self._journal, self.sessions, epoch_of=self._epoch, lose=self._lose, freed=self.dispatcher.freed,
            grace_s=GRACE_SECONDS, actor=f"s{number}",
        )  # fmt: skip
        self.losses = PlayedLosses(self)
        self.news = ExecutorNews(
            self._journal, self.loop, self.dispatcher,
            durations=self.durations, losses=self.losses, spawn=self._spawn,
        )  # fmt: skip
        self.servicer = DispatchServicer(self, self._settings)
        self._services = [world.spawn(self.dispatcher.run()), world.spawn(self.reconciler.run())]

    def _epoch(self, _run_id: str) -> int | None:
        """Whoever holds an executor's session may speak for its runs: how holder and owner agree is not played here."""
        return 1

    async def _lose(self, item: LostAttempt) -> None:
        if await self.world.model.attempts_lost(item) == "ok":
            effect = self.world.model.effects[item.effect_id]
            if effect.state == "QUEUED":
                self.dispatcher.queued(item.effect_id, work_of(effect), grouped=False)

    async def request(self, effect: Effect) -> None:
        """What an iteration does with a request: reserve, commit, then send or queue."""
        work = work_of(effect)
        reservation = self.dispatcher.reserve(work)
        session = None if reservation is None else reservation.session
        place = None if session is None else (session.executor_id, session.incarnation, session.session_no)
        try:
            dispatched = await self.world.model.request(effect, place)
        except JournalUnavailable:
            if reservation is not None:
                self.dispatcher.give_back(reservation)
            return
        if reservation is not None and dispatched and not reservation.late:
            start = pb.StartAttempt(
                run_id="run", effect_id=effect.effect_id, effect_key=effect.effect_id, attempt=1, token=b"t",
                harness="shell", pool="shell", spec_json=SPEC, background=effect.background, name="work",
            )  # fmt: skip
            since = asyncio.get_running_loop().time()
            held = Held("run", "shell", effect.background, reservation.token, since)
            self.dispatcher.start(reservation.session, start, held)
            return
        if reservation is not None:
            self.dispatcher.give_back(reservation)
        if dispatched:
            return
        self.dispatcher.queued(effect.effect_id, work, grouped=False)

    def kill(self) -> None:
        """kill -9."""
        self.killed = True
        for wire in list(self.wires):
            wire.cut()
        for task in sorted({*self._services, *self._tasks}, key=_age):
            task.cancel()


def _age(task: asyncio.Task[Any]) -> tuple[str, int]:
    """An order of tasks that is the same each time: by name, which counts them unless it says what they do."""
    name, _, number = task.get_name().rpartition("-")
    return name, int(number) if number.isdigit() else 0


def work_of(effect: Effect) -> Work:
    """What dispatch has to know of an effect."""
    return Work("SHELL", "work", "shell", ("shell",), effect.background, {}, None, sleeps=False)


class Shell:
    """A harness whose work takes made-up time and fails now and then."""

    name, version, pool, end_seconds_max = "shell", "", "shell", 1.0

    def __init__(self, world: "World") -> None:
        self._world = world

    async def run(self, spec: Mapping[str, Any], attempt: Attempt) -> Outcome:
        """Works."""
        self._world.started(attempt.assignment.ref)
        attempt.started(0)
        ended = asyncio.Event()
        attempt.on_end(ended.set)
        draw = self._world.draw
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(draw.choice((0.0, 0.05, draw.uniform(0, 3)))):
                await ended.wait()
        return Outcome().fail("EXITED_NONZERO", "") if draw.random() < 0.2 else Outcome()


def _spool() -> Spool:
    """Room for results; nothing is written down here, for nobody runs it."""
    return Spool(Path("/nowhere"), bytes_max=1 << 30, entries_max=1000)


class ExecutorLife:
    """One incarnation of an executor."""

    def __init__(self, world: "World", executor_id: str, succeeds: list[str]) -> None:
        self._world = world
        self._succeeds = succeeds
        self.executor_id = executor_id
        self.incarnation = str(uuid.UUID(int=world.draw.getrandbits(128)))
        self._outbox = Outbox()
        self.attempts = Attempts(
            self.incarnation, Harnesses([Shell(world)], {}), {"shell": Pool(SLOTS, SLOTS - 1)}, _spool()
        )
        self.attempts.recorder = self
        self.wire: Wire | None = None
        self.killed = False
        cut_off = CutOff(self.attempts, kill=world.draw.random() < 0.3)
        intake = Intake(self, self.attempts, self._outbox, self._hello, cut_off)  # type: ignore[arg-type]
        lives = intake.run(), self.attempts.announce(self._outbox.accept), cut_off.run()
        self._tasks = [world.spawn(life) for life in lives]

    @asynccontextmanager
    async def open(self) -> AsyncIterator["ExecutorLife"]:
        """Whoever is dialled answers, or cuts the stream."""
        yield self

    def Connect(self) -> Wire:
        """Dials: a load balancer chooses the scheduler."""
        self.wire = Wire(self._world, self._world.draw.choice(self._world.replicas))
        if self.wire.replica.killed:
            self.wire.cut()
        return self.wire

    def _hello(self) -> pb.Hello:
        return pb.Hello(
            executor_id=self.executor_id, incarnation=self.incarnation, succeeds=self._succeeds, contract=1,
            namespace="default", pools=[pb.Pool(name="shell", slots=SLOTS, background_slots=SLOTS - 1)],
            harnesses=[pb.Harness(name="shell", pool="shell")],
        )  # fmt: skip

    def kill(self) -> None:
        """kill -9."""
        self.killed = True
        for task in sorted({*self._tasks, *self.attempts._tasks}, key=_age):
            task.cancel()
        if self.wire is not None:
            self.wire.cut()

    # what is recorded

    def started(self, invocation: Invocation) -> None:
        """It has run for a while."""

    def dirty_progress(self, invocation: Invocation) -> None:
        """No progress here."""

    def dirty_output(self, invocation: Invocation) -> None:
        """No output here."""

    def settle(self, invocation: Invocation) -> None:
        """The outcome goes to the journal."""
        self._tasks.append(self._world.spawn(self._settle(invocation)))

    async def _settle(self, invocation: Invocation) -> None:
        assert invocation.outcome is not None
        effect_id, attempt = invocation.assignment.ref
        outcome = "ok" if invocation.outcome.kind == "succeeded" else "failed"
        event = None
        if await self._world.model.settle(effect_id, attempt, outcome) == "ok":
            event = pb.JournaledEvent(
                run_id="run", seq=1, type="EFFECT_RESOLVED", recorded_at_us=1, effect_id=effect_id,
                effect_key=effect_id, attempt=attempt, data_json=b"{}", frees_slot=True,
            )  # fmt: skip
        self.attempts.recorded(invocation, event)
        if event is not None and self._world.draw.random() < 0.9:  # some notices are lost
            self._outbox.publish([event])


class World:
    """Everything together."""

    def __init__(self, draw: Random) -> None:
        self.draw = draw
        self.model = Model(draw)
        #: In the order in which they were made: a set's order is another one each time.
        self.wires: dict[Wire, None] = {}
        self.starts: dict[Ref, int] = {}
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self.replicas = [Replica(self, number) for number in range(2)]
        self.owner: Replica | None = self.replicas[0]
        self.executors = [ExecutorLife(self, f"x{number}", []) for number in range(2)]

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that is held on to."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)

    def started(self, ref: Ref) -> None:
        """Work begins."""
        effect = self.model.effects.get(ref[0])
        assert effect is not None, f"{ref} starts before its request is committed"
        assert effect.attempt >= ref[1], f"{ref} starts before its dispatch is committed"
        self.starts[ref] = self.starts.get(ref, 0) + 1
        assert self.starts[ref] == 1, f"{ref} is started {self.starts[ref]} times"
        assert ref[1] not in effect.never_started, f"{ref} starts after it was declared never started"

    async def restart_replica(self, number: int, after_s: float) -> None:
        """kill -9 of a scheduler, and a new one; the other owns the runs meanwhile."""
        dead = self.replicas[number]
        if dead.killed:  # by another mischief, which brings it back
            return
        dead.kill()
        self._new_owner()
        await asyncio.sleep(after_s)
        self.replicas[number] = Replica(self, number)
        self._new_owner()

    def _new_owner(self) -> None:
        if self.owner is None or self.owner.killed:
            self.owner = next((replica for replica in self.replicas if not replica.killed), None)

    async def restart_executor(self, number: int, after_s: float) -> None:
        """kill -9 of an executor, and the next incarnation, which knows of the last or does not."""
        dead = self.executors[number]
        if dead.killed:
            return
        dead.kill()
        await asyncio.sleep(after_s)
        succeeds = [dead.incarnation] if self.draw.random() < 0.8 else []
        self.executors[number] = ExecutorLife(self, dead.executor_id, succeeds)

    async def close(self) -> None:
        """Ends everything."""
        tasks = list(self._tasks)
        for executor in self.executors:
            executor.kill()
        for replica in self.replicas:
            replica.kill()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def violations(self) -> Iterator[str]:
        """What must not be, once everything is quiet."""
        for effect in self.model.effects.values():
            started = [attempt for (effect_id, attempt) in self.starts if effect_id == effect.effect_id]
            if len(effect.settled) != 1:
                yield f"{effect} has settled {effect.settled}"
            if len(started) > effect.max_attempts:
                yield f"{effect} was started as {started}"
            if lied := effect.never_started & set(started):
                yield f"attempts {lied} of {effect} were declared never started, and were"
        for replica in self.replicas:
            for session in replica.sessions:
                pool = session.pools["shell"]
                if (pool.foreground_taken, pool.background_taken, pool.claiming) != (0, 0, 0):
                    yield f"slots of {session.executor_id} are taken by nothing: {pool}"
        for executor in self.executors:
            if len(executor.attempts) or executor.attempts.pools["shell"].taken:
                yield f"executor {executor.executor_id} still holds attempts"
