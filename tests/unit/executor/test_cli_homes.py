"""Folders of agent CLIs: what goes, what stays, what a killed executor left; and links to what is the user's."""

import fcntl
import os
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from executor_service.harness.cli.adapter import Program, Task
from executor_service.harness.cli.gemini_cli import GeminiCli
from executor_service.harness.cli.homes import WORK_DAYS_MAX, Homes, remove_scratch, tenant_home
from executor_service.workspaces.leases import Lease

OLD = time.time() - (WORK_DAYS_MAX + 1) * 86_400


def old(folder: Path) -> Path:
    folder.mkdir(parents=True)
    os.utime(folder, (OLD, OLD))
    return folder


async def test_scratch_that_a_killed_executor_left_is_removed_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, alive = str(uuid.uuid4()), str(uuid.uuid4())
    with Homes("user", tmp_path, dead).scratch() as left, Homes("user", tmp_path, alive).scratch() as used:
        (left / "mcp.json").write_text("{}")
        remove_scratch([dead])
        assert (left.exists(), used.exists()) == (False, True)


def test_a_working_directory_in_which_another_effect_goes_on_is_no_old_one(tmp_path: Path) -> None:
    homes = Homes("user", tmp_path, "i")
    gone, used = old(tmp_path / "work" / "gone"), old(tmp_path / "work" / "used")
    (used / "part").mkdir()
    os.utime(used, (OLD, OLD))
    with homes.workspace(str(used / "part"), "e-1") as workspace:
        assert workspace == used / "part"
    homes.forget_old()
    assert (gone.exists(), used.exists()) == (False, True)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["used"]


@pytest.mark.parametrize("cwd", ["", "part"])
def test_a_working_directory_is_not_old_while_somebody_works_in_it_however_long(tmp_path: Path, cwd: str) -> None:
    homes, another = Homes("user", tmp_path, "i"), Homes("user", tmp_path, "of another executor")
    folder = tmp_path / "work" / "e-1"
    asked = str(folder / cwd) if cwd else ""
    (folder / "part").mkdir(parents=True)
    with homes.workspace(asked, "e-1"), homes.workspace(str(folder), "e-2"):
        os.utime(folder, (OLD, OLD))  # it has run for longer than they are kept
        another.forget_old()
        assert folder.is_dir()
    another.forget_old()
    assert folder.is_dir(), "its days count from the last use"
    os.utime(folder, (OLD, OLD))
    another.forget_old()
    assert not folder.exists()


def test_a_working_directory_that_is_removed_while_somebody_comes_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes, flock = Homes("user", tmp_path, "i"), fcntl.flock
    folder = old(tmp_path / "work" / "e-1")
    (folder / "half").touch()
    os.utime(folder, (OLD, OLD))

    def removed_first(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        os.utime(folder, (OLD, OLD))
        homes.forget_old()  # between the other's open and its lock
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with homes.workspace("", "e-1") as workspace:
        assert (workspace.is_dir(), (workspace / "half").exists()) == (True, False)
        os.utime(folder, (OLD, OLD))
        homes.forget_old()
        assert workspace.is_dir()


def test_what_a_lease_holds_is_worked_in_and_stays(tmp_path: Path) -> None:
    homes = Homes("user", tmp_path, "i")
    folder = old(tmp_path / "work" / "e-1")
    lease = Lease(folder)
    with homes.workspace(str(folder), "e-2") as workspace:
        os.utime(folder, (OLD, OLD))
        homes.forget_old()
        assert workspace.is_dir()
    lease.close()


def test_a_working_directory_that_goes_while_it_is_looked_at_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.setattr("executor_service.harness.cli.homes._oldest", lambda folder: [folder / "gone"])
    Homes("user", tmp_path, "i").forget_old()


def test_a_file_in_the_place_of_a_link_is_no_error_of_the_next_turn(tmp_path: Path) -> None:
    task = Task("p", tmp_path, tmp_path / "scratch", tmp_path, {})
    (tmp_path / ".gemini").mkdir()
    (tmp_path / ".gemini" / "state.json").write_text("theirs")
    program = Program("gemini", ["gemini"])
    GeminiCli().launch(program, task)
    linked = tmp_path / "scratch" / "gemini" / ".gemini" / "state.json"
    linked.unlink()
    linked.write_text("its own")
    GeminiCli().launch(program, task)
    assert linked.read_text() == "its own"


def test_a_home_of_a_namespace_is_nobody_elses_though_a_cli_has_made_it(tmp_path: Path) -> None:
    """It is HOME when the CLI is asked for its version, which may be before any attempt."""
    made = tenant_home(tmp_path, "n")
    made.mkdir(parents=True)
    made.chmod(0o755)
    assert Homes("tenant", tmp_path, "i").of("n") == made
    assert made.stat().st_mode & 0o777 == 0o700
