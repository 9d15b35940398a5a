"""Ties a service to the command that started it: `python -m scheduler_service.cli.tether MODULE`.

Runs MODULE as `python -m MODULE` would. The owner holds the other end of stdin; when the owner is gone, even by
kill -9, stdin ends and the service is told to stop. Without it a killed `backburner dev` would leave services behind
that wait for a Postgres which is gone too.
"""

import os
import runpy
import signal
import sys
import threading
from typing import Final

_STOP_SECONDS: Final = 5.0


def main() -> None:
    """Run the module named by the first argument."""
    module = sys.argv.pop(1)
    threading.Thread(target=_stop_with_owner, name="tether", daemon=True).start()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _stop_with_owner() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    # Nobody is left who would lose patience: a stop that hangs is ended from here.
    threading.Event().wait(_STOP_SECONDS)
    _kill_tree()


def _kill_tree() -> None:
    from scheduler_service.cli.child import kill_descendants

    kill_descendants(os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
