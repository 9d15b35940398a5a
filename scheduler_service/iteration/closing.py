"""Ends runs without their process: cancelled while parked, cleanup that took too long after a cancel, client-driven.

The owner then asks for the cancel of every open effect itself, writes RUN_CLOSING with cause 0, and RUN_CANCELLED when
the last of them has settled. A run whose journal has such a RUN_CLOSING is never given to process code again.

A client-driven run has no cleanup: its cancel ends it at once. What its client finished with while effects were open
stands in RUN_CLOSING, and the owner writes that end when the last of them has settled.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from scheduler_service.authoring import options
from scheduler_service.iteration.loop import Loop
from scheduler_service.iteration.rows import seconds
from scheduler_service.iteration.runs import IN_FLIGHT, Phase, RunState
from scheduler_service.journal import JournalUnavailable
from scheduler_service.replay.events import SETTLING_TYPES, TERMINAL_TYPES, Event

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0


class Closing:
    """Watches cancelled runs; ends those whose process does not."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._cleanup: dict[str, float] = {}
        self._reasons: dict[str, str] = {}
        self._waiting: dict[str, asyncio.TimerHandle] = {}
        #: By what is known of them, not by id: one that is adopted anew is ended anew.
        self._ending: set[RunState] = set()
        #: The end of each client-driven run that its client has finished.
        self._finished: dict[str, dict[str, Any]] = {}

    def observe(self, run: RunState, event: Event) -> None:
        """Called for every event of an owned run, in order."""
        if event.type == "RUN_CREATED":
            limit = seconds(event.data.get("cleanup_timeout"))
            if limit is not None:
                self._cleanup[run.run_id] = limit
        elif event.type == "RUN_CANCEL_REQUESTED":
            self._cancel_requested(run, event)
        elif ends_by_owner(event):
            run.forced = True
            self._loop.drop_coroutine(run)
            self._loop.spawn(self._finish(run), "finish")
        elif event.type == "RUN_CLOSING" and run.client:
            self._finished[run.run_id] = _finished(event.data)
            self._loop.spawn(self._finish(run), "finish")
        elif event.type in SETTLING_TYPES and (run.forced or run.run_id in self._finished):
            self._loop.spawn(self._finish(run), "finish")

    def observe_parked(self, run: RunState, event: Event) -> None:
        """Called for every event that a parked run hears: a cancel ends it, for no process code will answer."""
        if event.type == "RUN_CANCEL_REQUESTED":
            self._reasons[run.run_id] = event.data.get("reason", "")
            self.force(run)

    def forget(self, run_id: str) -> None:
        """The run is gone."""
        self._cleanup.pop(run_id, None)
        self._reasons.pop(run_id, None)
        self._finished.pop(run_id, None)
        waiting = self._waiting.pop(run_id, None)
        if waiting is not None:
            waiting.cancel()

    def _cancel_requested(self, run: RunState, event: Event) -> None:
        self._reasons[run.run_id] = event.data.get("reason", "")
        if run.client:
            self.force(run)
            return
        limit = self._cleanup.get(run.run_id, options.CLEANUP_SECONDS_DEFAULT)
        passed = self._loop.journal.clock.now() - event.recorded_at.timestamp()
        if run.run_id not in self._waiting:
            self._waiting[run.run_id] = asyncio.get_running_loop().call_later(
                max(0.0, limit - passed), self._cleanup_over, run
            )

    def _cleanup_over(self, run: RunState) -> None:
        self._waiting.pop(run.run_id, None)
        if run.phase is not Phase.GONE and not run.forced and self._loop.runs.get(run.run_id) is run:
            log.warning("cleanup of run %s took too long after its cancel: ending it without its process", run.run_id)
            self.force(run)

    def force(self, run: RunState) -> None:
        """Ends the run without its process."""
        if run.forced or run.phase is Phase.GONE:
            return
        run.forced = True
        self._loop.drop_coroutine(run)
        self.close(run)

    def close(self, run: RunState) -> None:
        """Writes the end of a run that is forced; also again, when the first try was lost."""
        if run not in self._ending:  # one at a time
            self._ending.add(run)
            self._loop.spawn(self._close_until_done(run), "close")

    async def _close_until_done(self, run: RunState) -> None:
        try:
            while not await self._close(run):  # noqa: ASYNC110 - it asks the database
                await asyncio.sleep(_RETRY_SECONDS)
        finally:
            self._ending.discard(run)

    async def _close(self, run: RunState) -> bool:
        """One try; False when it has to be tried again."""
        while run.phase in IN_FLIGHT:  # noqa: ASYNC110 - rare, and what is in flight ends soon
            await asyncio.sleep(0.01)
        if run.phase is Phase.GONE:
            return True
        try:
            open_effects = await self._loop.journal.open_effects(run.run_id)
        except JournalUnavailable:
            return False
        if run.phase in IN_FLIGHT:  # begun meanwhile
            return False
        self._loop.drop_coroutine(run)
        rows = [_cancel(effect.effect_id, effect.key) for effect in open_effects if not effect.cancel_reason]
        ending = [_closing(self._reason(run))] if open_effects else [_cancelled(self._reason(run))]
        run.fed = run.head
        run.inbox.clear()
        run.owner_rows = rows + ending
        run.phase = Phase.IDLE
        self._loop.kick(run)
        return True

    async def _finish(self, run: RunState) -> None:
        try:
            open_effects = await self._loop.journal.open_effects(run.run_id)
        except JournalUnavailable:
            await asyncio.sleep(_RETRY_SECONDS)
            self._loop.spawn(self._finish(run), "finish")
            return
        if not any(effect.on_run_end != "DETACH" for effect in open_effects) and run.phase is not Phase.GONE:
            ending = _cancelled(self._reason(run)) if run.forced else self._finished.get(run.run_id)
            if ending is not None and not any(row["type"] in TERMINAL_TYPES for row in run.owner_rows):
                run.owner_rows.append(ending)
            self._loop.kick(run)

    def _reason(self, run: RunState) -> str:
        return self._reasons.get(run.run_id, "")


def ends_by_owner(event: Event) -> bool:
    """True for the RUN_CLOSING with which an owner ends a run without its process."""
    cancelled: bool = event.data.get("outcome") == "RUN_STATE_CANCELLED"
    return event.type == "RUN_CLOSING" and event.cause == 0 and cancelled


def _finished(closing: Mapping[str, Any]) -> dict[str, Any]:
    ends = str(closing["outcome"]).removeprefix("RUN_STATE_")
    data = {name: value for name, value in closing.items() if name != "outcome"}
    return {"type": f"RUN_{ends}", "cause": 0, "data": data}


def _cancel(effect_id: str, key: str) -> dict[str, Any]:
    data = {"reason": "EFFECT_REASON_RUN_CANCELLED", "message": "the run was cancelled"}
    return {
        "type": "EFFECT_CANCEL_REQUESTED",
        "cause": 0,
        "effect_id": effect_id,
        "effect_key": key,
        "data": data,
    }


def _closing(reason: str) -> dict[str, Any]:
    return {"type": "RUN_CLOSING", "cause": 0, "data": {"outcome": "RUN_STATE_CANCELLED", "reason": reason}}


def _cancelled(reason: str) -> dict[str, Any]:
    return {"type": "RUN_CANCELLED", "cause": 0, "data": {"reason": reason}}
