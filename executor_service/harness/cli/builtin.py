"""The agent CLIs that come with the executor, and those that a file describes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Final

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.errors import StartError
from executor_service.harness.agent import AgentEffects, Host
from executor_service.harness.cli.adapter import Adapter, Program
from executor_service.harness.cli.claude_code import ClaudeCode
from executor_service.harness.cli.codex import Codex
from executor_service.harness.cli.command import load_commands
from executor_service.harness.cli.copilot import Copilot
from executor_service.harness.cli.discovery import Found
from executor_service.harness.cli.gemini_cli import GeminiCli
from executor_service.harness.cli.homes import Homes, tenant_home
from executor_service.harness.cli.lookout import Lookout
from executor_service.harness.cli.opencode import OpenCode
from executor_service.harness.cli.pi import Pi
from executor_service.harness.cli.prices import load_prices
from executor_service.harness.cli.qwen_code import QwenCode
from executor_service.harness.cli.runner import CliAgent
from executor_service.settings import Settings

#: Every CLI that is known, in the order that they are shown in.
ADAPTERS: Final[Sequence[Adapter]] = (
    ClaudeCode(), Codex(), GeminiCli(), OpenCode(), Pi(), QwenCode(), Copilot(),
)  # fmt: skip
ALL: Final = "all"
NONE: Final = "none"


class BuiltIn:
    """The CLIs of this machine."""

    def __init__(self, settings: Settings, lookout: Lookout) -> None:
        self._settings = settings
        self._lookout = lookout
        self._prices = load_prices(settings.prices)
        #: Hears of a harness that is to be offered in place of the one of that name, or with None no more.
        self.on_change: Callable[[str, AgentEffects | None], None] = lambda name, agent: None

    @property
    def checks(self) -> list[pb.HarnessCheck]:
        """What was found of each, whether it can be used or not."""
        return [found.check for found in self._lookout.found.values()]

    def agents(self, host: Host, taken: Collection[str], incarnation: str) -> list[AgentEffects]:
        """Those that are here, but for those whose name a harness module has taken; `on_change` hears of others."""

        def agent(found: Found) -> AgentEffects | None:
            return None if found.program is None else self._agent(found, found.program, host, incarnation)

        def changed(found: Found) -> None:
            name = found.adapter.name
            self.on_change(name, None if name in taken else agent(found))

        self._lookout.on_change = changed
        here = [found for found in self._lookout.found.values() if found.adapter.name not in taken]
        return [one for found in here if (one := agent(found)) is not None]

    def _agent(self, found: Found, program: Program, host: Host, incarnation: str) -> AgentEffects:
        name = found.adapter.name
        homes = Homes(self._settings.agent_homes, host.store(name), incarnation)
        cli = CliAgent(found.adapter, program, host, homes, self._prices)
        cli.on_failure = partial(self._lookout.doubt, name)
        return AgentEffects(cli, host)

    async def look(self, seconds: float | None) -> None:
        """Waits until each has been looked at, or for so long."""
        await self._lookout.looked(seconds)

    async def run(self) -> None:
        """Looks for them until cancelled."""
        await self._lookout.run()


def find_builtin(
    settings: Settings, starts_children: Callable[[], AbstractContextManager[None]] = nullcontext
) -> BuiltIn:
    """The CLIs that the settings ask for, none of them looked at yet. Raises StartError for a name that is not known,
    or without HOME.
    """
    adapters = {adapter.name: adapter for adapter in (*ADAPTERS, *load_commands(settings.harness_commands))}
    wanted = _wanted(settings.agents, adapters)
    paths = _paths(settings.harness_paths, adapters)
    home = _home() if wanted else Path()

    def home_of(name: str) -> Path:
        if settings.agent_homes == "user":
            return home
        return tenant_home(Path(settings.state_dir) / "harnesses" / name, settings.namespace)

    every_s = settings.harness_check_seconds
    return BuiltIn(settings, Lookout(wanted, paths, home_of, every_s=every_s, starts_children=starts_children))


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
