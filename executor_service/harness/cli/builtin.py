"""The agent CLIs that come with the executor, and those that a file describes."""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.errors import StartError
from executor_service.harness.agent import AgentEffects, Host
from executor_service.harness.cli.adapter import Adapter
from executor_service.harness.cli.claude_code import ClaudeCode
from executor_service.harness.cli.codex import Codex
from executor_service.harness.cli.command import load_commands
from executor_service.harness.cli.copilot import Copilot
from executor_service.harness.cli.discovery import Found, discover
from executor_service.harness.cli.gemini_cli import GeminiCli
from executor_service.harness.cli.homes import Homes
from executor_service.harness.cli.opencode import OpenCode
from executor_service.harness.cli.pi import Pi
from executor_service.harness.cli.prices import load_prices
from executor_service.harness.cli.qwen_code import QwenCode
from executor_service.harness.cli.runner import CliAgent
from executor_service.settings import Settings

log = logging.getLogger(__name__)

#: Every CLI that is known, in the order that they are shown in.
ADAPTERS: Final[Sequence[Adapter]] = (
    ClaudeCode(), Codex(), GeminiCli(), OpenCode(), Pi(), QwenCode(), Copilot(),
)  # fmt: skip
ALL: Final = "all"
NONE: Final = "none"


class BuiltIn:
    """The CLIs of this machine."""

    def __init__(self, settings: Settings, found: Sequence[Found]) -> None:
        self._settings = settings
        self._found = found

    @property
    def checks(self) -> list[pb.HarnessCheck]:
        """What was found of each, whether it can be used or not."""
        return [found.check for found in self._found]

    def agents(self, host: Host, taken: Collection[str], incarnation: str) -> list[AgentEffects]:
        """Those that are here, but for those whose name a harness module has taken."""
        prices = load_prices(self._settings.prices)
        agents = []
        for found in self._found:
            if found.program is None or found.adapter.name in taken:
                continue
            if found.check.remedy:
                level = logging.INFO if found.check.version_known else logging.WARNING
                log.log(level, "harness %s: %s", found.adapter.name, found.check.remedy)
            homes = Homes(self._settings.agent_homes, host.store(found.adapter.name), incarnation)
            agents.append(AgentEffects(CliAgent(found.adapter, found.program, host, homes, prices), host))
        return agents


async def find_builtin(settings: Settings) -> BuiltIn:
    """Looks for the CLIs that the settings ask for. Raises StartError for a name that is not known, or without HOME."""
    adapters = {adapter.name: adapter for adapter in (*ADAPTERS, *load_commands(settings.harness_commands))}
    wanted = _wanted(settings.agents, adapters)
    paths = _paths(settings.harness_paths, adapters)
    return BuiltIn(settings, await discover(wanted, paths, _home()) if wanted else [])


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise StartError(
            f"agent CLIs have no home: {error} Set HOME, or want none of them with BACKBURNER_AGENTS={NONE}"
        ) from error


def _wanted(names: Sequence[str], adapters: Mapping[str, Adapter]) -> list[Adapter]:
    if list(names) == [ALL]:
        return list(adapters.values())
    if list(names) == [NONE]:
        return []
    for name in names:
        if name not in adapters:
            known = ", ".join((*adapters, ALL, NONE))
            raise StartError(f"BACKBURNER_AGENTS: there is no harness {name!r}; there are: {known}")
    return [adapters[name] for name in dict.fromkeys(names)]


def _paths(given: Sequence[str], adapters: Mapping[str, Adapter]) -> dict[str, str]:
    paths = dict(entry.split("=", 1) for entry in given)
    for name in paths:
        if name not in adapters:
            raise StartError(
                f"BACKBURNER_HARNESS_PATHS: there is no harness {name!r}; there are: {', '.join(adapters)}"
            )
    return paths
