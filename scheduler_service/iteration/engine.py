"""The engine of one replica: the loop, the shards, dispatch and reconciliation, put together.

The servicers of clients and executors talk to it, and it alone starts and stops the parts.
"""

import asyncio
import dataclasses
import logging
import time
from collections import OrderedDict
from collections.abc import Coroutine, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from scheduler_service.api.engine import ConnectedExecutor, LiveAttempt, PoolUse
from scheduler_service.authoring.definitions import AnyProcess
from scheduler_service.dispatch.durations import Durations
from scheduler_service.dispatch.queue import Dispatcher
from scheduler_service.dispatch.reconcile import Reconciler
from scheduler_service.dispatch.sessions import Session, Sessions
from scheduler_service.iteration.call_checks import CallChecks, Mode
from scheduler_service.iteration.closing import Closing
from scheduler_service.iteration.control import RunControl
from scheduler_service.iteration.events import event_of_claim, event_of_notice
from scheduler_service.iteration.loading import Loader
from scheduler_service.iteration.loop import Loop
from scheduler_service.iteration.owned_effects import OwnedEffects
from scheduler_service.iteration.polls import Polls
from scheduler_service.iteration.recovery import Shards
from scheduler_service.iteration.rows import seconds
from scheduler_service.iteration.runs import RunState
from scheduler_service.iteration.worker import IterationThreads
from scheduler_service.journal import (
    CancelOutcome,
    CancelRequest,
    ClaimedAttempt,
    CreateRun,
    CreateRunOutcome,
    ExecutorSeen,
    Journal,
    JournalUnavailable,
    LostAttempt,
    ResolveOutcome,
    ResolveRequest,
)
from scheduler_service.replay.events import SETTLING_TYPES, Event
from scheduler_service.settings import Settings

log = logging.getLogger(__name__)

_REJECTIONS_MAX = 10_000


class Engine:
    """Implements `api.engine.EngineApi` and the executors' side of it."""

    def __init__(self, settings: Settings, journal: Journal, processes: Mapping[str, AnyProcess], version: str) -> None:
        self._settings = settings
        self._journal = journal
        self._processes = processes
        self._draining = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._services: list[asyncio.Task[None]] = []
        self._rejections: OrderedDict[str, int] = OrderedDict()
        actor = f"scheduler/{settings.scheduler_id}"
        self.sessions = Sessions()
        self.durations = Durations()
        self.dispatcher = Dispatcher(
            journal, self.sessions, self.durations, poll_s=settings.poll_seconds, actor=settings.scheduler_id
        )
        self.dispatcher.on_dispatched = self._claimed
        self.threads = IterationThreads(settings.step_seconds_max)
        checks = CallChecks(cast("Mode", settings.check_calls))
        self.loop = Loop(journal, self.sessions, self.dispatcher, self.threads, checks, actor=actor, spawn=self._spawn)
        self.closing = Closing(self.loop)
        self.control = RunControl(journal, self.loop)
        self.loop.load = Loader(self.loop, processes, checks, close=self.closing.close).load
        self._owned_effects = OwnedEffects(self.loop)
        self.loop.observers = (self.closing.observe, self._owned_effects.observe, self._observe_settled)
        self.loop.on_forget = self._forgotten
        self.loop.observe_parked = self.closing.observe_parked
        self.shards = Shards(
            journal,
            self.loop,
            scheduler_id=settings.scheduler_id,
            address=settings.listen,
            version=version,
            lease_s=settings.lease_seconds,
            on_parked_cancel=self.closing.force,
        )
        self.reconciler = Reconciler(
            journal,
            self.sessions,
            epoch_of=self.shards.epoch_of,
            lose=self._lose,
            freed=self.dispatcher.freed,
            grace_s=settings.grace_seconds,
            actor=actor,
        )
        self._polls = Polls(journal, self.loop, self.sessions, self.shards, settings)

    # -- life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes shards and begins to work."""
        self.threads.start()
        for namespace, name, median in await self._journal.known_durations():
            self.durations.note(namespace, name, median)
        await self._polls.read_clock()
        await self.shards.turn()
        for name, coroutine in (
            ("shards", self.shards.run()),
            ("dispatcher", self.dispatcher.run()),
            ("reconciler", self.reconciler.run()),
            ("polls", self._polls.run()),
        ):
            self._services.append(asyncio.create_task(coroutine, name=name))

    async def stop(self) -> None:
        """Stops the parts, lets go of the coroutines, gives the shards back."""
        self._draining = True
        for task in (*self._services, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._services, *self._tasks, return_exceptions=True)
        for session in list(self.sessions):
            session.close("the scheduler stops")
        for run in list(self.loop.runs):
            self.loop.forget(run)
        await self.threads.stop()
        await self.shards.release()

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
        task = asyncio.create_task(self._create_run(request), name="create")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _create_run(self, request: CreateRun) -> CreateRunOutcome:
        try:
            outcome = await self._journal.create_run(request)
        except JournalUnavailable:
            self.shards.read_again(request.run_id)  # it may have been committed all the same
            raise
        epoch = self.shards.epoch_of(outcome.run_id)
        if outcome.created and epoch is not None and outcome.epoch == epoch:
            run = RunState(
                run_id=outcome.run_id,
                namespace=request.namespace,
                process=request.process,
                epoch=epoch,
                iteration=0,
                head=1,
            )
            self.loop.runs.add(run)
            created = Event(1, "RUN_CREATED", outcome.recorded_at, 0, "", "", 0, request.actor, request.data)
            self.loop.hear(outcome.run_id, [created])
        return outcome

    async def request_cancel(self, request: CancelRequest) -> CancelOutcome:
        """Makes a cancel durable, then tells the run and the executors."""
        outcome = await self._journal.request_cancel(request)
        if outcome.extra:
            self.loop.hear_rows(request.run_id, outcome.extra, outcome.recorded_at, request.actor)
        self.loop.fast_path.send_cancels(request.run_id, outcome.detail.get("cancels", ()))
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
        return await self.loop.heads.wait(run_id, after_seq, timeout_s)

    async def wait_stopped(self, run_id: str, after_seq: int, timeout_s: float) -> None:
        """Returns when the run is heard to have ended or to be parked beyond `after_seq`, or at the timeout."""
        await self.loop.heads.wait_stopped(run_id, after_seq, timeout_s)

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

    # -- for the executors' servicer ---------------------------------------------------------------------------

    def journaled(self, session: Session, events: Sequence[pb.JournaledEvent]) -> None:
        """Takes the rows that an executor has committed for attempts that it was given; others are left to the poll."""
        by_run: dict[str, list[Event]] = {}
        actor = f"executor/{session.executor_id}"
        for row in events:
            if not session.was_given((row.effect_id, row.attempt), row.run_id):
                continue
            event = event_of_notice(row, actor)
            by_run.setdefault(row.run_id, []).append(event)
            self._note_settled(session, row, event)
        for run_id, heard in by_run.items():
            self.loop.hear(run_id, heard)

    def rejected(self, session: Session, rejected: Sequence[pb.RejectedAttempt]) -> None:
        """Queues again what an executor refused before starting it; the stream does not wait for that."""
        for item in rejected:
            ref = (item.ref.effect_id, item.ref.attempt)
            held = session.held.get(ref)
            if held is None:
                continue
            if item.reason == pb.RejectedAttempt.REASON_DUPLICATE:
                held.duplicate = True  # it has started; if its report lacks it too, reconciliation takes it as lost
                continue
            session.release(ref)
            epoch = self.shards.epoch_of(held.run_id)
            if epoch is not None:
                self._spawn(self._lose_rejected(_never_started(held.run_id, epoch, item, self.loop.actor)), "rejected")

    async def _lose_rejected(self, lost: LostAttempt) -> None:
        """An executor that keeps refusing is asked less and less often."""
        count = self._rejections.get(lost.effect_id, 0)
        self._rejections[lost.effect_id] = count + 1
        self._rejections.move_to_end(lost.effect_id)
        if len(self._rejections) > _REJECTIONS_MAX:
            self._rejections.popitem(last=False)
        try:
            await self._lose(dataclasses.replace(lost, pause_s=min(5.0, 0.05 * 2**count) if count else 0.0))
        except JournalUnavailable as error:
            log.warning("a refused attempt is left to reconciliation: %s", error)

    def seen(self, session: Session) -> None:
        """Has it noted in the journal that an executor is there; its stream does not wait for that."""
        if not session.noting:
            session.noting = True
            self._spawn(self._note_seen(session), "seen")

    async def _note_seen(self, session: Session) -> None:
        state = "DRAINING" if session.draining else "CONNECTED"
        try:
            await self._journal.executors_seen([ExecutorSeen(session.executor_id, session.session_no, state)])
        except JournalUnavailable as error:
            log.warning("a heartbeat of executor %s is not noted: %s", session.executor_id, error)
        finally:
            session.noting = False

    def _note_settled(self, session: Session, row: pb.JournaledEvent, event: Event) -> None:
        ref = (row.effect_id, row.attempt)
        held = session.held.get(ref)
        if held is not None and event.data.get("state") == "EFFECT_STATE_SUCCEEDED":
            self.durations.note(session.namespace, held.name, seconds(event.data.get("elapsed")) or 0.0)
        if row.frees_slot and session.release(ref):
            self.dispatcher.freed(session)
        if event.type in SETTLING_TYPES:
            self.dispatcher.settled(row.effect_id)
        elif event.type in ("EFFECT_ATTEMPT_FAILED", "EFFECT_PARKED"):
            when = event.data.get("next_attempt_at") or event.data.get("until")
            if when:
                self.dispatcher.wake_at(datetime.fromisoformat(when.replace("Z", "+00:00")).timestamp())

    def _observe_settled(self, run: RunState, event: Event) -> None:
        """Settlements that no executor tells of leave room in their groups too."""
        if event.type in SETTLING_TYPES:
            self.dispatcher.settled(event.effect_id)

    def _forgotten(self, run_id: str) -> None:
        """A run has ended or has another owner."""
        self.closing.forget(run_id)
        self._owned_effects.forget(run_id)
        self.loop.timers.forget(run_id)

    def _claimed(self, attempt: ClaimedAttempt) -> None:
        """A claim of this replica has dispatched an attempt: its run hears of it at once."""
        event = event_of_claim(attempt, self.loop.actor)
        self.loop.hear(attempt.run_id, [event])

    async def _lose(self, item: LostAttempt) -> None:
        outcome = await self._journal.attempts_lost(item)
        if outcome.outcome == "ok":
            self.loop.hear_rows(item.run_id, outcome.extra, outcome.recorded_at, item.actor)
            self.dispatcher.wake_at(time.time() + item.pause_s)
        else:
            log.info("attempt %d of %s is not lost: %s", item.attempt, item.effect_id, outcome.outcome)


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


def _never_started(run_id: str, epoch: int, item: pb.RejectedAttempt, actor: str) -> LostAttempt:
    return LostAttempt(
        run_id=run_id,
        epoch=epoch,
        effect_id=item.ref.effect_id,
        attempt=item.ref.attempt,
        never_started=True,
        reason="EFFECT_REASON_REJECTED",
        message=item.message or pb.RejectedAttempt.Reason.Name(item.reason),
        actor=actor,
    )
