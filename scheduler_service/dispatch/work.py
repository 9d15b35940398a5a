"""What dispatch has to know of a requested effect, apart from what it is."""

from collections.abc import Mapping
from dataclasses import dataclass

#: Kinds that an executor runs, and the pool whose slots they take.
POOLS = {"SHELL": "shell", "FUNCTION": "functions", "AGENT": "agents"}


@dataclass(frozen=True, slots=True)
class Work:
    """What decides where an effect can run."""

    kind: str
    name: str
    pool: str
    #: Alternatives, the preferred one first: `shell`, `function/<name>`, `agent/<harness>`.
    capabilities: tuple[str, ...]
    background: bool
    executor_labels: Mapping[str, str]
    total_timeout_s: float | None
    sleeps: bool
    namespace: str = "default"
    #: Executor that has the session which the work continues. Empty: none.
    continues_on: str = ""


def harness_of(capability: str) -> str:
    """Harness that a capability stands for: `function/a.b` is `function`, `agent/codex` is `codex`."""
    head, _, tail = capability.partition("/")
    return tail if head == "agent" else head
