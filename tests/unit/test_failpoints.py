"""Failpoints: what arms them, what they do, and that every write of either service has its two."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import executor_service.failpoints
import executor_service.recording
import scheduler_service.failpoints

ROOT = Path(__file__).parents[2]
MODULES = [scheduler_service.failpoints, executor_service.failpoints]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.SERVICE)
def test_a_point_acts_at_its_passage_and_only_there(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_armed", {})
    write = next(iter(module.WRITES))
    asked = f"{module.SERVICE}.{write}.send:error@3, other.point:kill"
    assert module.arm(asked) == [f"{module.SERVICE}.{write}.send"]
    for _ in range(2):
        module.hit(write, "send")
        module.hit(write, "committed")
    with pytest.raises(TimeoutError):
        module.hit(write, "send")
    module.hit(write, "send")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.SERVICE)
@pytest.mark.parametrize(
    "asked", ["nowhere.send:kill", "{point}:explode", "{point}:kill@0", "{point}:kill@x", "{point}"]
)
def test_what_is_no_failpoint_is_refused(module: ModuleType, asked: str) -> None:
    point = next(iter(module.POINTS))
    with pytest.raises(module.FailpointError):
        module.arm(asked.format(point=point) if "{" in asked else f"{module.SERVICE}.{asked}")


@pytest.mark.parametrize("service", ["scheduler_service", "executor_service"])
def test_a_service_does_not_start_with_a_failpoint_that_does_not_exist(service: str, tmp_path: Path) -> None:
    name = service.partition("_")[0]
    env = {"BACKBURNER_FAILPOINT": f"{name}.no.where:kill", "DATABASE_URL": "postgresql:///none", "PYTHONHASHSEED": "0",
           "BACKBURNER_STATE_DIR": str(tmp_path)}  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", service], check=False, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert "is no failpoint; known: " in ended.stderr


def test_kill_and_stall_do_what_they_say() -> None:
    program = (
        "import time; from scheduler_service import failpoints as f; f.arm('scheduler.append.send:stall=0.2,"
        "scheduler.append.committed:kill'); t = time.monotonic(); f.hit('append', 'send');"
        "print(time.monotonic() - t >= 0.2, flush=True); f.hit('append', 'committed')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, "True\n")


def test_every_write_of_the_scheduler_has_its_points() -> None:
    source = "".join(path.read_text() for path in sorted((ROOT / "scheduler_service" / "journal").glob("*.py")))
    grouped = re.findall(r'_SQL\["\w+"\], "([^"]+)"\)', source)
    fenced = re.findall(r'self\._fenced\("\w+", "\w+", "([^"]+)"\)', source)
    single = re.findall(r'self\._call\(\s*"\w+",\s*"(\w+)"', source)
    writes = grouped + fenced + single
    assert sorted(writes) == sorted(scheduler_service.failpoints.WRITES)


def test_every_write_of_the_executor_has_its_points() -> None:
    assert sorted(executor_service.recording.WRITES.values()) == sorted(executor_service.failpoints.WRITES)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.SERVICE)
def test_every_other_point_is_passed_at_one_place(module: ModuleType) -> None:
    folder = ROOT / f"{module.SERVICE}_service"
    source = "".join(path.read_text() for path in folder.rglob("*.py") if path.name != "failpoints.py")
    passed = {f"{part}.{moment}" for part, moment in re.findall(r'failpoints\.hit\("(\w+)", "(\w+)"\)', source)}
    assert passed == set(module.STEPS)
