"""What operators order, on whichever replica they call: durable first, then each replica does its part at once."""

import logging
from collections.abc import Callable, Sequence

from scheduler_service.dispatch.queue import Dispatcher
from scheduler_service.iteration.orders import Orders
from scheduler_service.journal import (
    AuditNote,
    Breaker,
    DrainOrder,
    ExpireOrder,
    ExpireOutcome,
    Journal,
    JournalUnavailable,
    Prune,
    Pruned,
    ResetBreakers,
    SetBudget,
    SetHold,
    SetHoldOutcome,
    SettleOrder,
)

log = logging.getLogger(__name__)


class Operations:
    """Implements `api.engine.OperatorApi`. `ordered` tells the other replicas that something was ordered."""

    def __init__(self, journal: Journal, dispatcher: Dispatcher, orders: Orders, ordered: Callable[[], None]) -> None:
        self._journal = journal
        self._writes = journal.operators
        self._dispatcher = dispatcher
        self._orders = orders
        self._ordered = ordered

    async def set_hold(self, request: SetHold) -> SetHoldOutcome:
        """Sets or releases a hold on dispatch. What a release lets go starts at once, as does what its end lets go."""
        outcome = await self._writes.set_hold(request)
        if request.release:
            self._dispatcher.released_everywhere()
        elif outcome.hold is not None and outcome.hold.until is not None:
            self._dispatcher.wake_at(outcome.hold.until.timestamp())
        return outcome

    async def reset_breakers(self, request: ResetBreakers) -> Sequence[Breaker]:
        """Closes circuit breakers. What waited for them starts at once."""
        closed = await self._writes.reset_breakers(request)
        if closed:
            self._dispatcher.released_everywhere()
        return closed

    async def set_budget(self, request: SetBudget) -> str:
        """Sets, changes or clears a budget. What waits for it starts at once."""
        outcome = await self._writes.set_budget(request)
        self._dispatcher.released_everywhere()
        return outcome

    async def note(self, note: AuditNote) -> None:
        """Writes into the audit what is about to be done."""
        await self._writes.note(note)

    async def prune(self, request: Prune) -> Pruned:
        """One step of retention."""
        return await self._journal.prune(request)

    async def drain(self, order: DrainOrder) -> str:
        """Lets an executor take nothing new, or ends that."""
        outcome = await self._writes.drain(order)
        await self._have_it_done()
        return outcome

    async def expire(self, order: ExpireOrder) -> ExpireOutcome:
        """Declares an incarnation of an executor dead."""
        outcome = await self._writes.expire(order)
        await self._have_it_done()
        return outcome

    async def order_settlement(self, order: SettleOrder) -> str:
        """Has an effect settled by the owner of its run."""
        outcome = await self._writes.order_settlement(order)
        await self._have_it_done()
        return outcome

    async def _have_it_done(self) -> None:
        self._ordered()
        try:
            await self._orders.turn()
        except JournalUnavailable as error:
            log.warning("an order is left to the poll: %s", error)  # it is durable
