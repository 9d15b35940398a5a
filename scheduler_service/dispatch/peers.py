"""Hints to the other replicas: what gathers while one is on its way goes with the next.

Best effort and bounded: a peer that does not answer misses hints, and finds everything by its polls. Nobody waits for
a hint.
"""

import asyncio
import logging
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import grpc

from backburner.scheduler.v1 import peer_service_pb2 as pb
from backburner.scheduler.v1 import peer_service_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

#: Items of a kind that wait for one peer; what is over is dropped, and found by its polls.
ITEMS_MAX: Final = 5_000
_CALL_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.5
_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000), ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0),
)  # fmt: skip

#: Namespace, pool and whether it is background: a kind of work in the queue.
Kind = tuple[str, str, bool]


@dataclass(slots=True)
class News:
    """What waits for one peer."""

    moved: dict[str, None] = field(default_factory=dict)
    stopped: dict[str, None] = field(default_factory=dict)
    created: dict[str, None] = field(default_factory=dict)
    watched: dict[str, None] = field(default_factory=dict)
    cancelled: dict[str, None] = field(default_factory=dict)
    queued: dict[Kind, None] = field(default_factory=dict)
    shards_moved: bool = False
    attempts_missing: bool = False
    orders_given: bool = False
    queue_moved: bool = False

    def message(self, scheduler_id: str) -> pb.HintRequest:
        """All of it."""
        return pb.HintRequest(
            scheduler_id=scheduler_id,
            moved_run_ids=self.moved,
            stopped_run_ids=self.stopped,
            created_run_ids=self.created,
            watched_run_ids=self.watched,
            cancelled_executor_ids=self.cancelled,
            queued=[pb.QueuedWork(namespace=n, pool=p, background=b) for n, p, b in self.queued],
            shards_moved=self.shards_moved,
            attempts_missing=self.attempts_missing,
            orders_given=self.orders_given,
            queue_moved=self.queue_moved,
        )


class Peer:
    """One other replica."""

    def __init__(self, scheduler_id: str, address: str, me: str) -> None:
        self.scheduler_id = scheduler_id
        self.address = address
        self.news = News()
        self._me = me
        self._wake = asyncio.Event()
        self._sent = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"peer {scheduler_id}")

    def wake(self) -> None:
        """There is news."""
        self._sent.clear()
        self._wake.set()

    async def sent(self) -> None:
        """Waits until what was told has been sent, or was dropped."""
        if self._wake.is_set() or not self._sent.is_set():
            await self._sent.wait()

    async def aclose(self) -> None:
        """Ends it; what waits is dropped."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        self._sent.set()
        async with grpc.aio.insecure_channel(self.address, options=_OPTIONS) as channel:
            stub = pb_grpc.PeerServiceStub(channel)
            while True:
                await self._wake.wait()
                self._wake.clear()
                news, self.news = self.news, News()
                try:
                    await stub.Hint(news.message(self._me), timeout=_CALL_SECONDS)
                except grpc.aio.AioRpcError as error:
                    log.info("replica %s does not hear hints: %s", self.scheduler_id, error.details())
                    self.news = News()
                    self._sent.set()
                    await asyncio.sleep(_PAUSE_SECONDS * random.uniform(0.5, 1.0))
                if not self._wake.is_set():
                    self._sent.set()


class Peers:
    """The other live replicas, and who of them owns which shard."""

    def __init__(self, scheduler_id: str) -> None:
        self._scheduler_id = scheduler_id
        self._peers: dict[str, Peer] = {}
        self._owners: Mapping[int, str] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._peers)

    def update(self, addresses: Mapping[str, str], owners: Mapping[int, str]) -> None:
        """Takes what was read: addresses of the others by name, owners by shard."""
        self._owners = owners
        for name, peer in list(self._peers.items()):
            if addresses.get(name) != peer.address:
                del self._peers[name]
                self._let_go(peer)
        for name, address in addresses.items():
            if address and name not in self._peers:
                self._peers[name] = Peer(name, address, self._scheduler_id)

    def _let_go(self, peer: Peer) -> None:
        task = asyncio.create_task(peer.aclose(), name="peer ends")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def owner(self, shard: int) -> list[Peer]:
        """The owner of a shard as far as known; all when it is not."""
        peer = self._peers.get(self._owners.get(shard, ""))
        return [peer] if peer is not None else list(self._peers.values())

    def named(self, names: Iterable[str]) -> list[Peer]:
        """Those of these names that are there."""
        return [peer for name in names if (peer := self._peers.get(name)) is not None]

    def all(self) -> list[Peer]:
        """All of them."""
        return list(self._peers.values())

    async def sent(self, timeout_s: float) -> None:
        """Waits until all have been told, or for so long."""
        waits = [asyncio.create_task(peer.sent()) for peer in self._peers.values()]
        if waits:
            _, pending = await asyncio.wait(waits, timeout=timeout_s)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def aclose(self) -> None:
        """Ends all of them."""
        peers, self._peers = list(self._peers.values()), {}
        await asyncio.gather(*(peer.aclose() for peer in peers), *self._leaving)


def put(into: dict[str, None], item: str) -> None:
    """Adds an item unless there are too many."""
    if len(into) < ITEMS_MAX:
        into[item] = None
