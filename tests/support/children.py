"""Real child programs for the executor's tests. Each is a Python script for `python -c`, quick to start (`-S -E`)."""

import sys
from typing import Any, Final

import psutil


def program(source: str, *args: str) -> dict[str, Any]:
    """The shell work that runs a program."""
    return {"argv": [sys.executable, "-S", "-E", "-c", source, *args]}


#: Writes `argv[1]` bytes to stdout as fast as it can: `0123456789` again and again.
FLOOD: Final = """
import os, sys
left, block = int(sys.argv[1]), b"0123456789" * 6553
while left > 0:
    left -= os.write(1, block[:left])
"""

#: Says its pid on stderr, ignores TERM, INT and HUP, and sleeps.
STUBBORN: Final = """
import os, signal, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
os.write(2, b"pid=%d\\n" % os.getpid())
time.sleep(300)
"""

#: Starts a daemon as daemons do (setsid, double fork, own group) that ignores TERM; says the daemon's pid. With
#: `argv[1]` = stay the child sleeps on; else it exits at once. The daemon keeps stdout open.
ESCAPEE: Final = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() > 0:
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.write(2, b"pid=%d\\n" % os.getpid())
    time.sleep(300)
    os._exit(0)
os.wait()
if sys.argv[1] == "stay":
    time.sleep(300)
else:
    os.write(1, b"done\\n")
"""

#: Leaves a grandchild in its own group behind that holds stdout and stderr open; says its pid, exits at once.
HOLDER: Final = """
import os, time
pid = os.fork()
if pid == 0:
    time.sleep(300)
    os._exit(0)
os.write(2, b"pid=%d\\n" % pid)
os.write(1, b"done\\n")
"""

#: Forks a tree of `argv[1]` processes, every second one in a session of its own, and sleeps.
TREE: Final = """
import os, sys, time
for number in range(int(sys.argv[1])):
    if os.fork() > 0:
        break
    if number % 2:
        os.setsid()
os.write(2, b"pid=%d\\n" % os.getpid())
time.sleep(300)
"""


def alive(pid: int) -> bool:
    """True when the process exists and is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pids_in(text: bytes | str) -> list[int]:
    """The process ids that children said."""
    said = text.decode() if isinstance(text, bytes) else text
    return [int(line.removeprefix("pid=")) for line in said.splitlines() if line.startswith("pid=")]
