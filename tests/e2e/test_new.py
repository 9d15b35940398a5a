"""`backburner new process`: what it writes passes types, style and its own tests as it stands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.services import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]  # mypy begins without its cache


def call(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto" / "gen"), str(folder)])
    env = {**os.environ, "PYTHONPATH": path, "MYPYPATH": path}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=False
    )


def test_the_example_passes_types_style_and_its_tests(tmp_path: Path) -> None:
    made = call(tmp_path, "scheduler_service.cli", "new", "process", "release-notes")
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.startswith(
        "wrote release_notes.py and test_release_notes.py. Next:\n  pytest test_release_notes.py"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release_notes.py", "test_release_notes.py"]
    tests = call(tmp_path, "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio")
    assert tests.returncode == 0, tests.stdout
    assert "3 passed" in tests.stdout
    types = call(
        tmp_path, "mypy", "--strict", "--explicit-package-bases", "--cache-dir", str(ROOT / ".mypy_cache/new"), "."
    )
    assert types.returncode == 0, types.stdout
    for check in (("check", "--select", "E4,E7,E9,F,I,UP,B,SIM,RUF,PTH,ASYNC"), ("format", "--check")):
        style = call(tmp_path, "ruff", *check, "--isolated", "--no-cache", ".")
        assert style.returncode == 0, style.stdout


def test_it_refuses_to_overwrite_and_names_that_cannot_be(tmp_path: Path) -> None:
    mine = tmp_path / "test_mine.py"
    mine.write_text("# mine")
    again = call(tmp_path, "scheduler_service.cli", "new", "process", "mine")
    assert (again.returncode, "test_mine.py: already there, and left alone" in again.stderr) == (2, True)
    assert mine.read_text() == "# mine"
    assert not (tmp_path / "mine.py").exists()
    for name in ("class", "a b", "1st", "../up"):
        assert call(tmp_path, "scheduler_service.cli", "new", "process", name).returncode == 2, name
    below = call(tmp_path, "scheduler_service.cli", "new", "process", "Mine.too", "--directory", "sub")
    assert below.returncode == 0
    assert (tmp_path / "sub" / "mine_too.py").exists()
