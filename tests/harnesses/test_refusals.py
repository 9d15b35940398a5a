"""A model that refuses, through real CLIs: who tells it from an answer, and who does not. README says the same."""

from pathlib import Path

import pytest

from tests.harnesses.conftest import StartCli
from tests.harnesses.specs import agent
from tests.harnesses.table import clis
from tests.harnesses.test_clis import HURRIED, SECONDS
from tests.support.fake_scheduler import FakeScheduler, Settled
from tests.support.model_server import ModelServer, Scenario, Turn

pytestmark = pytest.mark.timeout(300)

WORDS = "I will not do that."


async def refused(scheduler: FakeScheduler, server: ModelServer, name: str, words: str, folder: Path) -> Settled:
    """What becomes of an effect whose model refuses in these words."""
    server.play(Scenario(turns=(Turn(text=words, stop="refusal"),)))
    work = agent(name, server, cwd=str(folder), env=HURRIED.get(name, {}))
    return await scheduler.run(SECONDS, **work)


@pytest.mark.parametrize(("name", "reason"), [("gemini-cli", "REFUSED"), ("qwen-code", "HARNESS_ERROR")])
@pytest.mark.all_harnesses
async def test_a_refusal_without_words(
    *, name: str, reason: str, start_cli: StartCli, scheduler: FakeScheduler, model_server: ModelServer, tmp_path: Path
) -> None:
    await start_cli(name)
    assert (await refused(scheduler, model_server, name, "", tmp_path)).reason == reason


@pytest.mark.parametrize("name", clis("gemini-cli", "qwen-code"))
async def test_a_refusal_with_words_that_is_not_told_from_an_answer(
    name: str, start_cli: StartCli, scheduler: FakeScheduler, model_server: ModelServer, tmp_path: Path
) -> None:
    await start_cli(name)
    assert (await refused(scheduler, model_server, name, WORDS, tmp_path)).value == WORDS


async def test_claude_tells_a_refusal(
    start_cli: StartCli, scheduler: FakeScheduler, model_server: ModelServer, tmp_path: Path
) -> None:
    await start_cli("claude-code")
    assert (await refused(scheduler, model_server, "claude-code", WORDS, tmp_path)).reason == "REFUSED"
