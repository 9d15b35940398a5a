"""Opens a file that somebody else has put there: only a regular one, and without waiting for anybody."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

_KINDS: Final = (
    (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"), (stat.S_ISDIR, "a directory"),
)  # fmt: skip


class NotRegular(Exception):
    """It is there, and is no regular file; the message says what it is."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, to read bytes from. Raises NotRegular; OSError when it cannot be opened."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe that nobody writes to blocks for ever
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise NotRegular(next((words for is_one, words in _KINDS if is_one(mode)), "no regular file"))
    except BaseException:
        os.close(fd)
        raise
    with os.fdopen(fd, "rb") as file:
        yield file
