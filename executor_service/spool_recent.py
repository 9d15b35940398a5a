"""The newest results of the spool: appended to one file at once, before anybody knows whether the journal takes them.

What is appended outlives this process, killed with -9 too, because the kernel has it; it is not flushed, so it does not
outlive the machine. Appending costs a small part of what a file of its own does, which a result gets when its commit
takes long (`spool.py`). Results that are recorded are crossed out, and a file is removed when all in it are, the oldest
first, so that nothing is crossed out in a file that is gone.

A file is a series of records: a line with a checksum, the name and the length, then the item; a length of -1 crosses
the name out. Nothing here waits for anybody but the disk; one thread at a time may call it.
"""

import contextlib
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from executor_service import spool_files

#: Hidden, so that nobody takes it for the result of one attempt.
_PREFIX: Final = ".recent-"
#: A file that holds so much gets no more.
FILE_BYTES_MAX: Final = 1024 * 1024


class Recent:
    """The files of one incarnation."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fd = -1
        self._size = 0
        self._number = 0
        #: Names that are not crossed out, by the number of their file; the oldest first, the open one last.
        self._kept: dict[int, set[str]] = {}
        self._file_of: dict[str, int] = {}

    def write(self, results: Sequence[tuple[str, bytes]], gone: Sequence[str] = ()) -> None:
        """Appends results by name, and crosses out those that are gone. Raises OSError, with all of it or part done."""
        known = [name for name in gone if name in self._file_of]
        records = [_record(name, item) for name, item in results] + [_record(name, None) for name in known]
        if records:
            self._append(b"".join(records))
        for name, _ in results:
            self._forget(name)
            self._file_of[name] = self._number
            self._kept[self._number].add(name)
        for name in known:
            self._forget(name)
        if self._size > FILE_BYTES_MAX:
            self._close_file()
        self._remove_empty()

    def close(self) -> None:
        """Nothing more is written. What is kept stays for a successor, and else nothing."""
        self._close_file()
        self._remove_empty()

    def _append(self, data: bytes) -> None:
        if self._fd < 0:
            self._open()
        rest = memoryview(data)
        try:
            while rest:
                written = os.write(self._fd, rest)
                self._size += written
                rest = rest[written:]
        except OSError:
            self._close_file()  # behind half a record nobody could read another
            raise

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._number += 1
        self._fd = os.open(self._path(self._number), flags, 0o600)
        self._size = 0
        self._kept[self._number] = set()

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _forget(self, name: str) -> None:
        number = self._file_of.pop(name, None)
        if number is not None:
            self._kept[number].discard(name)

    def _remove_empty(self) -> None:
        for number, names in list(self._kept.items()):
            if names or (number == self._number and self._fd >= 0):
                return
            del self._kept[number]
            with contextlib.suppress(OSError):  # a result that is sent again changes nothing
                self._path(number).unlink()

    def _path(self, number: int) -> Path:
        return self._folder / f"{_PREFIX}{number:010d}"


def unpack(folder: Path) -> None:
    """Gives each result that a dead incarnation left here a file of its own. May be repeated. Raises OSError."""
    paths = sorted(folder.glob(f"{_PREFIX}*")) if folder.is_dir() else []
    kept: dict[str, bytes] = {}
    for path in paths:
        for name, item in _records(path.read_bytes()):
            if item is None:
                kept.pop(name, None)
            else:
                kept[name] = item
    results = [(name, item) for name, item in kept.items() if not (folder / name).exists()]
    if results:
        spool_files.write(folder, results)
    for path in paths:
        path.unlink(missing_ok=True)


def _record(name: str, item: bytes | None) -> bytes:
    body = item or b""
    head = b"%s %d" % (name.encode(), -1 if item is None else len(body))
    return b"%08x %s\n%s" % (zlib.crc32(head + body), head, body)


def _records(data: bytes) -> Iterator[tuple[str, bytes | None]]:
    """The whole records. One that is not whole was being written when its writer died, so nothing comes after it."""
    at = 0
    while at < len(data):
        end = data.find(b"\n", at)
        parts = data[at:end].split(b" ") if end >= 0 else []
        try:
            checksum, name, length = int(parts[0], 16), parts[1].decode(), int(parts[2])
        except (IndexError, ValueError):
            return
        body = data[end + 1 : end + 1 + max(length, 0)]
        if zlib.crc32(b"%s %d" % (parts[1], length) + body) != checksum:
            return
        yield name, None if length < 0 else body
        at = end + 1 + len(body)
