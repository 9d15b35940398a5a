import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from scheduler_service.cli.child import Child, is_warning


@pytest.mark.parametrize(
    ("line", "warns"),
    [
        ("2026-01-01 10:00:00,1 WARNING dispatch slow", True),
        ("2026-01-01 10:00:00,1 ERROR api broke", True),
        ("Traceback (most recent call last):", True),
        ('{"level": "warning", "message": "x"}', True),
        ("2026-01-01 10:00:00,1 INFO api no ERROR here", False),
        ("scheduler listening on 127.0.0.1:7233", False),
    ],
)
def test_the_level_decides_what_is_a_warning(line: str, warns: bool) -> None:
    assert is_warning(line) is warns


Lines = list[tuple[str, str]]
Start = Callable[[str], tuple[Child, Lines]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Child] = []

    def run(program: str) -> tuple[Child, Lines]:
        (tmp_path / "played.py").write_text(program)
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        lines: Lines = []
        child = Child("scheduler", "played", env, tmp_path / "logs" / "scheduler.log", lambda *said: lines.append(said))
        started.append(child)
        return child, lines

    yield run
    for child in started:
        child.stop(0.0, threading.Event())


def eventually(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_lines_go_to_the_log_and_to_the_sink(start: Start) -> None:
    child, lines = start("print('hello')")
    eventually(lambda: child.exit_code == 0 and lines)
    assert lines == [("scheduler", "hello")]
    assert child.log.read_text() == "hello\n"


def test_the_end_of_a_child_is_told_with_its_last_words(start: Start) -> None:
    child, _ = start("import sys; print('port is taken'); sys.exit(2)")
    eventually(lambda: child.exit_code is not None)
    told = child.describe_exit()
    assert "the scheduler ended by itself (exit code 2)" in told
    assert "port is taken" in told


def test_a_signal_is_told_by_its_name(start: Start) -> None:
    child, _ = start("import os; os.kill(os.getpid(), 9)")
    eventually(lambda: child.exit_code is not None)
    assert "(signal SIGKILL)" in child.describe_exit()


def test_a_child_that_obeys_stops_in_order(start: Start) -> None:
    child, lines = start("import time; print('up'); time.sleep(60)")
    eventually(lambda: lines)
    assert child.stop(10.0, threading.Event())
    assert child.exit_code == -signal.SIGTERM


STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(60)"


def test_a_stubborn_child_is_killed_after_its_time(start: Start) -> None:
    child, lines = start(STUBBORN)
    eventually(lambda: lines)
    assert not child.stop(0.2, threading.Event())
    assert child.exit_code == -signal.SIGKILL


def test_force_ends_the_patience_at_once(start: Start) -> None:
    child, lines = start(STUBBORN)
    eventually(lambda: lines)
    force = threading.Event()
    force.set()
    began = time.monotonic()
    assert not child.stop(30.0, force)
    assert time.monotonic() - began < 25


def test_a_kill_reaches_descendants_in_sessions_of_their_own(start: Start) -> None:
    child, lines = start(
        "import subprocess, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "below = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "print(below.pid, flush=True); time.sleep(60)"
    )
    eventually(lambda: lines)
    below = int(lines[0][1])
    child.stop(0.0, threading.Event())
    eventually(lambda: not psutil.pid_exists(below) or psutil.Process(below).status() == psutil.STATUS_ZOMBIE)


def test_a_service_stops_when_its_owner_is_gone(tmp_path: Path) -> None:
    # The owner is killed, so nobody signals the service: only the end of its stdin can tell it.
    (tmp_path / "played.py").write_text("import time; print('up', flush=True); time.sleep(60)")
    owner = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'scheduler_service.cli.tether', 'played'],\n"
        "                         stdin=subprocess.PIPE, start_new_session=True)\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with psutil.Popen([sys.executable, "-c", owner], env=env, stdout=-1) as process:
        service = psutil.Process(int(process.stdout.readline()))
        process.kill()
    eventually(lambda: not service.is_running() or service.status() == psutil.STATUS_ZOMBIE)
