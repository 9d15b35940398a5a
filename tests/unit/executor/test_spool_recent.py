"""The newest results: on disk at once, crossed out, whole or known not to be, bounded."""

import asyncio
import errno
import os
from pathlib import Path
from typing import Final

import pytest

from executor_service import spool, spool_files, spool_recent
from executor_service.assignment import Ref
from executor_service.spool import RESERVED_BYTES, Spool
from executor_service.spool_recent import Recent, unpack
from tests.support.eventually import eventually

A, B = ("a", 1), ("b", 1)
ITEM: Final = b'{"outcome":"succeeded"}\n'


def recent_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(".recent-*"))


def unpacked(folder: Path) -> dict[str, bytes]:
    """What a successor finds."""
    unpack(folder)
    assert recent_files(folder) == []
    return {path.name: spool_files.load(path) for path in spool_files.entries(folder)}


@pytest.mark.invariant("I7")
async def test_result_is_on_disk_while_its_commit_is_on_its_way(tmp_path: Path) -> None:
    """And not only after a time: whoever waits for a locked run is what a kill -9 would take."""
    kept = Spool(tmp_path, bytes_max=10 * RESERVED_BYTES, entries_max=10)
    runs = asyncio.create_task(kept.run())
    kept.wait(A, ITEM)
    await eventually(lambda: any(ITEM in path.read_bytes() for path in recent_files(tmp_path)))
    kept.wait(B, ITEM)
    kept.release(A)
    await eventually(lambda: not kept._new and not kept._gone)
    runs.cancel()
    with pytest.raises(asyncio.CancelledError):
        await runs
    async with kept._noting:
        assert list(unpacked(tmp_path).values()) == [ITEM]


async def test_what_is_recorded_or_flushed_is_crossed_out(tmp_path: Path) -> None:
    kept = Spool(tmp_path, bytes_max=10 * RESERVED_BYTES, entries_max=10)
    refs: list[Ref] = [A, B]
    for ref in refs:
        kept.wait(ref, ITEM)
    await kept.note()
    kept.release(A)
    await kept.flush()
    await kept.close()
    assert recent_files(tmp_path) == [], "nothing is left in it"
    assert list(unpacked(tmp_path).values()) == [ITEM], "the one that waits has a file of its own"


async def test_result_without_room_is_not_appended(tmp_path: Path) -> None:
    kept = Spool(tmp_path, bytes_max=RESERVED_BYTES, entries_max=10)
    assert kept.reserve(A) == ""
    kept.wait(A, b"x" * (RESERVED_BYTES + 1))
    await kept.note()
    assert recent_files(tmp_path) == []


@pytest.mark.invariant("I11")
async def test_disk_that_refuses_stops_new_work_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "REFUSING_SECONDS", 0.05)
    kept = Spool(tmp_path / "spool", bytes_max=10 * RESERVED_BYTES, entries_max=10)
    (tmp_path / "spool").touch()
    kept.wait(A, ITEM)
    await kept.note()
    assert kept.reserve(B) == "results cannot be written to the executor's disk"
    (tmp_path / "spool").unlink()
    await eventually(lambda: kept.reserve(B) == "")
    kept.wait(B, ITEM)
    await kept.note()
    assert list(unpacked(tmp_path / "spool").values()) == [ITEM]


def test_later_result_of_a_name_counts_and_one_with_a_file_of_its_own_is_left(tmp_path: Path) -> None:
    recent = Recent(tmp_path)
    recent.write([("1", b"first"), ("2", b""), ("3", b"here")])
    recent.write([("1", b"instead")])
    spool_files.write(tmp_path, [("3", b"there")])
    assert unpacked(tmp_path) == {"1": b"instead", "2": b"", "3": b"there"}


@pytest.mark.parametrize("cut", [1, len(ITEM), len(ITEM) + 3, len(ITEM) + 13])
def test_record_that_was_being_written_is_no_result(tmp_path: Path, cut: int) -> None:
    recent = Recent(tmp_path)
    recent.write([("1", ITEM), ("2", ITEM)])
    [path] = recent_files(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert unpacked(tmp_path) == {"1": ITEM}


def test_damaged_record_is_no_result(tmp_path: Path) -> None:
    recent = Recent(tmp_path)
    recent.write([("1", ITEM)])
    [path] = recent_files(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"succeeded", b"SUCCEEDED"))
    assert unpacked(tmp_path) == {}


def test_disk_that_fills_in_the_middle_of_a_record_hides_none_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recent = Recent(tmp_path)
    recent.write([("1", ITEM)])
    write = os.write

    def half(fd: int, data: memoryview) -> int:
        monkeypatch.setattr(os, "write", full)
        return write(fd, data[:20])

    def full(_fd: int, _data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="no space"):
        recent.write([("2", ITEM)])
    monkeypatch.setattr(os, "write", write)
    recent.write([("3", ITEM)])
    assert unpacked(tmp_path) == {"1": ITEM, "3": ITEM}


@pytest.mark.invariant("I11")
def test_files_are_bounded_and_go_oldest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_recent, "FILE_BYTES_MAX", 1000)
    recent = Recent(tmp_path)
    for number in range(1000):
        recent.write([(str(number), ITEM)], [str(number - 1)])
    assert len(recent_files(tmp_path)) <= 2
    assert sum(path.stat().st_size for path in recent_files(tmp_path)) < 3000
    for number in range(1000, 1100):
        recent.write([(str(number), ITEM)], [] if number == 1000 else [str(number - 1)])
    recent.write([], ["1099"])
    assert unpacked(tmp_path) == {"999": ITEM}, "what is crossed out stays so while an older file is there"
