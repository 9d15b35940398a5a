"""The scripted model server for tests; `python -m tests.support.model_server --scenario FILE` runs it alone.

Its home is the package: `backburner demo agents` needs one too.
"""

import sys

from scheduler_service.cli.demo.agents.model_server import (
    Aside,
    Bash,
    Fault,
    Hang,
    ModelServer,
    Request,
    Scenario,
    ScenarioError,
    Tool,
    Turn,
    Usage,
    Write,
)
from scheduler_service.cli.demo.agents.model_server.__main__ import main

__all__ = [
    "Aside", "Bash", "Fault", "Hang", "ModelServer", "Request", "Scenario", "ScenarioError", "Tool", "Turn", "Usage",
    "Write", "asked_and_answered",
]  # fmt: skip


def asked_and_answered(command: str = "echo hello", answer: str = "All is done.") -> Scenario:
    """The scenario of most tests: one shell command, then an answer; the two cost differently."""
    return Scenario(
        turns=(Turn(call=Bash(command)), Turn(text=answer)),
        usage=(Usage(input=101, cached=40, output=23), Usage(input=157, cached=99, output=11)),
    )


if __name__ == "__main__":
    sys.exit(main())
