"""Keepers that die while they start their child: what may have begun is ended, and never taken for unstarted."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from executor_service import keepers
from executor_service.descendants import Reaper, become_subreaper
from executor_service.harness.child import spawn_failed
from executor_service.keepers import Keepers, SpawnFailed
from executor_service.process_group import Command, start_group
from tests.support.children import alive
from tests.support.eventually import eventually

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere nobody inherits orphans"),
    pytest.mark.invariant("I3"),
]

#: The program of keepers, in which each is killed as soon as it would say something with this word in it. Before it
#: says that its child is there it waits until that works.
DYING = """
import os, signal, sys, time
sys.path.insert(0, {folder!r})
import keeper
say = keeper.Keeper._say

def die(self, message):
    if {word!r} in message:
        while {word!r} == "pid" and not os.path.exists({begun!r}):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    say(self, message)

keeper.Keeper._say = die
keeper.main(int(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Keepers]:
    become_subreaper()
    made = Keepers(Reaper())
    yield made
    await made.close()


async def failed_start(made: Keepers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str) -> SpawnFailed:
    program, begun = tmp_path / "dying.py", tmp_path / "begun"
    folder = str(Path(keepers.__file__).parent)
    program.write_text(DYING.format(folder=folder, word=word, begun=str(begun)))
    monkeypatch.setattr(keepers, "_PROGRAM", program)
    argv = ["/bin/sh", "-c", f"setsid sleep 300 & echo $$ $! > {begun}.new; mv {begun}.new {begun}; exec sleep 300"]
    with pytest.raises(SpawnFailed) as raised:
        await start_group(Command(argv, "/", {}), "early/e/1", made, "", [lambda _: None] * 3)
    return raised.value


async def test_a_child_that_may_have_begun_is_ended_and_counts_as_begun(
    running: Keepers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = await failed_start(running, tmp_path, monkeypatch, "pid")
    begun = [int(pid) for pid in (tmp_path / "begun").read_text().split()]
    try:
        assert [pid for pid in begun if alive(pid)] == []
    finally:
        for pid in filter(alive, begun):
            os.kill(pid, signal.SIGKILL)
    attempt: Any = SimpleNamespace(has_started=False)
    outcome = spawn_failed(error, attempt)
    assert (outcome.reason, outcome.untouched, outcome.death_proven) == ("SPAWN_FAILED", False, False)
    assert "nobody knows whether that had begun its work" in outcome.message
    await eventually(lambda: not running._pids)


async def test_a_child_whose_keeper_died_before_it_could_start_it_has_done_nothing(
    running: Keepers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = await failed_start(running, tmp_path, monkeypatch, "keeper")
    assert not (tmp_path / "begun").exists()
    attempt: Any = SimpleNamespace(has_started=False)
    outcome = spawn_failed(error, attempt)
    assert (outcome.untouched, outcome.death_proven) == (True, None)
