"""Finds a scheduler replica that answers: any of those that are named will do.

Names are resolved anew for each session, so that replicas that came or went are known. Addresses that had trouble least
recently are tried first, at random among those that had none: executors spread over the replicas, and leave one that is
up but cannot serve. Each next address is tried a moment after the one before, at once when one refuses; the first that
answers is taken. So an address where nobody answers costs a moment and not a time-out.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Protocol

import grpc

from backburner.scheduler.v1 import dispatch_service_pb2_grpc as pb_grpc
from executor_service.targets import Address, Target

#: How long an address may keep the next one waiting.
STAGGER_SECONDS: Final = 0.25
#: How long the last of them may take.
CONNECT_SECONDS: Final = 5.0
#: Addresses that are tried in one round.
TRIES_MAX: Final = 50

_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1000)),  # gRPC's time for one try to connect
    ("grpc.use_local_subchannel_pool", 1),  # no try is held up by the back-off of another
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
)


class NoScheduler(Exception):
    """None of the addresses answers."""


class Dials(Protocol):
    """What the control stream needs."""

    def open(self) -> AbstractAsyncContextManager[pb_grpc.DispatchServiceStub]:
        """A stub of a replica that answers, for one session. Raises NoScheduler."""


class Dialler:
    """Dials the targets; knows which addresses had trouble, and when."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = targets
        self._trouble: dict[Address, float] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[pb_grpc.DispatchServiceStub]:
        """A stub of a replica that answers, for one session. Raises NoScheduler."""
        address, channel = await self._connect(await self._addresses())
        try:
            yield pb_grpc.DispatchServiceStub(channel)
        finally:
            self._had_trouble([address])  # a session ends by trouble, or because the replica goes
            await channel.close()

    async def _addresses(self) -> list[Address]:
        """All addresses, those with the least recent trouble first."""
        found = await asyncio.gather(*(target.addresses() for target in self._targets))
        known = list(dict.fromkeys(address for addresses in found for address in addresses))
        self._trouble = {address: at for address, at in self._trouble.items() if address in known}
        random.shuffle(known)
        return sorted(known, key=lambda address: self._trouble.get(address, 0.0))[:TRIES_MAX]

    async def _connect(self, addresses: Sequence[Address]) -> tuple[Address, grpc.aio.Channel]:
        race = _Race()
        try:
            async with asyncio.timeout(CONNECT_SECONDS + STAGGER_SECONDS * len(addresses)):
                await race.run(addresses)
        except TimeoutError:
            pass  # told by the race: it has no winner
        finally:
            await race.close()
        self._had_trouble(race.losers)
        if race.winner is None:
            said = ", ".join(address.dial for address in addresses) or "the names do not resolve"
            raise NoScheduler(f"no scheduler answers: {said}")
        return race.winner

    def _had_trouble(self, addresses: Iterable[Address]) -> None:
        self._trouble |= dict.fromkeys(addresses, time.monotonic())


class _Race:
    """Tries to connect, side by side: the first that answers wins."""

    def __init__(self) -> None:
        self.winner: tuple[Address, grpc.aio.Channel] | None = None
        self._tries: dict[asyncio.Task[bool], tuple[Address, grpc.aio.Channel]] = {}

    @property
    def losers(self) -> list[Address]:
        """Those that were tried and have not won."""
        return [address for address, channel in self._tries.values() if (address, channel) != self.winner]

    async def run(self, addresses: Sequence[Address]) -> None:
        """Ends when one has won or all have refused."""
        for address in addresses:
            channel = _channel(address)
            self._tries[asyncio.create_task(_answers(channel), name=f"dial {address.dial}")] = (address, channel)
            await self._look(STAGGER_SECONDS)
            if self.winner is not None:
                return
        while self.winner is None and self._open:
            await self._look(None)

    @property
    def _open(self) -> list[asyncio.Task[bool]]:
        return [task for task in self._tries if not task.done()]

    async def _look(self, timeout_s: float | None) -> None:
        """Waits for the next answer or refusal."""
        if self._open:
            await asyncio.wait(self._open, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        self.winner = next((tried for task, tried in self._tries.items() if task.done() and task.result()), None)

    async def close(self) -> None:
        """Gives up all but the winner."""
        for task in self._tries:
            task.cancel()
        await asyncio.gather(*self._tries, return_exceptions=True)
        for address, channel in self._tries.values():
            if (address, channel) != self.winner:
                await channel.close()


def _channel(address: Address) -> grpc.aio.Channel:
    named = [("grpc.default_authority", address.authority)] if address.authority else []
    return grpc.aio.insecure_channel(address.dial, options=[*_OPTIONS, *named])


async def _answers(channel: grpc.aio.Channel) -> bool:
    """True once it is connected, HTTP/2 included; False when it is refused."""
    while True:
        state = channel.get_state(try_to_connect=True)
        if state in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
            await channel.wait_for_state_change(state)
        else:
            return bool(state is grpc.ChannelConnectivity.READY)
