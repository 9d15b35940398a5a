"""A service whose wall clock can be set from outside: `CHAOS_SERVICE` names its module, `CHAOS_CLOCK` a file.

The file holds how many seconds the clock is off; where there is none it is right. Only `time.time` and `time.time_ns`
are off, not what gRPC reads or `datetime.now`: the kernel gives all processes one wall clock.
"""

import contextlib
import os
import runpy
import time
from pathlib import Path

_CLOCK = Path(os.environ["CHAOS_CLOCK"])
_right = time.time_ns


def _off_ns() -> int:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(float(_CLOCK.read_text()) * 1e9)
    return 0


if __name__ == "__main__":
    time.time_ns = lambda: _right() + _off_ns()
    time.time = lambda: time.time_ns() / 1e9
    runpy.run_module(os.environ["CHAOS_SERVICE"], run_name="__main__", alter_sys=True)
