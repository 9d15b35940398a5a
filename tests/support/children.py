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

#: Writes lines to stdout, `argv[1]` megabytes of them a second (0: as fast as it can), until somebody ends it.
FLOOD_AT: Final = """
import os, sys, time
rate, block, began, written = int(sys.argv[1]) * 1000000, b"0123456789abcde\\n" * 4096, time.monotonic(), 0
while True:
    written += os.write(1, block)
    ahead = written / rate - (time.monotonic() - began) if rate else 0
    if ahead > 0:
        time.sleep(ahead)
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
    heard, say = os.pipe()
    if os.fork() > 0:
        os.read(heard, 1)
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.write(2, b"pid=%d\\n" % os.getpid())
    os.write(say, b"!")
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


#: Starts a daemon that nothing of its child can be seen on: double fork, a session of its own, another program with an
#: empty environment, deaf to TERM; it holds stdout and stderr. The child says the daemon's pid, and ignores TERM too
#: (`argv[1]` = stay) or exits (leave).
HIDDEN: Final = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() > 0:
        os._exit(0)
    os.setpgid(0, 0)
    os.write(2, b"pid=%d\\n" % os.getpid())
    os.execve(sys.executable, [sys.executable, "-S", "-E", "-c", "import time; time.sleep(300)"], {})
os.wait()
if sys.argv[1] == "stay":
    time.sleep(300)
"""

#: A hydra of `argv[1]` heads: a chain of processes, each the leader of its own session, each starting another one the
#: moment that the one below it dies. Says the pids.
HYDRA: Final = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def grow(depth):
    os.write(2, b"pid=%d\\n" % os.getpid())
    while depth > 0:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            grow(depth - 1)
        os.waitpid(pid, 0)
    time.sleep(300)
grow(int(sys.argv[1]))
"""

#: Does to the process above its child's, which keeps it, what `argv[1]` says (a signal's number), and goes on (`stay`)
#: or exits (`leave`); a hidden daemon goes on in either case.
PATRICIDE: Final = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    os.write(2, b"pid=%d\\n" % os.getpid())
    os.execve(sys.executable, [sys.executable, "-S", "-E", "-c", "import time; time.sleep(300)"], {})
time.sleep(0.2)
os.kill(os.getppid(), int(sys.argv[1]))
if sys.argv[2] == "stay":
    time.sleep(300)
"""

#: Gives its stdout to whoever listens at the socket `argv[1]`, and exits.
GIVER: Final = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.connect(sys.argv[1])
    socket.send_fds(listener, [b"."], [1])
os.write(1, b"done\\n")
"""
