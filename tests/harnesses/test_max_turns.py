"""Turns of real CLIs that know a bound: claude-code says so at its end, gemini-cli and qwen-code by their exit."""

from pathlib import Path

import pytest

from tests.harnesses.conftest import StartCli
from tests.harnesses.specs import agent
from tests.harnesses.table import clis
from tests.harnesses.test_clis import SECONDS, handed_out, usage_of
from tests.support.fake_scheduler import FakeScheduler
from tests.support.model_server import Bash, ModelServer, Scenario, Turn


@pytest.mark.parametrize("name", clis("claude-code", "gemini-cli", "qwen-code"))
async def test_a_cli_that_has_no_turns_left_says_so(
    name: str,
    start_cli: StartCli,
    scheduler: FakeScheduler,
    model_server: ModelServer,
    tmp_path: Path,
) -> None:
    await start_cli(name)
    model_server.play(Scenario(turns=tuple(Turn(call=Bash(f"echo {number}")) for number in range(5))))
    settled = await scheduler.run(SECONDS, **agent(name, model_server, cwd=str(tmp_path), max_turns=2))
    assert settled.reason == "MAX_TURNS", settled.data["error"]
    assert usage_of(settled) == handed_out(model_server)
    gave = settled.data.get("result") or settled.data["partial"]
    assert gave["session"]["session_id"], "a retry with more turns can go on"
