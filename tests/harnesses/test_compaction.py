"""opencode makes a session shorter when it fills the model's context: the summary is no answer, its tokens count."""

from pathlib import Path

import pytest

from tests.harnesses.conftest import StartCli
from tests.harnesses.specs import agent
from tests.harnesses.test_clis import SECONDS, handed_out, transcript, usage_of
from tests.support.fake_scheduler import FakeScheduler
from tests.support.model_server import Aside, Bash, ModelServer, Scenario, Turn, Usage

pytestmark = [pytest.mark.timeout(300), pytest.mark.all_harnesses]

#: More than the context of the model less its longest answer.
FULL = Usage(input=124_500, cached=40, output=23)
SUMMARY = "A summary so far."


async def test_a_session_that_opencode_makes_shorter_goes_on_to_its_answer(
    start_cli: StartCli, scheduler: FakeScheduler, model_server: ModelServer, tmp_path: Path
) -> None:
    await start_cli("opencode")
    model_server.play(
        Scenario(
            turns=(Turn(call=Bash("echo hello"), usage=FULL), Turn(text="It was not made shorter.")),
            asides=(Aside("Continue if you have next steps", (Turn(text="All is done."),)),),
            aux_text=SUMMARY,
        )
    )
    dispatch = await scheduler.one(**agent("opencode", model_server, cwd=str(tmp_path)))
    settled = await scheduler.settled(dispatch, SECONDS)
    assert settled.value == "All is done."
    assert [request.turn for request in model_server.charged()] == [0, -1, 0]
    assert usage_of(settled) == handed_out(model_server)
    said = [event["text"] for event in await transcript(scheduler, dispatch) if event["type"] == "text"]
    assert said == [SUMMARY, "All is done."], "what it tells the model in the user's name are not the agent's words"
