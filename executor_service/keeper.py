"""The program that keeps children: a keeper for each, which no descendant of its child can leave.

Runs apart from the executor, single-threaded and with the standard library alone, so that it may fork. The executor
asks for a child with one byte and the file descriptors that go with it (`keepers.py`); the program forks a keeper,
and the keeper starts the child. On Linux a keeper is a subreaper: whatever its child starts, and however that leaves
its group, its session, its parent or its environment, becomes a child of the keeper when it is orphaned. So once the
keeper has no child left, which the kernel says (ECHILD), nobody is alive: this is the proof of death.

A keeper obeys one executor. When that is gone, killed with -9 too, it kills all that it keeps and ends; a child that
`outlives` it for some seconds (git, which is to leave no locks behind) may end by itself until then.

Control socket of a keeper, JSON lines. Down: `{"end": seconds, "signal": n}`, once: the signal (by default TERM) to the
child's group, so much time for it, KILL to everybody. Up: `{"keeper": n}`: from now on the child may be there;
`{"pid": n, "keeper": n}` or `{"error": text, "errno": n}`; `{"exit": status}` of the child; `{"gone": "proven"}`, or
"group" where the system has no subreapers and only the group could be looked at, or "alive" when somebody cannot be
killed: the keeper goes on trying.
"""

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

ON_LINUX: Final = sys.platform == "linux"
#: File descriptors of a request: its text, the control socket, stdout, stderr, the progress pipe (without `progress`:
#: what else the child is to hold), and maybe stdin.
FDS_MAX: Final = 6
#: How much of a program's name an error repeats.
_NAME_CHARACTERS_MAX: Final = 1000
#: How long somebody may survive being killed before the executor is told.
KILL_SECONDS_MAX: Final = 10.0

_PR_SET_DUMPABLE: Final = 4
_PR_SET_CHILD_SUBREAPER: Final = 36
_KILL_POLL_SECONDS: Final = 0.002
_KILL_POLL_SECONDS_MAX: Final = 0.5
#: How often the group is looked at while it is given time: its last member may be nobody's child that we hear of.
_GRACE_POLL_SECONDS: Final = 0.02
#: How often the parent is looked at, where a closed socket and the end of the executor do not show.
_PARENT_SECONDS: Final = 5.0


def main(server_fd: int, executor: int) -> None:
    """Forks a keeper for each request, until the executor is gone."""
    server = socket.socket(fileno=server_fd)
    _hide()  # a keeper has the variables of its child in its memory
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are reaped by the system
    watched: list[Any] = [server, *_watch(executor)]
    gc.freeze()  # what is there stays shared with the keepers
    while os.getppid() == executor:
        readable, _, _ = select.select(watched, [], [], _PARENT_SECONDS)
        if server not in readable:
            continue
        request, fds, _, _ = socket.recv_fds(server, 1, FDS_MAX)
        if not request:
            return
        _fork_keeper(server, watched[1:], executor, fds)


def _fork_keeper(server: socket.socket, watched: list[int], executor: int, fds: list[int]) -> None:
    with contextlib.suppress(OSError):  # no process to be had: the closed socket says so
        if os.fork() == 0:
            status = 1
            try:
                server.close()
                Keeper(fds, watched, executor).run()
                status = 0
            finally:
                os._exit(status)
    for fd in fds:
        os.close(fd)


def _watch(pid: int) -> list[int]:
    """What becomes readable when the process ends, where the system has it."""
    try:
        return [os.pidfd_open(pid)]
    except (AttributeError, OSError):
        return []


class Keeper:
    """Keeps one child and everything that it starts."""

    def __init__(self, fds: list[int], watched: list[int], executor: int) -> None:
        os.setsid()  # what is sent to the executor's group is not for keepers
        request, control, *self._work = fds
        self._parents = (os.getppid(), executor)
        self._control: socket.socket | None = socket.socket(fileno=control)
        self._control.setblocking(False)
        self._watched = watched
        self._received = b""
        with open(request, "rb") as file:
            self._request: dict[str, Any] = json.loads(file.read())
        self._cgroup: str = self._request.get("cgroup") or ""
        self._wake = _catch_signals()
        self._subreaper = _become_subreaper()
        self._child = 0
        self._group_gone = False
        self._nobody = False
        self._ending_at: float | None = None
        self._kill_since: float | None = None
        self._kill_pause = _KILL_POLL_SECONDS
        self._said_alive = False

    def run(self) -> None:
        """Starts the child and stays until nobody is alive."""
        self._say({"keeper": os.getpid()})
        try:
            self._child = self._spawn()
        except (OSError, ValueError, TypeError, subprocess.SubprocessError) as error:
            text = f"{self._request['argv'][0][:_NAME_CHARACTERS_MAX]!r} could not be started: {error}"
            self._say({"error": text, "errno": getattr(error, "errno", None) or 0})
            return
        finally:
            for fd in self._work:  # the pipes end when the last of the descendants has closed them
                os.close(fd)
        self._say({"pid": self._child, "keeper": os.getpid()})
        while True:
            self._reap()
            if self._is_over():
                self._say({"gone": "proven" if self._subreaper else "group"})
                return
            self._listen(self._act())

    def _spawn(self) -> int:
        stdout, stderr, report, *stdin = self._work
        asked = self._request
        env = dict(asked["env"])
        if asked.get("progress", True):
            env |= {"BACKBURNER_PROGRESS": f"/dev/fd/{report}", "BACKBURNER_PROGRESS_FD": str(report)}
        self._popen = subprocess.Popen(  # held for ever: thrown away it would take the exit status with it
            asked["argv"],
            cwd=asked["cwd"],
            env=env,
            stdin=stdin[0] if stdin else subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=(report,),
            start_new_session=True,
            preexec_fn=self._enter_cgroup if self._cgroup else None,  # noqa: PLW1509 - there is one thread
        )
        return self._popen.pid

    def _enter_cgroup(self) -> None:
        with open(f"{self._cgroup}/cgroup.procs", "wb", buffering=0) as file:
            file.write(b"0")

    def _reap(self) -> None:
        """Buries who has ended; notes the child's end, and when nobody is left."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._child:
                    self._signal_group(0)  # now: an empty group's id may become another's
                    self._say({"exit": os.waitstatus_to_exitcode(status)})
        except ChildProcessError:
            self._nobody = True

    def _is_over(self) -> bool:
        """True when nobody is left that this keeper can know of."""
        return self._nobody and (self._subreaper or (self._ending_at is not None and not self._signal_group(0)))

    def _act(self) -> float:
        """Does what is due; returns how long there is nothing to do but to listen."""
        now = time.monotonic()
        if self._ending_at is None:
            return _PARENT_SECONDS
        if self._kill_since is None and now < self._ending_at and self._signal_group(0):
            return min(_GRACE_POLL_SECONDS, self._ending_at - now)
        self._kill_since = self._kill_since or now
        if now - self._kill_since > KILL_SECONDS_MAX and not self._said_alive:
            self._said_alive = True
            self._say({"gone": "alive"})
        self._kill_all()
        self._kill_pause = min(self._kill_pause * 1.5, _KILL_POLL_SECONDS_MAX)
        return self._kill_pause

    def _listen(self, seconds: float) -> None:
        """Waits for a command, for somebody's end, or for so long."""
        control = [] if self._control is None else [self._control]
        watched = self._watched if self._control is not None else []
        waited: list[Any] = [self._wake, *control, *watched]
        readable, _, _ = select.select(waited, [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while self._wake in readable and self._wake.recv(4096):
                pass
        if any(fd in readable for fd in watched) or os.getppid() not in self._parents:
            self._abandon()
        elif control and self._control in readable:
            self._receive()

    def _receive(self) -> None:
        assert self._control is not None  # noqa: S101 - it was readable
        try:
            data = self._control.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._abandon()
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, command: dict[str, float]) -> None:
        if self._ending_at is not None:
            return
        self._ending_at = time.monotonic() + command["end"]
        for number in (int(command.get("signal", signal.SIGTERM)), signal.SIGCONT):  # a stopped one cannot hear
            self._signal_group(number)

    def _abandon(self) -> None:
        """The executor is gone: nobody is to be told, and nobody may live, or no longer than it was asked for."""
        if self._control is None:
            return
        self._control.close()
        self._control = None
        latest = time.monotonic() + float(self._request.get("outlives", 0))
        self._ending_at = latest if self._ending_at is None else min(self._ending_at, latest)

    def _signal_group(self, number: int) -> bool:
        """Signals the child's group. False: it is empty, and from then on its id may be another's."""
        if self._group_gone:
            return False
        try:
            os.killpg(self._child, number)
        except ProcessLookupError:
            self._group_gone = True
        except PermissionError:  # somebody in it runs as another user
            return True
        return not self._group_gone

    def _kill_all(self) -> None:
        if self._cgroup:
            with contextlib.suppress(OSError), open(f"{self._cgroup}/cgroup.kill", "wb", buffering=0) as file:
                file.write(b"1")  # at once, also who forks as fast as it can
        self._signal_group(signal.SIGKILL)
        found = self._descendants()
        for group in set(found.values()):  # a whole group dies at once: no member gets away by forking
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGKILL)
        for pid in found:
            _signal_one(pid, signal.SIGKILL)

    def _descendants(self) -> dict[int, int]:
        """Groups of all living descendants, by process id."""
        children: dict[int, list[tuple[int, int]]] = {}
        for pid, parent, group in _processes():
            children.setdefault(parent, []).append((pid, group))
        found: dict[int, int] = {}
        waiting = [os.getpid()]
        while waiting:
            for pid, group in children.pop(waiting.pop(), ()):
                found[pid] = group
                waiting.append(pid)
        return found

    def _say(self, message: dict[str, Any]) -> None:
        if self._control is not None:
            with contextlib.suppress(OSError):  # the other end is closed: `_receive` sees it
                self._control.send(json.dumps(message).encode() + b"\n")


def _processes() -> Iterator[tuple[int, int, int]]:
    """Process id, parent and group of everything that lives; nothing where the system has no /proc."""
    if not ON_LINUX:
        return
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
                state, parent, group = file.read().rpartition(b")")[2].split()[:3]
                if state not in b"ZX":
                    yield int(entry), int(parent), int(group)


def _signal_one(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def _catch_signals() -> socket.socket:
    """Makes the end of a child readable. What asks programs to end is not for keepers; handlers do not outlive exec."""
    ours, wake = socket.socketpair()
    for end in (ours, wake):
        end.setblocking(False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, _heard)
    signal.set_wakeup_fd(wake.detach(), warn_on_full_buffer=False)
    return ours


def _heard(_number: int, _frame: object) -> None:
    """The wakeup descriptor tells."""


def _hide() -> None:
    """As `hidden.py` does it: this program has the standard library alone."""
    if ON_LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _become_subreaper() -> bool:
    if not ON_LINUX:
        return False
    return int(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) == 0


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
