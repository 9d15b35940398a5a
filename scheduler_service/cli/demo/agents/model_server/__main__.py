"""`python -m scheduler_service.cli.demo.agents.model_server`: play a scenario until ended by Ctrl-C or SIGTERM."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from .scenario import Scenario, ScenarioError
from .server import ModelServer


def main(arguments: Sequence[str] | None = None) -> int:
    """Print `PORT n` once it listens, and what it charged at the end. 2: the scenario cannot be played."""
    parser = argparse.ArgumentParser(prog="model_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: one that is free, printed")
    parser.add_argument("--scenario", type=Path, help="a JSON file; without it every answer is `Done.`")
    given = parser.parse_args(arguments)
    try:
        scenario = Scenario.of(json.loads(given.scenario.read_text())) if given.scenario else Scenario()
    except (OSError, ValueError, ScenarioError) as error:
        print(f"model_server: {given.scenario}: {error}", file=sys.stderr)
        return 2
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with ModelServer(scenario, port=given.port) as server:
        print(f"PORT {server.port}", flush=True)
        ended.wait()
        print(f"charged: {server.total()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
