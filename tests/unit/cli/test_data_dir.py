"""A data directory has one holder at a time, and none when that is dead."""

import subprocess
import sys
from pathlib import Path

import pytest

from scheduler_service.cli.data_dir import DataDir
from scheduler_service.cli.errors import CliError
from tests.unit.cli.conftest import ROOT

HOLD = """
import sys
from pathlib import Path
from scheduler_service.cli.data_dir import DataDir
DataDir(Path(sys.argv[1])).hold("127.0.0.1:7233")
print("held", flush=True)
sys.stdin.read()
"""


def test_the_second_is_told_who_the_first_is_until_that_is_killed(tmp_path: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "data")], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout is not None
    assert first.stdout.readline() == b"held\n"
    second = DataDir(tmp_path / "data")
    with pytest.raises(CliError, match=rf"process {first.pid}, at 127\.0\.0\.1:7233"):
        second.hold("127.0.0.1:1")
    assert not second.is_held
    first.kill()
    first.communicate()
    second.hold("127.0.0.1:1")
    assert second.is_held
    second.release()


def test_what_was_released_can_be_held_again(tmp_path: Path) -> None:
    first, second = DataDir(tmp_path), DataDir(tmp_path)
    first.hold("here")
    with pytest.raises(CliError):
        second.hold("there")
    first.release()
    second.hold("there")
    second.release()
