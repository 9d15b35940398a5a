"""Does what operators have ordered, on the replica whose part it is: polled, like every truth.

Of an executor, the holder of its session tells it to drain, and ends a session that was fenced. Of a run, its owner
declares lost what a dead executor had, and settles what is to be settled by hand.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from scheduler_service.dispatch.queue import Dispatcher
from scheduler_service.dispatch.sessions import Sessions
from scheduler_service.iteration.loop import Loop
from scheduler_service.journal import (
    ExecutorOrder,
    ExpiredAttempt,
    Journal,
    JournalUnavailable,
    LostAttempt,
    SettleByHand,
    shard_of,
)

log = logging.getLogger(__name__)


class Orders:
    """`epochs` are those of the shards of this replica; `lose` declares an attempt lost."""

    def __init__(
        self,
        journal: Journal,
        loop: Loop,
        sessions: Sessions,
        dispatcher: Dispatcher,
        *,
        epochs: Mapping[int, int],
        lose: Callable[[LostAttempt], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        self._journal = journal
        self._loop = loop
        self._sessions = sessions
        self._dispatcher = dispatcher
        self._epochs = epochs
        self._lose = lose
        self._spawn = spawn
        self._one_at_a_time = asyncio.Lock()
        self._told = False

    def told(self) -> None:
        """Another replica says that there is something to be done. It does not wait, for there may be much."""
        if not self._told:
            self._told = True
            self._spawn(self._look(), "orders")

    async def _look(self) -> None:
        try:
            await self.turn()
        except JournalUnavailable as error:
            log.warning("orders are left to the poll: %s", error)

    async def turn(self) -> None:
        """Does what is there to be done."""
        async with self._one_at_a_time:
            self._told = False  # what is told from here on may come too late for this look
            for order in await self._journal.executor_orders([session.executor_id for session in self._sessions]):
                self._tell(order)
            for attempt in await self._journal.expired_attempts(sorted(self._epochs)):
                await self._declare_lost(attempt)
            for run_id, effect_id in await self._journal.settle_orders(sorted(self._epochs)):
                await self._settle(run_id, effect_id)

    def _tell(self, order: ExecutorOrder) -> None:
        session = self._sessions.get(order.executor_id)
        if session is None:
            return
        if order.session_no > session.session_no and order.state == "LOST":
            session.close("an operator has declared the executor dead")
        elif order.session_no > session.session_no:
            session.supersede(order.incarnation)  # it has dialled another replica since
        elif (order.ordered_drain is not None) != session.ordered_drain:
            session.order_drain(order.ordered_drain)
            if order.ordered_drain is None:
                self._dispatcher.released()

    async def _declare_lost(self, attempt: ExpiredAttempt) -> None:
        epoch = self._epochs.get(shard_of(attempt.run_id))
        if epoch is None:
            return
        successor = attempt.actor == f"executor/{attempt.executor_id}"
        said = f": {attempt.reason}" if attempt.reason else ""
        by = "by its successor" if successor else f"by {attempt.actor}{said}"
        await self._lose(
            LostAttempt(
                run_id=attempt.run_id,
                epoch=epoch,
                effect_id=attempt.effect_id,
                attempt=attempt.attempt,
                never_started=False,
                reason="EFFECT_REASON_EXECUTOR_LOST",
                message=f"its executor {attempt.executor_id} was declared dead {by}",
                actor=self._loop.actor,
            )
        )

    async def _settle(self, run_id: str, effect_id: str) -> None:
        epoch = self._epochs.get(shard_of(run_id))
        if epoch is None:
            return
        order = SettleByHand(run_id=run_id, epoch=epoch, effect_id=effect_id, actor=self._loop.actor)
        outcome = await self._journal.operators.settle_by_hand(order)
        if outcome.outcome != "ok":
            log.info("effect %s is not settled by hand: %s", effect_id, outcome.outcome)
            return
        self._loop.hear_rows(run_id, outcome.extra, outcome.recorded_at, self._loop.actor)
        self._dispatcher.settled(effect_id)
        self._stop(outcome.told, run_id, effect_id, int(outcome.extra[-1]["attempt"]))

    def _stop(self, executor_id: str, run_id: str, effect_id: str, attempt: int) -> None:
        """Whoever runs it still need not go on; elsewhere it hears so when it reports."""
        session = self._sessions.get(executor_id)
        if session is not None:
            ref = pb.AttemptRef(effect_id=effect_id, attempt=attempt)
            session.send_cancel(
                pb.CancelAttempt(ref=ref, reason="CANCELLED_BY_USER", message="settled by hand", run_id=run_id)
            )
