"""Ctrl-C and SIGTERM for commands that own services: the first asks for an orderly stop, the second ends patience."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(BaseException):
    """A signal asked for a stop while something was being started. Not an Exception: nobody handles it on the way."""


class StopSignals:
    """Context in which the first signal sets `requested` and every further one sets `force`.

    Until `defer` is called the first one also raises StopRequested in the main thread, so that a start is given up
    wherever it is.
    """

    def __init__(self, force: threading.Event) -> None:
        self.requested = threading.Event()
        self._force = force
        self._raises = True

    def __enter__(self) -> StopSignals:
        for number in _SIGNALS:
            signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def defer(self) -> None:
        """From here on the first signal is only noted."""
        self._raises = False

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested.is_set():
            self._force.set()
            return
        self.requested.set()
        if self._raises:
            raise StopRequested
