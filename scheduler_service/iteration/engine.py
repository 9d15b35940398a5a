"""The engine of one replica: the loop, the shards, dispatch and reconciliation, put together.

The servicers of clients talk to it, and those of executors to its `news`; it alone starts and stops the parts.
"""

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar, cast

from scheduler_service.api.engine import ConnectedExecutor, LiveAttempt, PoolUse
from scheduler_service.authoring.definitions import AnyProcess
from scheduler_service.dispatch.durations import Durations
from scheduler_service.dispatch.peers import Peers
from scheduler_service.dispatch.queue import Dispatcher
from scheduler_service.dispatch.reconcile import Reconciler
from scheduler_service.dispatch.sessions import Session, Sessions
from scheduler_service.iteration.call_checks import CallChecks, Mode
from scheduler_service.iteration.children import Children
from scheduler_service.iteration.clients import ClientRuns
from scheduler_service.iteration.closing import Closing
from scheduler_service.iteration.control import RunControl
from scheduler_service.iteration.events import event_of_claim
from scheduler_service.iteration.executor_news import ExecutorNews
from scheduler_service.iteration.hints import Hints
from scheduler_service.iteration.loading import Loader
from scheduler_service.iteration.loop import Loop
from scheduler_service.iteration.losses import Losses
from scheduler_service.iteration.operations import Operations
from scheduler_service.iteration.orders import Orders
from scheduler_service.iteration.owned_effects import OwnedEffects
from scheduler_service.iteration.patience import patiently
from scheduler_service.iteration.polls import Polls
from scheduler_service.iteration.recovery import Shards
from scheduler_service.iteration.retention import Retention
from scheduler_service.iteration.runs import RunState
from scheduler_service.iteration.worker import IterationThreads
from scheduler_service.journal import (
    CancelOutcome,
    CancelRequest,
    ClaimedAttempt,
    CreateRun,
    CreateRunOutcome,
    Journal,
    JournalUnavailable,
    ResolveOutcome,
    ResolveRequest,
    Vitals,
)
from scheduler_service.replay.events import Event
from scheduler_service.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How long a start waits for a database that has answered already.
_START_SECONDS = 60.0
#: Longest that a replica which stops waits until the others are told that its shards are free.
_TOLD_SECONDS = 0.5


class Engine:
    """Implements `api.engine.EngineApi`."""

    def __init__(self, settings: Settings, journal: Journal, processes: Mapping[str, AnyProcess], version: str) -> None:
        self._settings = settings
        self._journal = journal
        self._processes = processes
        self._draining = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._services: list[asyncio.Task[None]] = []
        actor = f"scheduler/{settings.scheduler_id}"
        self.sessions = Sessions()
        self.durations = Durations()
        self.dispatcher = Dispatcher(
            journal, self.sessions, self.durations, journal.clock,
            poll_s=settings.poll_seconds, session_wait_s=settings.session_wait_seconds, actor=settings.scheduler_id,
        )  # fmt: skip
        self.dispatcher.on_dispatched = self._claimed
        self.threads = IterationThreads(settings.step_seconds_max)
        checks = CallChecks(cast("Mode", settings.check_calls))
        self.loop = Loop(journal, self.sessions, self.dispatcher, self.threads, checks, actor=actor, spawn=self._spawn)
        self.closing = Closing(self.loop)
        self.control = RunControl(journal, self.loop)
        self.clients = ClientRuns(journal, self.loop, self._to_its_end, grace_s=settings.grace_seconds)
        loader = Loader(self.loop, processes, checks, close=self.closing.close)
        self.loop.load, self.loop.fill = loader.load, loader.fill
        self._owned_effects = OwnedEffects(self.loop)
        self.loop.on_forget = self._forgotten
        self.loop.observe_parked = self.closing.observe_parked
        self.shards = Shards(
            journal,
            self.loop,
            scheduler_id=settings.scheduler_id,
            version=version,
            lease_s=settings.lease_seconds,
            poll_s=settings.poll_seconds,
            on_parked_cancel=self.closing.force,
        )
        self.shards.vitals = self._vitals
        self.loop.read_again = self.shards.adoption.created
        self.hints = Hints(journal, self.loop, self.dispatcher, self.shards, Peers(settings.scheduler_id))
        self.children = Children(self.loop, processes, epoch_of=self._epoch_of, created_elsewhere=self.hints.created)
        self.loop.prepare, self.loop.committed = self.children.prepare, self.children.committed
        self.losses = Losses(
            journal, self.loop, self.dispatcher, epochs=self.shards.epochs, reported=self.hints.missing
        )
        self.news = ExecutorNews(
            journal, self.loop, self.dispatcher, durations=self.durations, losses=self.losses, spawn=self._spawn
        )
        self.loop.observers = (self.closing.observe, self._owned_effects.observe, self.news.observe)
        self.reconciler = Reconciler(
            journal,
            self.sessions,
            epoch_of=self.shards.epoch_of,
            lose=self.losses.lose,
            freed=self.dispatcher.freed,
            grace_s=settings.grace_seconds,
            actor=actor,
        )
        orders = Orders(
            journal, self.loop, self.sessions, self.dispatcher,
            epochs=self.shards.epochs, lose=self.losses.declare, spawn=self._spawn,
        )  # fmt: skip
        self.hints.look_at_orders = orders.told
        self.operations = Operations(journal, self.dispatcher, orders, self.hints.ordered)
        self._retention = Retention(journal, settings.retention_days, actor)
        self._polls = Polls(
            journal,
            self.loop,
            self.sessions,
            self.shards,
            clients=self.clients,
            orders=orders,
            losses=self.losses,
            settings=settings,
        )
        self._connect_hints()

    def _vitals(self) -> Vitals:
        """What only this replica can measure, for whoever asks any of them what is wrong."""
        commits, reads, waits = self._journal.commits, self._journal.readers, self.threads.waits
        return Vitals(
            commits=len(commits.values()),
            commit_p99_s=commits.p99(),
            reads=len(reads.waits.values()),
            reads_waiting=reads.waiting,
            read_wait_p99_s=reads.waits.p99(),
            iterations=len(waits.values()),
            iteration_lag_p99_s=waits.p99(),
            shards_lost=len(self.shards.losses.values()),
        )

    def _connect_hints(self) -> None:
        """Who tells of what, and who looks when told."""
        self.loop.heads.on_news = lambda run_id, stopped: self.hints.moved(run_id, stopped=stopped)
        self.loop.fast_path.on_cancel_elsewhere = self.hints.cancelled
        self.dispatcher.on_queued, self.dispatcher.on_moved = self.hints.queued, self.hints.queue_moved
        self.shards.on_replicas, self.shards.on_moved = self.hints.replicas, self.hints.shards_moved
        self.hints.deliver_cancels, self.hints.declare_missing = self._polls.deliver_cancels, self.losses.turn

    # -- life --------------------------------------------------------------------------------------------------

    async def start(self, address: str = "") -> None:
        """Takes shards and begins to work. `address` is where other replicas reach this one; empty: nowhere."""
        self.shards.address = address
        self._journal.lives.on_change = self.start_over
        self.threads.start()
        await patiently(self._look_around, _START_SECONDS)
        for name, coroutine in (
            ("shards", self.shards.run()),
            ("adoption", self.shards.adoption.run()),
            ("dispatcher", self.dispatcher.run()),
            ("reconciler", self.reconciler.run()),
            ("polls", self._polls.run()),
            ("retention", self._retention.run()),
        ):
            self._services.append(asyncio.create_task(coroutine, name=name))

    async def _look_around(self) -> None:
        known = await self._journal.known_durations()
        await self._journal.read_clock()
        await self.shards.turn()
        for namespace, name, took in known:
            self.durations.note(namespace, name, took)

    def start_over(self) -> None:
        """The database is in another life, which may have lost the end of the one before.

        For this replica that is like its own restart: coroutines, cursors, leases and sessions of executors are
        dropped, and what they were made of is read again.
        """
        self.shards.forget()
        self.loop.heads.forget()
        for session in list(self.sessions):
            session.void("the database is in another life")
            # Its number may be given anew: what its call does when it ends must not be taken for the newer one's.
            self.sessions.remove(session)
        self.reconciler.stalled()
        self.clients.be_patient()

    async def hand_over(self, patience_s: float) -> None:
        """Tells replicas and executors that this one goes, and gives its shards back once its appends are through.

        Without it, or when it takes longer than `patience_s`, the leases run out by themselves.
        """
        try:
            async with asyncio.timeout(patience_s):
                await self.shards.drain()
                for session in list(self.sessions):
                    session.close("the scheduler stops")
                await self.shards.release()
                await self.hints.peers.sent(_TOLD_SECONDS)
        except (TimeoutError, JournalUnavailable) as error:
            log.warning("shards were not handed over (%r): they are free when their leases have run out", error)

    async def stop(self) -> None:
        """Stops the parts and lets go of the coroutines."""
        self._draining = True
        for task in (*self._services, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._services, *self._tasks, return_exceptions=True)
        for session in list(self.sessions):
            session.close("the scheduler stops")
        for run in list(self.loop.runs):
            self.loop.forget(run)
        await self.threads.stop()
        await self.hints.peers.aclose()

    async def failed(self) -> str:
        """Waits until one of the parts dies, and names it: the service must not go on without it."""
        done, _ = await asyncio.wait(self._services, return_when=asyncio.FIRST_COMPLETED)
        task = done.pop()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.critical("the %s task died", task.get_name(), exc_info=error)
        return f"{task.get_name()}: {error!r}"

    def begin_drain(self) -> None:
        """From now on the replica says that it goes away."""
        self._draining = True

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the %s task failed", task.get_name(), exc_info=error)

    # -- for the clients' servicers ----------------------------------------------------------------------------

    @property
    def scheduler_id(self) -> str:
        """Name of this replica."""
        return self._settings.scheduler_id

    @property
    def journal(self) -> Journal:
        """The journal."""
        return self._journal

    @property
    def draining(self) -> bool:
        """True once this replica goes away."""
        return self._draining

    def processes(self) -> Mapping[str, AnyProcess]:
        """Processes that this replica can run, by name."""
        return self._processes

    async def create_run(self, request: CreateRun) -> CreateRunOutcome:
        """Commits the run, and begins it when this replica owns its shard; also when the caller has gone away."""
        return await self._to_its_end(self._create_run(request))

    async def _to_its_end(self, coroutine: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(coroutine, name="call")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _create_run(self, request: CreateRun) -> CreateRunOutcome:
        try:
            outcome = await self._journal.create_run(request)
        except JournalUnavailable:
            self.shards.adoption.created(request.run_id)  # it may have been committed all the same
            raise
        epoch = self.shards.epoch_of(outcome.run_id)
        if outcome.created and epoch is not None and outcome.epoch == epoch:
            run = RunState(
                run_id=outcome.run_id,
                namespace=request.namespace,
                process=request.process,
                client=request.client_driven,
                epoch=epoch,
                iteration=0,
                head=1,
            )
            self.loop.runs.add(run)
            created = Event(1, "RUN_CREATED", outcome.recorded_at, 0, "", "", 0, request.actor, request.data)
            self.loop.hear(outcome.run_id, [created])
        elif outcome.created:
            self.hints.created(outcome.run_id)
        return outcome

    async def request_cancel(self, request: CancelRequest) -> CancelOutcome:
        """Makes a cancel durable, then tells the run and the executors."""
        outcome = await self._journal.request_cancel(request)
        if outcome.extra:
            self.loop.hear_rows(request.run_id, outcome.extra, outcome.recorded_at, request.actor)
        self.loop.fast_path.send_cancels(request.run_id, outcome.detail.get("cancels", ()))
        self.children.committed(outcome.detail, outcome.recorded_at, request.actor)
        return outcome

    async def resolve_external(self, request: ResolveRequest) -> ResolveOutcome:
        """Settles an external effect, then tells its run."""
        outcome = await self._journal.resolve_external(request)
        if outcome.extra:
            self.loop.hear_rows(request.run_id, outcome.extra, outcome.recorded_at, request.actor)
        return outcome

    def head(self, run_id: str) -> int:
        """Newest seq heard of; 0: none."""
        return self.loop.heads.get(run_id)

    async def wait_head(self, run_id: str, after_seq: int, timeout_s: float) -> int:
        """Returns when a seq beyond `after_seq` is heard of, or at the timeout."""
        self.hints.watching(run_id)
        return await self.loop.heads.wait(run_id, after_seq, timeout_s)

    async def wait_stopped(self, run_id: str, after_seq: int, timeout_s: float) -> None:
        """Returns when the run is heard to have ended or to be parked beyond `after_seq`, or at the timeout."""
        self.hints.watching(run_id)
        await self.loop.heads.wait_stopped(run_id, after_seq, timeout_s)

    def expected_duration(self, namespace: str, name: str) -> float | None:
        """Median seconds of the latest successful attempts of a name; None when there is no history."""
        return self.durations.median(namespace, name)

    def connected(self) -> Sequence[ConnectedExecutor]:
        """Executors whose session this replica holds."""
        return [_connected(session) for session in self.sessions]

    def live(self, run_id: str) -> Sequence[LiveAttempt]:
        """Running attempts of a run, as the last heartbeats showed them."""
        return [
            LiveAttempt(
                effect_id=attempt.effect_id,
                effect_key=attempt.effect_key,
                attempt=attempt.attempt,
                executor_id=session.executor_id,
                progress=attempt.progress if attempt.HasField("progress") else None,
                usage=attempt.usage if attempt.HasField("usage") else None,
            )
            for session in self.sessions
            for attempt in session.live.values()
            if attempt.run_id == run_id
        ]

    def _epoch_of(self, run_id: str) -> int | None:
        return self.shards.epoch_of(run_id)

    def _forgotten(self, run_id: str) -> None:
        """A run has ended or has another owner."""
        self.closing.forget(run_id)
        self._owned_effects.forget(run_id)
        self.loop.timers.forget(run_id)

    def _claimed(self, attempt: ClaimedAttempt) -> None:
        """A claim of this replica has dispatched an attempt: its run hears of it at once."""
        event = event_of_claim(attempt, self.loop.actor)
        self.loop.hear(attempt.run_id, [event])


def _connected(session: Session) -> ConnectedExecutor:
    pools = {
        name: PoolUse(
            slots=pool.slots,
            background_slots=pool.background_slots,
            foreground_taken=pool.foreground_taken,
            background_taken=pool.background_taken,
        )
        for name, pool in session.pools.items()
    }
    return ConnectedExecutor(
        executor_id=session.executor_id,
        incarnation=session.incarnation,
        namespace=session.namespace,
        address=session.address,
        pools=pools,
        capabilities=session.capabilities,
        labels=session.labels,
        draining=session.draining,
    )
