"""Results on disk: what waits is written down, what is recorded is gone, and what does not fit is refused before."""

import stat
from pathlib import Path
from typing import Final

import pytest

from executor_service import spool, spool_files
from executor_service.assignment import Ref
from executor_service.spool import RESERVED_BYTES, Room, Spool
from tests.support.eventually import eventually

A, B, C = ("a", 1), ("b", 1), ("c", 1)
ITEM: Final = b'{"outcome":"succeeded"}'


def new_spool(folder: Path, *, bytes_max: int = 10 * RESERVED_BYTES, entries_max: int = 10) -> Spool:
    return Spool(folder / "spool" / "incarnation", bytes_max=bytes_max, entries_max=entries_max)


def files(folder: Path) -> list[bytes]:
    return [spool_files.load(path) for path in spool_files.entries(folder / "spool" / "incarnation")]


async def test_result_that_waits_is_on_disk_until_it_is_recorded(tmp_path: Path) -> None:
    kept = new_spool(tmp_path)
    kept.wait(A, ITEM)
    await kept.flush(spool.WAIT_SECONDS)
    assert files(tmp_path) == [], "what the journal takes at once gets no file of its own"
    await kept.flush()
    assert files(tmp_path) == [ITEM]
    kept.wait(A, b"instead")
    await kept.flush()
    assert files(tmp_path) == [b"instead"]
    kept.release(A)
    await kept.flush()
    assert files(tmp_path) == []


async def test_only_the_owner_can_read_the_tokens(tmp_path: Path) -> None:
    kept = new_spool(tmp_path)
    kept.wait(A, ITEM)
    await kept.flush()
    [path] = (tmp_path / "spool" / "incarnation").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_result_that_is_recorded_while_it_is_written_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = new_spool(tmp_path)
    write = spool_files.write

    def recorded_meanwhile(folder: Path, results: list[tuple[str, bytes]]) -> None:
        write(folder, results)
        kept.release(A)

    monkeypatch.setattr(spool_files, "write", recorded_meanwhile)
    kept.wait(A, ITEM)
    await kept.flush()
    await kept.flush()
    assert files(tmp_path) == []


@pytest.mark.invariant("I11")
def test_room_is_taken_from_the_start_of_an_attempt_until_its_result_is_recorded() -> None:
    room = Room(bytes_max=3 * RESERVED_BYTES, entries_max=2)
    assert room.take(A)
    assert room.take(B)
    assert not room.take(C), "entries"
    room.give_back(B)
    assert room.take(A, 2 * RESERVED_BYTES)
    assert room.take(A), "what is taken stays taken"
    assert room.take(C)
    assert not room.take(C, 2 * RESERVED_BYTES), "bytes"
    room.give_back(A)
    room.give_back(A)
    assert room.take(C, 2 * RESERVED_BYTES)


@pytest.mark.invariant("I11")
async def test_without_room_nothing_new_is_accepted(tmp_path: Path) -> None:
    kept = new_spool(tmp_path, entries_max=2)
    for ref in (A, B):
        assert kept.reserve(ref) == ""
    kept.wait(A, ITEM)
    assert "no room for another result: 1 wait for Postgres" in kept.reserve(C)
    kept.release(A)
    assert kept.reserve(C) == ""


@pytest.mark.invariant("I11")
async def test_large_result_without_room_is_held_in_memory_and_stops_new_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = new_spool(tmp_path, bytes_max=3 * RESERVED_BYTES)
    for ref in (A, B):
        assert kept.reserve(ref) == ""
    large = b"x" * (3 * RESERVED_BYTES)
    kept.wait(A, large)
    for _ in range(2):
        await kept.flush()
    assert caplog.text.count("held in memory") == 1
    assert kept.reserve(C) != ""
    kept.release(B)
    await kept.flush()
    assert files(tmp_path) == [large], "as soon as there is room"


@pytest.mark.invariant("I11")
async def test_disk_that_refuses_stops_new_work(tmp_path: Path) -> None:
    kept = new_spool(tmp_path)
    (tmp_path / "spool").touch()
    kept.wait(A, ITEM)
    await kept.flush()
    assert kept.reserve(B) == "results cannot be written to the executor's disk"


async def test_disk_that_refuses_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool, "REFUSING_SECONDS", 0.05)
    kept = new_spool(tmp_path)
    (tmp_path / "spool").touch()  # a file stands where the folder is to be
    kept.wait(A, ITEM)
    await kept.flush()
    assert "results cannot be written to disk" in caplog.text
    (tmp_path / "spool").unlink()
    await kept.flush()
    assert files(tmp_path) == [ITEM]
    await eventually(lambda: kept.reserve(B) == "")


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-1],
        lambda whole: whole + b"x",
        lambda whole: whole.replace(b"succeeded", b"SUCCEEDED"),
        lambda whole: whole[:10],
        lambda _whole: b"",
        lambda _whole: b"\n\n",
        lambda whole: whole.replace(b"result-1", b"result-9"),
    ],
)
def test_damaged_file_is_known(tmp_path: Path, damage: object) -> None:
    spool_files.write(tmp_path, [("1", ITEM)])
    path = tmp_path / "1"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(spool_files.Damaged):
        spool_files.load(path)


def test_file_that_was_never_finished_is_no_result(tmp_path: Path) -> None:
    spool_files.write(tmp_path, [("2", ITEM), ("1", ITEM)])
    (tmp_path / ".3").write_bytes(b"half a res")
    assert [path.name for path in spool_files.entries(tmp_path)] == ["1", "2"]
    assert not (tmp_path / ".3").exists()


def test_damaged_files_that_are_kept_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_files, "ASIDE_MAX", 2)
    refs: list[Ref] = [A, B, C]
    for effect, _ in refs:
        spool_files.write(tmp_path / "i", [(effect, ITEM)])
        spool_files.set_aside(tmp_path / "i" / effect, tmp_path / "damaged")
    assert len(list((tmp_path / "damaged").iterdir())) == 2
