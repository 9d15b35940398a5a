"""Folders of agent CLIs: what goes, what stays, what a killed executor left; and links to what is the user's."""

import os
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from executor_service.harness.cli.adapter import Program, Task
from executor_service.harness.cli.gemini_cli import GeminiCli
from executor_service.harness.cli.homes import WORK_DAYS_MAX, Homes, remove_scratch

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
    assert homes.workspace(str(used / "part"), "e-1") == used / "part"
    assert homes.workspace("", "e-2") == tmp_path / "work" / "e-2"
    assert (gone.exists(), used.exists()) == (False, True)


def test_a_working_directory_that_goes_while_it_is_looked_at_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.setattr("executor_service.harness.cli.homes._oldest", lambda folder: [folder / "gone"])
    assert Homes("user", tmp_path, "i").workspace("", "e").is_dir()


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
