"""Control groups: the bound of an attempt's processes is written where it can be had, and said to be missing else."""

import os
from pathlib import Path

import pytest

from executor_service import cgroups
from executor_service.cgroups import Cgroups


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for the executor's own control group; what the kernel would make is there already."""
    monkeypatch.setattr(cgroups, "_own_folder", lambda: tmp_path)
    folder = tmp_path / "backburner-incarnation"
    (folder / "attempt").mkdir(parents=True)
    for name in ("cgroup.procs", "backburner-incarnation/cgroup.kill"):
        (tmp_path / name).touch()
    return tmp_path


def test_processes_of_an_attempt_are_bounded(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = cgroups.open_cgroups("incarnation", 100)
    assert (own / "cgroup.subtree_control").read_text() == "+pids"
    assert (own / "backburner-incarnation" / "cgroup.subtree_control").read_text() == "+pids"
    assert opened.make("attempt") == str(own / "backburner-incarnation" / "attempt")
    assert (own / "backburner-incarnation" / "attempt" / "pids.max").read_text() == "100"
    assert "not bounded" not in caplog.text


def test_without_the_controller_attempts_have_a_group_and_no_bound(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (own / "cgroup.subtree_control").mkdir()  # what is no file takes no controller
    opened = cgroups.open_cgroups("incarnation", 100)
    assert opened.make("attempt")
    assert not (own / "backburner-incarnation" / "attempt" / "pids.max").exists()
    assert "how many processes an attempt starts is not bounded" in caplog.text


def test_no_bound_is_asked_for_with_0(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert cgroups.open_cgroups("incarnation", 0).folder is not None
    assert not (own / "cgroup.subtree_control").exists()
    assert caplog.text == ""


def test_group_without_the_bound_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "attempt" / "pids.max").mkdir(parents=True)
    assert Cgroups(tmp_path, 100).make("attempt") == ""


def test_kernel_takes_the_bound() -> None:
    """Where this machine lets us."""
    opened = cgroups.open_cgroups(f"test-{os.getpid()}", 5)
    try:
        group = opened.make("attempt")
        if not group or not (Path(group) / "pids.max").exists():
            pytest.skip("there is no control group with the controller pids here")
        assert (Path(group) / "pids.max").read_text() == "5\n"
    finally:
        opened.close()
