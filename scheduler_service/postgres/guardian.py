"""The program between the owner of an embedded Postgres and the server: it ends the server when the owner is gone.

Runs as a process of its own: `python -I -S guardian.py ORDER`, with the standard library only. Its stdin is a pipe
that nobody writes to: when the owner stops, crashes or is killed with -9, the pipe closes and the server is shut
down in order. The server's process id goes to stdout, the server's log to stderr.

Why not PR_SET_PDEATHSIG alone: it fires when the *thread* that started the server ends, and macOS has no such thing.
It does guard this program itself, which has one thread.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from typing import Final, TypedDict

# Fast shutdown, then immediate shutdown (recovery at the next start), then what nothing survives.
ESCALATION: Final = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))

PR_SET_PDEATHSIG: Final = 1
PR_SET_SECUREBITS: Final = 28
SECBIT_NO_SETUID_FIXUP: Final = 1 << 2
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2
CAP_DAC_OVERRIDE: Final = 1
CAPABILITY_VERSION_3: Final = 0x20080522


class Order(TypedDict):
    """What to run, and as whom."""

    argv: list[str]
    account: tuple[int, int] | None  # uid and gid to change to
    pass_permissions: bool  # the account cannot reach the files by its own rights
    pass_fds: list[int]
    stdin: str  # the file that the program reads


def main() -> int:
    """Run the ordered program until it ends or its owner is gone; return its exit code."""
    order: Order = json.loads(sys.argv[1])
    wake = _signals_as_bytes()
    with open(order["stdin"], "rb") as stdin:
        child = subprocess.Popen(
            order["argv"],
            stdin=stdin,
            stdout=sys.stderr.fileno(),
            pass_fds=order["pass_fds"],
            start_new_session=True,  # Ctrl-C in a terminal is for the owner, who then stops the server in order
            preexec_fn=_Transition(order),
        )
    for fd in order["pass_fds"]:
        os.close(fd)  # the lock that travels in it is the server's, not ours
    print(child.pid, flush=True)
    return _watch(child, wake)


def _signals_as_bytes() -> int:
    """Make signals readable from a descriptor, so that one `select` waits for the owner and for the child."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return wake_read


def _watch(child: subprocess.Popen[bytes], wake: int) -> int:
    while child.poll() is None:
        readable, _, _ = select.select([sys.stdin.fileno(), wake], [], [])
        told_to_stop = wake in readable and any(number != signal.SIGCHLD for number in os.read(wake, 64))
        if sys.stdin.fileno() in readable or told_to_stop:
            return _end(child)
    return child.returncode


def _end(child: subprocess.Popen[bytes]) -> int:
    for number, patience in ESCALATION:
        child.send_signal(number)
        try:
            return child.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    return 1


class _Transition:
    """Turns the forked child into the ordered account, in the child, before the program is executed.

    `preexec_fn` is safe here and nowhere else in the project: this process has one thread and no gRPC in it.
    """

    def __init__(self, order: Order) -> None:
        self._account = order["account"]
        self._pass_permissions = order["pass_permissions"]
        self._guardian = os.getpid()
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __call__(self) -> None:
        if self._account is not None:
            self._change_account(*self._account)
        if sys.platform == "linux":
            self._die_with_guardian()

    def _change_account(self, uid: int, gid: int) -> None:
        if self._pass_permissions:
            # Changing the account takes no capability away, and access(2), with which Postgres looks for its own
            # programs, heeds them too.
            self._prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
        if self._pass_permissions:
            self._keep_file_access()

    def _keep_file_access(self) -> None:
        """Keep root's right to pass closed folders, and nothing else of root.

        A project below /root is closed to every other account. The alternatives are to open the user's folders to the
        world, or to refuse to work there.
        """
        mask = 1 << CAP_DAC_OVERRIDE
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
        # effective, permitted, inheritable: once for the low 32 capabilities, once for the high ones
        sets = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
        if self._libc.capset(header, sets) != 0:
            raise OSError(ctypes.get_errno(), "capset failed")
        self._prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE)

    def _die_with_guardian(self) -> None:
        self._prctl(PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != self._guardian:
            raise RuntimeError("the guardian ended before its child began")

    def _prctl(self, option: int, *arguments: int) -> None:
        padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
        if self._libc.prctl(option, *padded) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


if __name__ == "__main__":
    sys.exit(main())
