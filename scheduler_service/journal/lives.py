"""Which life of which Postgres server the connections talk to, and what must be forgotten when it is another one.

A server that was restarted, promoted or restored may have lost the end of what it had told us. So what was read from it
is worth nothing once a connection meets another life: whoever listens drops it and reads again. A life is met before
the first statement of a connection is sent, and calls that were made in one are not carried into the next.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString

from scheduler_service.journal.errors import JournalUnavailable

log = logging.getLogger(__name__)

LIFE: Final[LiteralString] = (
    "SELECT life, system_identifier, timeline, started_at, standby FROM backburner.server_life_v1()"
)


class WrongServer(JournalUnavailable):
    """The server that answers is not the one to talk to; another one, or the same one later, is."""


@dataclass(frozen=True, slots=True)
class Life:
    """One life of a server: from a start or a promotion to the next."""

    #: A digest of the rest.
    life: int
    system_identifier: int
    timeline: int
    started_at: datetime
    standby: bool = False

    def __str__(self) -> str:
        return (
            f"server {self.system_identifier}, timeline {self.timeline}, up since {self.started_at:%Y-%m-%d %H:%M:%S}"
        )


class Lives:
    """The life that counts: the newest one that any connection of this service has met."""

    def __init__(self) -> None:
        self.current: Life | None = None
        #: Called at once when another life is met, before anything is asked of it.
        self.on_change: Callable[[], None] = lambda: None

    def meet(self, life: Life) -> None:
        """Notes the server behind a new connection. Raises WrongServer for a standby and for a primary left behind."""
        known = self.current
        if life.standby:
            raise WrongServer("the server that answers is a standby: waiting for a primary")
        if known == life:
            return
        if known is not None and _left_behind(life, known):
            raise WrongServer(
                f"an old primary answers (timeline {life.timeline}; {known.timeline} was seen): it should be stopped"
            )
        self.current = life
        if known is not None:
            log.warning("the database is in another life (%s; it was %s): all is read again", life, known)
            self.on_change()


def _left_behind(life: Life, known: Life) -> bool:
    return life.system_identifier == known.system_identifier and life.timeline < known.timeline
