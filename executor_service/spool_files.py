"""The files of the spool: one result each, written so that a file is whole or is known not to be. Nothing here waits.

A file is a line with a checksum and a length, then the item of `attempts_settle_v1` as JSON, token included.
"""

import contextlib
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

_MAGIC: Final = b"backburner-result-1"
#: Damaged files that are kept for somebody to look at; older ones are removed.
ASIDE_MAX: Final = 100


class Damaged(Exception):
    """The file does not hold a whole result."""


def write(folder: Path, results: Sequence[tuple[str, bytes]]) -> None:
    """Writes results by name and flushes them, names included. Raises OSError, with some of them written or none."""
    fresh = not folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, item in results:
        _write_one(folder, name, item)
    _flush_names(folder)
    if fresh:
        _flush_names(folder.parent)


def _flush_names(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_one(folder: Path, name: str, item: bytes) -> None:
    unnamed = folder / f".{name}"
    fd = os.open(unnamed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:  # noqa: PTH123 - of a descriptor, for the mode of the file
            file.write(b"%s %08x %d\n" % (_MAGIC, zlib.crc32(item), len(item)))
            file.write(item)
            file.flush()
            os.fsync(fd)
        unnamed.rename(folder / name)
    except OSError:
        unnamed.unlink(missing_ok=True)
        raise


def remove(folder: Path, names: Iterable[str]) -> None:
    """Removes results that are recorded. One that stays is only sent again."""
    for name in names:
        with contextlib.suppress(OSError):
            (folder / name).unlink()


def entries(folder: Path) -> Iterator[Path]:
    """The results in a folder, oldest first. What was never finished writing is none, and is removed."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            path.unlink(missing_ok=True)
        else:
            yield path


def load(path: Path) -> bytes:
    """The item in a file. Raises Damaged."""
    try:
        head, _, item = path.read_bytes().partition(b"\n")
        magic, checksum, length = head.split(b" ")
        whole = magic == _MAGIC and int(length) == len(item) and int(checksum, 16) == zlib.crc32(item)
    except (OSError, ValueError) as error:
        raise Damaged(str(error) or "it cannot be read") from error
    if not whole:
        raise Damaged(f"its {len(item)} bytes are not what was written")
    return item


def set_aside(path: Path, folder: Path) -> Path:
    """Moves a file out of the way, for somebody to look at; returns where to. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = path.rename(folder / f"{path.parent.name}-{path.name}")
    kept = sorted(folder.iterdir(), key=lambda other: other.stat().st_mtime)
    for other in kept[:-ASIDE_MAX]:
        other.unlink(missing_ok=True)
    return aside
