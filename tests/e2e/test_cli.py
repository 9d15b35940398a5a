"""The commands against real services: `backburner dev` and what one does next to it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from tests.support.services import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]

PROCESSES = """
import asyncio
import backburner as bb

@bb.process("build")
async def build(ctx: bb.Context, n: int = 3) -> int:
    slow = ctx.start(bb.shell("echo begun; sleep 1; echo to-stderr >&2; echo done"), key="slow")
    for number in range(n):
        await ctx.run(bb.function("shop.double", number), key=f"double/{number}")
    await slow
    return n

@bb.process("ask")
async def ask(ctx: bb.Context) -> str:
    answer = await ctx.run(bb.approval("Deploy?", choices=["yes", "no"]), key="approve")
    return f"{answer.choice} by {answer.by}"

@bb.process("fails")
async def fails(ctx: bb.Context) -> None:
    raise bb.Fail("no bread today")

@bb.process("breaks")
async def breaks(ctx: bb.Context) -> None:
    raise RuntimeError("a bug")

@bb.process("sleeps")
async def sleeps(ctx: bb.Context) -> None:
    await ctx.run(bb.shell("sleep 300"), key="nap")
"""

FUNCTIONS = """
import backburner as bb

@bb.function(name="shop.double")
def double(n: int) -> int:
    return 2 * n
"""


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto" / "gen")])
    env = {**os.environ, "PYTHONPATH": path}
    for name in ("DATABASE_URL", "COLUMNS", "BACKBURNER_ADDRESS"):
        env.pop(name, None)
    return env


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scheduler_service.cli", *arguments],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def call(folder: Path, *arguments: str, timeout: float = 120) -> tuple[int, str, str]:
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=timeout)
    assert "Traceback (most recent call last)" not in err or "a bug" in err, err
    return process.returncode, out, err


class Dev:
    """A running `backburner dev`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        (folder / "shop.py").write_text(FUNCTIONS)
        (folder / "shop_processes.py").write_text(PROCESSES)
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        modules = ("--process-module", "shop_processes", "--function-module", "shop")
        self.process = start(folder, "dev", "--listen", self.address, *modules, *arguments)
        self.lines: list[str] = []
        self._pumps = [
            threading.Thread(target=self._pump, args=(stream,), daemon=True)
            for stream in (self.process.stdout, self.process.stderr)
        ]
        for pump in self._pumps:
            pump.start()

    def _pump(self, stream: IO[str] | None) -> None:
        if stream is not None:
            with stream:
                self.lines.extend(stream)

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def wait_until_up(self) -> "Dev":
        self.wait_for(lambda: "Ctrl-C stops everything" in self.said or self.process.poll() is not None)
        assert self.process.poll() is None, self.said
        return self

    def wait_for(self, condition: Callable[[], object], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait(self, seconds: float = 120) -> int:
        code = self.process.wait(seconds)
        for pump in self._pumps:
            pump.join(10)
        return code

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.wait()
        for pump in self._pumps:
            pump.join(10)


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    running = Dev(tmp_path_factory.mktemp("dev"))
    try:
        yield running.wait_until_up()
    finally:
        running.end()


def asleep(processes: list[psutil.Process]) -> bool:
    return any(process.name() == "sleep" for process in processes)


def none_alive(processes: list[psutil.Process]) -> bool:
    return all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in processes)


def test_dev_says_what_runs_and_what_to_try(dev: Dev) -> None:
    assert dev.address in dev.said
    assert "backburner run ask" in dev.said
    assert (dev.folder / ".backburner" / "address").read_text().strip() == dev.address
    assert (dev.folder / ".backburner" / "logs" / "scheduler.log").exists()


def test_a_run_is_followed_to_its_result(dev: Dev) -> None:
    code, out, err = call(dev.folder, "run", "build", "n=4", "--label", "team=web")
    assert (code, out) == (0, "4\n")
    assert "slow" in err
    assert "4 done" in err


def test_the_same_key_is_the_same_run(dev: Dev) -> None:
    first = json.loads(call(dev.folder, "run", "build", "n=1", "--key", "once", "--json")[1])
    second = json.loads(call(dev.folder, "run", "build", "n=1", "--key", "once", "--json")[1])
    assert first["run_id"] == second["run_id"]
    code, _, err = call(dev.folder, "run", "build", "n=2", "--key", "once")
    assert (code, "RUN_KEY_CONFLICT" in err) == (2, True)


def test_ends_have_their_exit_codes(dev: Dev) -> None:
    code, _, err = call(dev.folder, "run", "fails")
    assert (code, "no bread today" in err) == (1, True)
    code, _, err = call(dev.folder, "run", "breaks")
    assert (code, "RuntimeError" in err) == (3, True)
    assert call(dev.folder, "run", "build", "m=1")[0] == 2
    assert call(dev.folder, "run", "nothing")[0] == 2
    assert call(dev.folder, "run", "sleeps", "--key", "too-long", "--timeout", "1")[0] == 5
    assert call(dev.folder, "cancel", "key:too-long")[0] == 0
    assert call(dev.folder, "watch", "key:too-long")[0] == 4


def test_an_approval_is_found_and_answered(dev: Dev) -> None:
    run_id = call(dev.folder, "run", "ask", "--detach")[1].strip()
    dev.wait_for(lambda: "Deploy?" in call(dev.folder, "ps", "--effects", "--state", "waiting")[1])
    code, out, _ = call(dev.folder, "resolve", f"{run_id}/approve", "--choice", "yes", "--actor", "ada")
    assert (code, out) == (0, "effect approve: succeeded\n")
    assert call(dev.folder, "watch", run_id)[:2] == (0, "yes by ada\n")


def test_output_journal_and_effects_can_be_looked_at(dev: Dev) -> None:
    run_id = json.loads(call(dev.folder, "run", "build", "--json")[1])["run_id"]
    code, out, err = call(dev.folder, "logs", f"{run_id}/slow", "-f")
    assert (code, out, err) == (0, "begun\ndone\n", "to-stderr\n")
    rows = [json.loads(line) for line in call(dev.folder, "journal", run_id, "--json")[1].splitlines()]
    assert [int(row["seq"]) for row in rows] == list(range(1, len(rows) + 1))
    assert (rows[0]["type"], rows[-1]["type"]) == ("EVENT_TYPE_RUN_CREATED", "EVENT_TYPE_RUN_COMPLETED")
    shown = call(dev.folder, "show", run_id)[1]
    assert "COMPLETED" in shown
    assert "double/0" in shown
    assert "shell 0/8" in call(dev.folder, "executors")[1]
    assert run_id in call(dev.folder, "ps", "--process", "build")[1]


@pytest.mark.invariant("I9")
def test_a_watch_from_the_beginning_has_every_event_once(dev: Dev) -> None:
    run_id = json.loads(call(dev.folder, "run", "build", "--json")[1])["run_id"]
    frames = [json.loads(line) for line in call(dev.folder, "watch", run_id, "--after", "0", "--json")[1].splitlines()]
    seqs = [int(frame["event"]["seq"]) for frame in frames if "event" in frame]
    assert seqs == list(range(1, len(seqs) + 1))
    assert "end" in frames[-1]


def test_the_port_of_another_is_a_clear_error(dev: Dev, tmp_path: Path) -> None:
    code, _, err = call(tmp_path, "dev", "--listen", dev.address)
    assert code == 1
    assert f"cannot listen on {dev.address}" in err


def test_an_address_of_metrics_that_is_none_or_taken_is_told_before_anything_is_started(
    dev: Dev, tmp_path: Path
) -> None:
    for address, said in (("nowhere", "--metrics-address 'nowhere' is not HOST:PORT"),
                          (dev.address, f"cannot listen on {dev.address}")):  # fmt: skip
        code, _, err = call(tmp_path, "dev", "--listen", f"127.0.0.1:{free_port()}", "--metrics-address", address)
        assert code == 1
        assert said in err
        assert "starting Postgres" not in err


def test_metrics_of_both_services_are_side_by_side(tmp_path: Path) -> None:
    port = free_port()
    running = Dev(tmp_path, "--metrics-address", f"127.0.0.1:{port}").wait_until_up()
    try:
        for number, name in ((port, "backburner_journal_up"), (port + 1, "backburner_executor_up")):
            with urllib.request.urlopen(f"http://127.0.0.1:{number}/metrics", timeout=60) as answer:
                assert f"{name} 1.0" in answer.read().decode()
    finally:
        running.process.send_signal(signal.SIGINT)
        assert running.wait() == 0


def test_a_second_one_in_the_same_folder_is_told_who_is_there_and_does_no_harm(dev: Dev) -> None:
    code, _, err = call(dev.folder, "dev", "--listen", f"127.0.0.1:{free_port()}")
    assert code == 1
    assert f"is in use by a `backburner dev` (process {dev.process.pid}, at {dev.address})" in err
    assert "--data-dir DIR" in err
    assert call(dev.folder, "ps")[0] == 0  # it is still found


@pytest.mark.crash
def test_ctrl_c_stops_everything_and_data_is_kept(tmp_path: Path) -> None:
    running = Dev(tmp_path).wait_until_up()
    call(tmp_path, "run", "sleeps", "--detach")
    call(tmp_path, "run", "build", "--key", "kept")
    running.wait_for(lambda: asleep(running.children()))
    below = running.children()
    running.process.send_signal(signal.SIGINT)
    assert running.wait() == 0
    stops = ["stopping the executor", "stopping the scheduler", "stopping Postgres"]
    assert sorted(stops, key=running.said.index) == stops
    running.wait_for(lambda: none_alive(below))
    assert not (tmp_path / ".backburner" / "address").exists()
    again = Dev(tmp_path).wait_until_up()
    try:
        assert call(tmp_path, "show", "key:kept")[0] == 0
    finally:
        again.end()


@pytest.mark.crash
def test_a_second_ctrl_c_forces(tmp_path: Path) -> None:
    running = Dev(tmp_path, "--ephemeral").wait_until_up()
    below = running.children()
    for child in below:
        if "executor_service" in " ".join(child.cmdline()):
            child.suspend()  # it cannot obey
    running.process.send_signal(signal.SIGINT)
    running.wait_for(lambda: "stopping the executor" in running.said)
    running.process.send_signal(signal.SIGINT)
    running.wait()
    running.wait_for(lambda: none_alive(below))


@pytest.mark.crash
def test_a_service_that_dies_is_named_and_the_rest_is_stopped(tmp_path: Path) -> None:
    running = Dev(tmp_path, "--ephemeral").wait_until_up()
    below = running.children()
    next(child for child in below if child.cmdline()[-1:] == ["scheduler_service"]).kill()
    assert running.wait() == 1
    assert "the scheduler ended by itself (signal SIGKILL)" in running.said
    running.wait_for(lambda: none_alive(below))


@pytest.mark.crash
def test_nothing_is_left_of_a_dev_that_was_killed(tmp_path: Path) -> None:
    running = Dev(tmp_path).wait_until_up()
    call(tmp_path, "run", "sleeps", "--detach")
    running.wait_for(lambda: asleep(running.children()))
    below = running.children()
    running.process.kill()
    running.wait()
    running.wait_for(lambda: none_alive(below))
