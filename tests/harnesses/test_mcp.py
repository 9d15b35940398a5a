"""An MCP server of the effect's own with each CLI that has MCP: its tool is offered, called, told and ended."""

import sys
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from executor_service.markers import marked
from executor_service.server import ExecutorServer
from tests.harnesses.conftest import StartCli
from tests.harnesses.specs import agent
from tests.harnesses.table import clis
from tests.harnesses.test_clis import (
    LATE,
    SECONDS,
    handed_out,
    transcript,
    usage_of,
)
from tests.support.eventually import eventually
from tests.support.fake_scheduler import Dispatch, FakeScheduler
from tests.support.model_server import ModelServer, Scenario, Tool, Turn, Usage

pytestmark = pytest.mark.timeout(300)

#: What the tool is called: in the model's words, and in ours.
NAMES: Final = {
    "claude-code": ("mcp__scales__weigh", "mcp__scales__weigh"),
    "codex": ("mcp__scales.weigh", "scales.weigh"),
    "gemini-cli": ("mcp_scales_weigh", "mcp_scales_weigh"),
    "opencode": ("scales_weigh", "scales_weigh"),
    "qwen-code": ("mcp__scales__weigh", "mcp__scales__weigh"),
    "copilot": ("scales-weigh", "scales-weigh"),
}


def weighing(name: str, server: ModelServer, folder: Path, thing: str) -> dict[str, Any]:
    """The work of an agent that weighs a thing and says so."""
    call = Turn(call=Tool(NAMES[name][0], {"thing": thing}))
    usage = (Usage(input=101, cached=40, output=23), Usage(input=157, cached=99, output=11))
    server.play(Scenario(turns=(call, Turn(text="It is heavy.")), usage=usage))
    scales = {"command": sys.executable, "args": [str(Path(__file__).with_name("mcp_server.py")), str(folder)]}
    return agent(name, server, "How heavy is it?", cwd=str(folder), mcp_servers={"scales": scales})


@pytest.mark.parametrize("name", clis(*NAMES))
async def test_a_tool_of_an_mcp_server_is_called_and_told(
    name: str,
    start_cli: StartCli,
    scheduler: FakeScheduler,
    model_server: ModelServer,
    tmp_path: Path,
) -> None:
    await start_cli(name)
    dispatch = await scheduler.one(**weighing(name, model_server, tmp_path, "anvil"))
    settled = await scheduler.settled(dispatch, SECONDS)
    assert (settled.value, settled.data["death"]) == ("It is heavy.", "DEATH_PROVEN")
    assert usage_of(settled) == handed_out(model_server)
    assert settled.data["result"]["usage"]["turns"] == 2
    events = await transcript(scheduler, dispatch)
    tool = next(event for event in events if event["type"] == "tool")
    assert (tool["name"], tool["input"]) == (NAMES[name][1], {"thing": "anvil"})
    result = next(event for event in events if event["type"] == "tool_result")
    assert (result["text"], result.get("error")) == ("anvil weighs 5 kg", None)
    assert not psutil.pid_exists(int((tmp_path / "server").read_text()))


@pytest.mark.parametrize("name", clis(*NAMES))
async def test_a_cancel_in_the_middle_of_an_mcp_tool_leaves_neither_server_nor_helper(
    name: str,
    start_cli: StartCli,
    scheduler: FakeScheduler,
    model_server: ModelServer,
    tmp_path: Path,
) -> None:
    executor: ExecutorServer = await start_cli(name)
    dispatch = await scheduler.one(**weighing(name, model_server, tmp_path, "the world"))
    await eventually(lambda: _pids(tmp_path, "server", "helper"), SECONDS)
    if name not in LATE:
        await eventually(lambda: shows_tool(scheduler, dispatch, NAMES[name][1]), SECONDS)
    held = next(iter(executor.attempts))
    (await scheduler.session()).cancel(dispatch)
    settled = await scheduler.settled(dispatch, SECONDS)
    assert (settled.type, settled.data["death"]) == ("EFFECT_CANCELLED", "DEATH_PROVEN")
    assert marked(held.marker) == []
    assert not [pid for pid in _pids(tmp_path, "server", "helper") if psutil.pid_exists(pid)]
    if name not in LATE:
        assert usage_of(settled) == handed_out(model_server)


async def shows_tool(scheduler: FakeScheduler, dispatch: Dispatch, tool: str) -> bool:
    """Whether the journal says that it uses this tool: its projection, for rows of progress are thinned."""
    query = "SELECT progress FROM backburner.effects WHERE effect_id = %s"
    return any((row or {}).get("tool") == tool for (row,) in await scheduler.query(query, dispatch.effect_id))


def _pids(folder: Path, *names: str) -> list[int]:
    """The processes that have written their ids; none until all of them have."""
    found = [(folder / name).read_text() for name in names if (folder / name).exists()]
    return [int(pid) for pid in found] if len(found) == len(names) and all(found) else []
