"""A model server on loopback that plays a script, for agents without a key: nothing it says comes from a model.

It speaks Anthropic Messages, OpenAI Chat Completions and Responses, and Gemini, streamed or whole. A `Scenario` says
what it answers at each turn of a conversation, how it fails and what it charges; `ModelServer.ledger()` is what it
charged. As a program: `python -m scheduler_service.cli.demo.agents.model_server --scenario FILE`.
"""

from .faults import Fault
from .ledger import Request
from .scenario import Aside, Bash, Hang, Scenario, ScenarioError, Tool, Turn, Usage, Write
from .server import ModelServer

__all__ = [
    "Aside", "Bash", "Fault", "Hang", "ModelServer", "Request", "Scenario", "ScenarioError", "Tool", "Turn", "Usage",
    "Write",
]  # fmt: skip
