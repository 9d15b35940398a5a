"""The parts of asyncio's loop interface that do I/O, start threads or leave the loop: each says what to do instead."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from scheduler_service.authoring.errors import DeterminismError
from scheduler_service.replay.guards import process_line

_EFFECT: Final = "an effect: a @bb.function, or bb.shell"
OUTSIDE: Final = "the loop as it is: the scheduler runs it"

_INSTEAD: Final = {
    "run_in_executor": _EFFECT, "set_default_executor": _EFFECT, "shutdown_default_executor": _EFFECT,
    "call_soon_threadsafe": "ctx.signal, or the result of an effect: threads cannot reach a process",
    "getaddrinfo": _EFFECT, "getnameinfo": _EFFECT, "create_connection": _EFFECT, "create_server": _EFFECT,
    "create_datagram_endpoint": _EFFECT, "create_unix_connection": _EFFECT, "create_unix_server": _EFFECT,
    "connect_accepted_socket": _EFFECT, "start_tls": _EFFECT, "sendfile": _EFFECT,
    "sock_accept": _EFFECT, "sock_connect": _EFFECT, "sock_recv": _EFFECT, "sock_recv_into": _EFFECT,
    "sock_recvfrom": _EFFECT, "sock_recvfrom_into": _EFFECT, "sock_sendall": _EFFECT, "sock_sendto": _EFFECT,
    "sock_sendfile": _EFFECT, "connect_read_pipe": _EFFECT, "connect_write_pipe": _EFFECT,
    "subprocess_exec": "bb.shell", "subprocess_shell": "bb.shell",
    "add_reader": _EFFECT, "remove_reader": _EFFECT, "add_writer": _EFFECT, "remove_writer": _EFFECT,
    "add_signal_handler": "ctx.signals", "remove_signal_handler": "ctx.signals",
    "run_forever": OUTSIDE, "run_until_complete": OUTSIDE, "stop": OUTSIDE, "close": OUTSIDE,
    "shutdown_asyncgens": OUTSIDE, "set_debug": OUTSIDE, "set_exception_handler": "try/except",
    "default_exception_handler": "try/except", "set_task_factory": "asyncio.create_task",
}  # fmt: skip


def _refusing(name: str, instead: str) -> Any:
    def refuse(self: Any, *_args: Any, **_kwargs: Any) -> Any:
        raise DeterminismError(f"loop.{name}()", instead, process_line())

    refuse.__name__ = name
    refuse.__doc__ = f"Refused: raises DeterminismError. Use {instead}."
    return refuse


class ForbiddenCalls(asyncio.AbstractEventLoop):
    """Net (a): every loop method that a process must not reach raises DeterminismError."""

    def get_task_factory(self) -> None:
        """None: a task factory cannot be set."""
        return

    def get_exception_handler(self) -> None:
        """None: an exception handler cannot be set."""
        return


for _name, _instead in _INSTEAD.items():
    setattr(ForbiddenCalls, _name, _refusing(_name, _instead))
# AbstractEventLoop is no ABC, but type checkers know its abstract methods: all are set above or in the loop.
