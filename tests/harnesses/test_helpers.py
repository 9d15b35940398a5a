"""Helpers that an agent starts (sub-agents): what they consume is the agent's, what they say is not its answer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from executor_service.markers import marked
from tests.harnesses.conftest import StartCli
from tests.harnesses.specs import agent
from tests.harnesses.table import clis
from tests.harnesses.test_clis import (
    LATE,
    SECONDS,
    TREE,
    alive,
    handed_out,
    transcript,
    tree_runs,
    usage_of,
)
from tests.support.eventually import eventually
from tests.support.fake_scheduler import FakeScheduler
from tests.support.model_server import Aside, Bash, Hang, ModelServer, Scenario, Tool, Turn, Usage

pytestmark = pytest.mark.timeout(300)

ASKED: Final = "Count the files."
COUNTED: Final = "There are two files."
_SAID: Final = {"description": "count", "prompt": ASKED}
#: How a model starts a helper. pi has none.
STARTS: Final[Mapping[str, Tool]] = {
    "claude-code": Tool("Agent", {**_SAID, "subagent_type": "general-purpose"}),
    "codex": Tool("multi_agent_v1.spawn_agent", {"message": ASKED}),
    "gemini-cli": Tool("invoke_agent", {"agent_name": "generalist", "prompt": ASKED}),
    "opencode": Tool("task", {**_SAID, "subagent_type": "general"}),
    "qwen-code": Tool("agent", {**_SAID, "subagent_type": "general-purpose"}),
    "copilot": Tool("task", {**_SAID, "name": "counter", "agent_type": "general-purpose", "mode": "sync"}),
}
#: codex does not wait for its helper by itself: its model is slow to answer, until the test goes on.
SLOW: Final = Hang(on_turn=2)
ANSWERS: Final = Turn(text="All is done.")


def helped(name: str, command: str) -> Scenario:
    """An agent that has a helper run a command, and answers itself."""
    answer = (
        Turn(call=Tool("complete_task", {"result": {"response": COUNTED}}))
        if name == "gemini-cli"
        else Turn(text=COUNTED)
    )
    helper = Aside(ASKED, (with_usage(Turn(call=Bash(command)), 1009), with_usage(answer, 1511)))
    own = (Turn(call=STARTS[name]), *([Turn(call=Bash("echo hello"))] if name == "codex" else []), ANSWERS)
    usage = (Usage(input=101, cached=40, output=23), Usage(input=157, cached=99, output=11))
    return Scenario(turns=own, usage=usage, asides=(helper,), hangs=(SLOW,))


def with_usage(turn: Turn, tokens: int) -> Turn:
    return Turn(text=turn.text, call=turn.call, usage=Usage(input=tokens, cached=400, output=53))


@pytest.mark.parametrize("name", clis(*STARTS))
async def test_what_a_helper_consumes_is_counted_and_what_it_says_is_no_answer(
    name: str,
    start_cli: StartCli,
    scheduler: FakeScheduler,
    model_server: ModelServer,
    tmp_path: Path,
) -> None:
    await start_cli(name)
    model_server.play(helped(name, "echo helper ran >helped"))
    dispatch = await scheduler.one(**agent(name, model_server, cwd=str(tmp_path)))
    if name == "codex":
        await eventually(lambda: _codex_helper_is_done(tmp_path), SECONDS)
        model_server.play(Scenario(turns=(ANSWERS,)))
    settled = await scheduler.settled(dispatch, SECONDS)
    assert (settled.value, settled.data["death"]) == ("All is done.", "DEATH_PROVEN")
    assert (tmp_path / "helped").read_text() == "helper ran\n"
    total = handed_out(model_server)
    assert total["input"] >= 1009 + 1511, "the helper has asked the model"
    assert usage_of(settled) == total, "to the token"
    assert settled.data["result"]["usage"]["turns"] == len(helped(name, "").turns)
    events = await transcript(scheduler, dispatch)
    assert {event["text"] for event in events if event["type"] == "text"} == {"All is done."}
    tool: dict[str, Any] = next(event for event in events if event["type"] == "tool")
    assert tool["name"] == STARTS[name].name.rpartition(".")[2]


@pytest.mark.parametrize("name", clis(*STARTS))
async def test_a_cancel_in_the_middle_of_a_helpers_tool_leaves_nobody(
    name: str,
    start_cli: StartCli,
    scheduler: FakeScheduler,
    model_server: ModelServer,
    tmp_path: Path,
) -> None:
    executor = await start_cli(name)
    model_server.play(helped(name, TREE))
    dispatch = await scheduler.one(**agent(name, model_server, cwd=str(tmp_path)))
    await tree_runs(tmp_path)
    held = next(iter(executor.attempts))
    if name not in (*LATE, "codex"):  # whose helpers' tools are told nowhere
        await eventually(lambda: held.progress.tool, SECONDS)
    (await scheduler.session()).cancel(dispatch)
    settled = await scheduler.settled(dispatch, SECONDS)
    assert (settled.type, settled.data["death"]) == ("EFFECT_CANCELLED", "DEATH_PROVEN")
    assert marked(held.marker) == []
    assert not alive(tmp_path)
    if name not in LATE:
        assert usage_of(settled) == handed_out(model_server), "what both consumed until then is known"


def _codex_helper_is_done(folder: Path) -> bool:
    """Whether a thread that another one has started has come to its end, by its file."""
    threads = [path.read_text() for path in folder.rglob("rollout-*.jsonl")]
    return any('"thread_spawn"' in thread and '"task_complete"' in thread for thread in threads)
