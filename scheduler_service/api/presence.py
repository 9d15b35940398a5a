"""Clients that are there: calls of a client-driven run's client put off its idle timeout, at most one write a minute.

Kept in memory between two writes, so that a poll costs no write. A replica that dies forgets at most a quarter of a
client's idle timeout.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from scheduler_service.journal import JournalError

log = logging.getLogger(__name__)

_FLUSH_SECONDS_MAX: Final = 60.0
#: Clients that are remembered; one that is forgotten is only written of a little more often.
CLIENTS_MAX: Final = 10_000


class Presence:
    """Notes which clients have called, and tells the journal now and then.

    `write` notes signs of life of runs and answers how many seconds the client of each may be silent; runs that it
    leaves out are not watched (they are no client's, or not open).
    """

    def __init__(self, write: Callable[[Sequence[str]], Awaitable[Mapping[str, float]]]) -> None:
        self._write = write
        #: Monotonic time from which a call is written of again, by run.
        self._quiet_until: OrderedDict[str, float] = OrderedDict()
        self._pending: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def seen(self, run_id: str) -> None:
        """The client of the run has called; of other runs, somebody has, which is nothing."""
        now = time.monotonic()
        if self._quiet_until.get(run_id, 0.0) > now:
            return
        self._note(run_id, now + 1.0)
        self._pending.add(run_id)
        if self._task is None:
            self._task = asyncio.create_task(self._flush(), name="presence")

    async def aclose(self) -> None:
        """Waits for what is being written."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def _note(self, run_id: str, quiet_until: float) -> None:
        self._quiet_until[run_id] = quiet_until
        self._quiet_until.move_to_end(run_id)
        if len(self._quiet_until) > CLIENTS_MAX:
            self._quiet_until.popitem(last=False)

    async def _flush(self) -> None:
        try:
            while self._pending:
                run_ids, self._pending = sorted(self._pending), set()
                silences = await self._write(run_ids)
                now = time.monotonic()
                for run_id in run_ids:
                    pause = min(_FLUSH_SECONDS_MAX, silences.get(run_id, 4 * _FLUSH_SECONDS_MAX) / 4)
                    self._note(run_id, now + pause)
        except JournalError as error:
            log.warning("signs of life of clients are not noted: %s", error)
        finally:
            self._task = None
