"""What this replica tells the others, and what it does when one of them tells it something: it looks.

A hint is never believed: what it names is read from the journal. Told are the owner of a run (its journal has moved, it
was created here, an attempt of it is missing), everybody (work waits, a cancel is to be delivered, an operator has
ordered something, shards have moved), and whoever watches a run of ours.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final
from uuid import UUID

from backburner.scheduler.v1 import peer_service_pb2 as pb
from scheduler_service.dispatch.peers import ITEMS_MAX, Peer, Peers, put
from scheduler_service.dispatch.queue import Dispatcher
from scheduler_service.iteration.loop import Loop
from scheduler_service.iteration.recovery import Shards
from scheduler_service.journal import Journal, Replica, shard_of

log = logging.getLogger(__name__)

#: How long the owner tells of a run that is watched elsewhere, and how often a watcher says so again.
_WATCHED_SECONDS: Final = 60.0
_REMIND_SECONDS: Final = 20.0
_WATCHED_MAX: Final = 20_000


class Hints:
    """Tells, and hears."""

    def __init__(self, journal: Journal, loop: Loop, dispatcher: Dispatcher, shards: Shards, peers: Peers) -> None:
        self._journal = journal
        self._loop = loop
        self._dispatcher = dispatcher
        self._shards = shards
        self.peers = peers
        self._hearing = False
        #: Runs of ours that others watch: who, until when.
        self._watched: OrderedDict[str, dict[str, float]] = OrderedDict()
        #: Runs of others that are watched here: when their owner was told.
        self._watching: OrderedDict[str, float] = OrderedDict()
        #: Set by the engine: delivers the cancels of attempts of these executors; declares what was reported; looks
        #: at what operators have ordered.
        self.deliver_cancels: Callable[[Sequence[str]], Awaitable[None]]
        self.declare_missing: Callable[[], Awaitable[None]]
        self.look_at_orders: Callable[[], None]

    # -- telling -----------------------------------------------------------------------------------------------

    def moved(self, run_id: str, *, stopped: bool = False) -> None:
        """A journal has moved, by what was heard here: the owner and the watchers of the run are told."""
        if not len(self.peers):
            return
        known = self._hearing or self._shards.epoch_of(run_id) is not None
        owner = [] if known else self.peers.owner(shard_of(run_id))
        for peer in {*owner, *self._watchers_of(run_id)}:
            put(peer.news.moved, run_id)
            if stopped:
                put(peer.news.stopped, run_id)
            peer.wake()

    def _watchers_of(self, run_id: str) -> list[Peer]:
        until = self._watched.get(run_id)
        return self.peers.named(name for name, at in until.items() if at > time.monotonic()) if until else []

    def created(self, run_id: str) -> None:
        """A run was created that was not begun here: its shard is another's, or has just become ours."""
        if self._shards.epoch_of(run_id) is not None:
            self._shards.adoption.created(run_id)
            return
        for peer in self.peers.owner(shard_of(run_id)):
            put(peer.news.created, run_id)
            peer.wake()

    def watching(self, run_id: str) -> None:
        """Somebody waits here for news of a run: when it is another's, its owner is asked to tell."""
        now = time.monotonic()
        if not len(self.peers) or self._shards.epoch_of(run_id) is not None:
            return
        if now - self._watching.get(run_id, -_REMIND_SECONDS) < _REMIND_SECONDS:
            return
        self._watching[run_id] = now
        self._watching.move_to_end(run_id)
        if len(self._watching) > _WATCHED_MAX:
            self._watching.popitem(last=False)
        for peer in self.peers.owner(shard_of(run_id)):
            put(peer.news.watched, run_id)
            peer.wake()

    def queued(self, namespace: str, pool: str, background: bool) -> None:
        """Work waits in the queue."""
        for peer in self.peers.all():
            if len(peer.news.queued) < ITEMS_MAX:
                peer.news.queued[namespace, pool, background] = None
            peer.wake()

    def queue_moved(self) -> None:
        """Anything may wait in the queue."""
        for peer in self.peers.all():
            peer.news.queue_moved = True
            peer.wake()

    def ordered(self) -> None:
        """An operator has ordered something: who has to do it, is not known here."""
        for peer in self.peers.all():
            peer.news.orders_given = True
            peer.wake()

    def cancelled(self, executor_id: str) -> None:
        """An attempt is to be cancelled on an executor that is not connected here."""
        for peer in self.peers.all():
            put(peer.news.cancelled, executor_id)
            peer.wake()

    def missing(self, run_id: str) -> None:
        """An attempt was reported missing to the owner of its run."""
        for peer in self.peers.owner(shard_of(run_id)):
            peer.news.attempts_missing = True
            peer.wake()

    def shards_moved(self) -> None:
        """We gave shards back, or took some."""
        for peer in self.peers.all():
            peer.news.shards_moved = True
            peer.wake()

    def replicas(self, replicas: Sequence[Replica], owners: Mapping[int, str]) -> None:
        """Takes the replicas as they were read."""
        others = {r.scheduler_id: r.address for r in replicas if r.live and r.scheduler_id != self._loop_id}
        self.peers.update(others, owners)

    @property
    def _loop_id(self) -> str:
        return self._loop.actor.removeprefix("scheduler/")

    # -- hearing -----------------------------------------------------------------------------------------------

    async def hear(self, hint: pb.HintRequest) -> None:
        """Looks where a hint says. Raises JournalUnavailable."""
        if hint.shards_moved:
            self._shards.look()
        for run_id in _ids(hint.created_run_ids):
            self._shards.adoption.created(run_id)
        for run_id in _ids(hint.watched_run_ids):
            self._note_watched(run_id, hint.scheduler_id)
        for work in hint.queued[:ITEMS_MAX]:
            self._dispatcher.hinted(work.namespace, work.pool, work.background)
        if hint.queue_moved:
            self._dispatcher.released()
        if hint.orders_given:
            self.look_at_orders()
        if hint.cancelled_executor_ids:
            await self.deliver_cancels(list(hint.cancelled_executor_ids[:ITEMS_MAX]))
        if hint.attempts_missing:
            await self.declare_missing()
        await self._look_at(_ids(hint.moved_run_ids), set(hint.stopped_run_ids))

    async def _look_at(self, run_ids: Sequence[str], stopped: set[str]) -> None:
        for run_id, seq in (await self._journal.heads(run_ids)).items():
            self._hearing = True  # whoever told need not be told
            self._loop.hear_head(run_id, seq)
            if run_id in stopped:
                self._loop.heads.stopped(run_id, seq)
            self._hearing = False

    def _note_watched(self, run_id: str, scheduler_id: str) -> None:
        if self._shards.epoch_of(run_id) is None:
            return
        self._watched.setdefault(run_id, {})[scheduler_id] = time.monotonic() + _WATCHED_SECONDS
        self._watched.move_to_end(run_id)
        if len(self._watched) > _WATCHED_MAX:
            self._watched.popitem(last=False)


def _ids(said: Sequence[str]) -> list[str]:
    """Those that are ids of runs, as they are written in the journal."""
    return [text for text in said[:ITEMS_MAX] if _is_id(text)]


def _is_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
