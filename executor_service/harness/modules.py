"""Loads harness modules: Python modules whose function `harnesses(host)` brings harnesses of agents."""

import importlib
from collections.abc import Sequence
from typing import Final

from executor_service.errors import StartError
from executor_service.harness.agent import AgentEffects, AgentHarness, Host

#: Kinds of work that have a harness of their own.
RESERVED: Final = frozenset({"shell", "function", ""})


def load_harnesses(modules: Sequence[str], host: Host) -> list[AgentEffects]:
    """The harnesses of the modules. Raises StartError that names the module and what is wrong with it."""
    found: dict[str, str] = {}
    loaded = []
    for module in modules:
        for agent in _harnesses_of(module, host):
            if agent.name in RESERVED or agent.name in found:
                taken = f"already brought by {found[agent.name]!r}" if agent.name in found else "not free"
                raise StartError(f"harness module {module!r} brings a harness named {agent.name!r}, which is {taken}")
            found[agent.name] = module
            loaded.append(AgentEffects(agent, host))
    return loaded


def _harnesses_of(module: str, host: Host) -> list[AgentHarness]:
    try:
        imported = importlib.import_module(module)
    except Exception as error:
        raise StartError(f"cannot import harness module {module!r}: {type(error).__name__}: {error}") from error
    bring = getattr(imported, "harnesses", None)
    if not callable(bring):
        raise StartError(f"harness module {module!r} has no function `harnesses(host)`: see harness/agent.py")
    try:
        return list(bring(host))
    except Exception as error:
        raise StartError(f"harness module {module!r} failed: {type(error).__name__}: {error}") from error
