"""The executor's environment and memory are hidden from others of its user, and it finds all that it looks for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from executor_service import keeper
from tests.support.services import ROOT

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has it")

#: A process of an ordinary user that hides when told to, a child of it, and somebody else of that user who looks.
LOOKS = """
import ctypes, os, subprocess, sys
from executor_service import cgroups, descendants, hidden, markers, keeper
prctl = ctypes.CDLL(None).prctl
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    prctl(4, 1, 0, 0, 0)  # as a program is that an ordinary user has started
if sys.argv[1] == "hide":
    assert hidden.hide()
hider = os.getpid()
child = subprocess.Popen(["/bin/sleep", "60"], env={"BACKBURNER_ATTEMPT": "i/e/1"}, start_new_session=True)
looker = os.fork()
if looker == 0:
    for place in ("environ", "mem"):
        try:
            with open(f"/proc/{hider}/{place}", "rb") as file:
                print(place, b"hidden-secret" in file.read() if place == "environ" else "opened")
        except PermissionError:
            print(place, "refused")
    sys.stdout.flush()
    os._exit(0)
os.waitpid(looker, 0)
assert child.pid in descendants.own_children()
assert descendants._stat(child.pid).session == child.pid
assert [pid for pid, parent, _ in keeper._processes() if parent == hider] == [child.pid]
open("/proc/self/cgroup").close(); open("/proc/self/mountinfo").close(); os.close(os.pidfd_open(hider))
while markers.marked("i/e/1") != [child.pid]:
    pass  # it becomes what it is to be: then it is as open as any program
markers.kill_marked(child.pid, "i/e/1")
assert child.wait() == -9
subprocess.run(["/bin/true"], pass_fds=(1,), check=True)
"""


@pytest.mark.parametrize(
    ("how", "seen"), [("hide", ["environ refused", "mem refused"]), ("as it is", ["environ True", "mem opened"])]
)
def test_others_of_the_same_user_see_neither_environment_nor_memory(how: str, seen: list[str]) -> None:
    env = {**os.environ, "DATABASE_URL": "postgresql://ann:hidden-secret@host/db"}
    done = subprocess.run(
        [sys.executable, "-c", LOOKS, how], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == seen


STARTS = """
import ctypes
import executor_service.__main__ as service
async def show(_settings):
    print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
service.run_executor = show
service.main()
"""

KEEPS = """
import ctypes, os, runpy, socket, sys
def show(*_):
    print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
    return b"", [], 0, None
socket.recv_fds = show
ours, theirs = socket.socketpair()
ours.send(b".")
sys.argv = ["keeper", str(theirs.detach()), str(os.getppid())]
runpy.run_path(%r, run_name="__main__")
"""


@pytest.mark.parametrize("program", [STARTS, KEEPS % keeper.__file__])
def test_executor_and_keepers_are_not_dumpable(program: str, tmp_path: Path) -> None:
    env = {**os.environ, "DATABASE_URL": "postgresql://nowhere/db", "BACKBURNER_STATE_DIR": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout == "0\n", said.stderr
