"""Attempts that are lost or were never started: the owner of the run declares it, fenced by its epoch.

Who sees it may be another replica: the one that holds the executor's session. That one leaves the owner a note in the
journal, and again for as long as it sees it.
"""

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from scheduler_service.dispatch.queue import Dispatcher
from scheduler_service.iteration.loop import Loop
from scheduler_service.iteration.rows import timestamp
from scheduler_service.journal import Journal, JournalUnavailable, LostAttempt, shard_of

log = logging.getLogger(__name__)

_REJECTIONS_MAX: Final = 10_000
#: Longest pause after a refusal. Of a workspace that is in use the one that has it may take hours.
_PAUSE_SECONDS_MAX: Final = 5.0
_BUSY_PAUSE_SECONDS_MAX: Final = 30.0
_BUSY: Final = "EFFECT_REASON_WORKSPACE_BUSY"


class Losses:
    """Declares losses in the runs of this replica, and reports those in runs of others."""

    def __init__(
        self,
        journal: Journal,
        loop: Loop,
        dispatcher: Dispatcher,
        *,
        epochs: Mapping[int, int],
        reported: Callable[[str], None],
    ) -> None:
        self._journal = journal
        self._loop = loop
        self._dispatcher = dispatcher
        self._epochs = epochs
        self._reported = reported
        self._rejections: OrderedDict[str, int] = OrderedDict()

    async def turn(self) -> None:
        """Declares what others have reported."""
        if not self._epochs:
            return
        for lost in await self._journal.leases.take_missing(sorted(self._epochs)):
            epoch = self._epochs.get(shard_of(lost.run_id))
            if epoch is not None:
                await self.declare(dataclasses.replace(lost, epoch=epoch, actor=self._loop.actor))

    async def declare(self, item: LostAttempt) -> None:
        """Declares an attempt of an owned run lost."""
        outcome = await self._journal.attempts_lost(item)
        if outcome.outcome == "ok":
            self._loop.hear_rows(item.run_id, outcome.extra, outcome.recorded_at, item.actor)
            again = next(
                (row["data"]["next_attempt_at"] for row in outcome.extra if "next_attempt_at" in row["data"]), ""
            )
            if again:
                self._dispatcher.wake_at(timestamp(again).timestamp())
        else:
            log.info("attempt %d of %s is not lost: %s", item.attempt, item.effect_id, outcome.outcome)

    async def lose(self, item: LostAttempt) -> None:
        """What the holder of a session has seen: declared when the run is ours, else reported to its owner.

        The session that saw it is in the item: a newer one, wherever it is, refuses the loss.
        """
        epoch = self._epochs.get(shard_of(item.run_id))
        if epoch is not None:
            await self.declare(dataclasses.replace(item, epoch=epoch))
            return
        await self._journal.leases.report_missing([item])
        self._reported(item.run_id)

    async def rejected(self, item: LostAttempt) -> None:
        """An executor refused an attempt; one that keeps refusing is asked less and less often."""
        count = self._rejections.get(item.effect_id, 0)
        self._rejections[item.effect_id] = count + 1
        self._rejections.move_to_end(item.effect_id)
        if len(self._rejections) > _REJECTIONS_MAX:
            self._rejections.popitem(last=False)
        most = _BUSY_PAUSE_SECONDS_MAX if item.reason == _BUSY else _PAUSE_SECONDS_MAX
        pause_s = min(most, 0.05 * 2 ** min(count, 20)) if count else 0.0
        try:
            await self.lose(dataclasses.replace(item, pause_s=pause_s))
        except JournalUnavailable as error:
            log.warning("a refused attempt is left to reconciliation: %s", error)


def never_started(run_id: str, item: pb.RejectedAttempt, session_no: int, actor: str) -> LostAttempt:
    """The loss of an attempt that its executor refused."""
    return LostAttempt(
        run_id=run_id,
        epoch=0,
        effect_id=item.ref.effect_id,
        attempt=item.ref.attempt,
        never_started=True,
        reason=_BUSY if item.reason == pb.RejectedAttempt.REASON_WORKSPACE_BUSY else "EFFECT_REASON_REJECTED",
        message=item.message or pb.RejectedAttempt.Reason.Name(item.reason),
        actor=actor,
        executor_session=session_no,
    )
