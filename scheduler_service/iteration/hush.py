"""What process code prints and logs is passed on when it happens, and dropped when the step is only replayed.

`ctx.log` is in the journal and needs none of this; plain `print` and stdlib logging would come again with every replay.
"""

import logging
import threading
from typing import Any, TextIO

_thread = threading.local()


def hush(on: bool) -> None:
    """From now on, what this thread prints and logs is dropped, or passed on again."""
    _thread.hushed = on


def hushed() -> bool:
    """True when this thread replays."""
    return getattr(_thread, "hushed", False)


class DropReplayed(logging.Filter):
    """For handlers: drops the records of steps that are only replayed."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False drops the record."""
        return not hushed()


class HushedStream:
    """A stream that drops what a replaying thread writes; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes, or drops."""
        return len(text) if hushed() else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
