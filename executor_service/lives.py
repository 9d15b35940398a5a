"""Which life of which Postgres server the lanes talk to: from a start or a promotion to the next.

A server that was restarted, promoted or restored may have lost the end of what it had acknowledged. So no
lane goes on in a life that is not the newest, and in a new one none goes on before what was recorded lately is recorded
again (`again.py`). The scheduler has a twin of this for what it has read (`scheduler_service/journal/lives.py`).
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

log = logging.getLogger(__name__)


class WrongServer(Exception):
    """The server that answers is not the one to write to; another one, or the same one later, is."""


@dataclass(frozen=True, slots=True)
class Life:
    """One life of a server, as `server_life_v1` answers; `life` is a digest of the rest."""

    life: int
    system_identifier: int
    timeline: int
    started_at: datetime
    standby: bool = False


class Lives:
    """The life that counts: the newest one that any lane of this executor has met."""

    def __init__(self) -> None:
        self.current: Life | None = None
        #: Called when another life is met, before anything is written in it. It may clear `caught_up`.
        self.on_change: Callable[[], None] = lambda: None
        #: Set unless something has to be written first in this life.
        self.caught_up = asyncio.Event()
        self.caught_up.set()

    def meet(self, life: Life) -> None:
        """Notes the server behind a new connection. Raises WrongServer for a standby and for a primary left behind."""
        known = self.current
        if life.standby:
            raise WrongServer("the server that answers is a standby: waiting for a primary")
        if known == life:
            return
        if known is not None and life.system_identifier == known.system_identifier and life.timeline < known.timeline:
            raise WrongServer(
                f"an old primary answers (timeline {life.timeline}; {known.timeline} was seen): it should be stopped"
            )
        self.current = life
        if known is not None:
            log.warning("the database is in another life (timeline %d, up since %s)", life.timeline, life.started_at)
            self.on_change()
