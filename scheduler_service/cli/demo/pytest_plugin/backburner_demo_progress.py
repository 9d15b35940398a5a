"""A pytest plugin that reports percent and test by the line protocol of executors (README). Standard library only.

It lies in a folder of its own, because that folder goes on the PYTHONPATH of somebody else's test run.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Final

_PIPE: Final = os.environ.get("BACKBURNER_PROGRESS_FD", "")
_PERIOD_SECONDS: Final = 0.25


class _Run:
    total = 0
    done = 0
    said_at = 0.0


def pytest_collection_finish(session: Any) -> None:
    """Tests are counted."""
    _Run.total = len(session.items)


def pytest_runtest_logfinish(nodeid: str) -> None:
    """A test is done."""
    _Run.done += 1
    now = time.monotonic()
    if now - _Run.said_at >= _PERIOD_SECONDS or _Run.done == _Run.total:
        _Run.said_at = now
        percent = 100 * _Run.done / max(_Run.total, 1)
        _report(percent=round(percent, 1), step=nodeid.partition("::")[0])


def _report(**fields: Any) -> None:
    if _PIPE:  # without an executor there is nobody to tell
        os.write(int(_PIPE), f"{json.dumps(fields)}\n".encode())
