"""What `read_only` and `edit` let each CLI do: the model tries to write a file and to run a command."""

from pathlib import Path
from typing import Final

import pytest

from tests.harnesses.conftest import Place, StartCli
from tests.harnesses.specs import agent
from tests.harnesses.table import clis
from tests.harnesses.test_clis import SECONDS, handed_out, usage_of
from tests.support.fake_scheduler import FakeScheduler
from tests.support.model_server import ModelServer, Scenario, Tool, Turn

pytestmark = pytest.mark.timeout(300)

#: The tools that write and run, and what they call a file and what is in it.
TOOLS: Final = {
    "claude-code": ("Write", "file_path", "content", "Bash"),
    "gemini-cli": ("write_file", "file_path", "content", "run_shell_command"),
    "opencode": ("write", "filePath", "content", "bash"),
    "pi": ("write", "path", "content", "bash"),
    "qwen-code": ("write_file", "file_path", "content", "run_shell_command"),
    "copilot": ("create", "path", "file_text", "bash"),
}


def tries(name: str, folder: Path) -> Scenario:
    """A model that tries both, whether the tools are offered or not."""
    write, path, content, shell = TOOLS[name]
    writes = Tool(write, {path: str(folder / "made"), content: "by the agent"})
    runs = Tool(shell, {"command": "echo hello >run", "description": "d", "is_background": False})
    if name in ("claude-code", "opencode", "copilot", "pi"):
        runs = Tool(shell, {"command": "echo hello >run", "description": "d"})
    return Scenario(turns=(Turn(call=writes), Turn(call=runs), Turn(text="All is done.")))


@pytest.mark.parametrize("permissions", ["READ_ONLY", "EDIT"])
@pytest.mark.parametrize("name", clis(*TOOLS))
async def test_an_agent_does_what_it_may_and_what_it_was_denied_is_told(
    *,
    name: str,
    permissions: str,
    start_cli: StartCli,
    scheduler: FakeScheduler,
    model_server: ModelServer,
    place: Place,
) -> None:
    await start_cli(name)
    workspace = place.workspace
    model_server.play(tries(name, workspace))
    work = agent(name, model_server, cwd=str(workspace), permissions=f"AGENT_PERMISSIONS_{permissions}")
    settled = await scheduler.run(SECONDS, **work)
    assert settled.value == "All is done."
    assert usage_of(settled) == handed_out(model_server)
    made, shell = workspace / "made", TOOLS[name][3]
    denied = [denial["tool"] for denial in settled.data["result"].get("permission_denials", ())]
    assert not (workspace / "run").exists()
    if permissions == "EDIT":
        assert (made.read_text(), denied) == ("by the agent", [shell])
    else:
        assert (made.exists(), denied) == (False, [TOOLS[name][0], shell])


@pytest.mark.parametrize("permissions", ["READ_ONLY", "EDIT"])
async def test_codex_runs_commands_in_a_sandbox_that_writes_nothing_or_in_the_workspace_alone(
    permissions: str,
    start_cli: StartCli,
    scheduler: FakeScheduler,
    model_server: ModelServer,
    tmp_path: Path,
) -> None:
    await start_cli("codex")
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    command = Tool("exec_command", {"cmd": "echo x >made; echo x >../beside; echo ran"})
    model_server.play(Scenario(turns=(Turn(call=command), Turn(text="All is done."))))
    # Its sandbox lets commands write below /tmp too, where this test is.
    bounds = {"exclude_slash_tmp": True, "exclude_tmpdir_env_var": True}
    work = agent("codex", model_server, cwd=str(workspace), permissions=f"AGENT_PERMISSIONS_{permissions}")
    work["agent"]["options"]["config"]["sandbox_workspace_write"] = bounds
    settled = await scheduler.run(SECONDS, **work)
    assert settled.value == "All is done."
    assert (workspace / "made").exists() == (permissions == "EDIT")
    assert not (tmp_path / "beside").exists()
