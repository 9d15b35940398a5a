"""What people see of agents, with real services: progress while they run, and what they said and did."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backburner.scheduler.v1 import operator_service_pb2 as operator_pb
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.e2e.agents import scripted
from tests.e2e.commands import Cli
from tests.support import scripted_agent
from tests.support.eventually import eventually
from tests.support.services import Service, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

REPORT = {
    "tool": "Bash", "step": "pytest -q", "turns": 4, "turns_max": 20, "todos": 7, "todos_done": 3,
    "usage": {"input_tokens": 10_100, "output_tokens": 2_200, "cost_usd": 0.08, "model": "gpt-x"},
}  # fmt: skip
SAID = [
    {"type": "text", "text": "I look at the tests."},
    {"type": "tool", "name": "Bash", "input": {"command": "pytest -q"}},
    {"type": "tool_result", "name": "Bash", "text": "3 passed"},
]


#: An agent CLI that tells its version and answers with its prompt.
ECHO = f"#!{sys.executable} -SE\nimport sys\nprint('echo 1.2.3' if '--version' in sys.argv else sys.stdin.read())\n"


@pytest.fixture(scope="module")
async def viewed(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """One more executor, with agents of its own: scripted ones, one by configuration, and one that is not there."""
    folder = tmp_path_factory.mktemp("viewed")
    (folder / "echo").write_text(ECHO)
    (folder / "echo").chmod(0o755)
    commands = {
        "ghost": {"argv": ["no-such-ghost"], "output": "text"},
        "echoing": {"argv": [str(folder / "echo")], "output": "text"},
    }
    (folder / "commands.json").write_text(json.dumps(commands))
    env = {
        "BACKBURNER_HARNESS_MODULES": scripted_agent.__name__, "SCRIPTED_AGENTS": "viewed",
        "BACKBURNER_HARNESS_COMMANDS": str(folder / "commands.json"), "BACKBURNER_AGENTS": "ghost,echoing",
    }  # fmt: skip
    service = stack.new_executor("viewed", **env)
    service.start()

    async def connected() -> bool:
        answer = await stack.operator.ListExecutors(operator_pb.ListExecutorsRequest())
        return any(e.executor_id == "viewed" and e.state == e.STATE_CONNECTED for e in answer.executors)

    try:
        await eventually(connected, timeout=60, message=service.tail)
        yield service
    finally:
        service.kill()


async def asked(stack: Stack, **script: Any) -> str:
    return await stack.create("agents.watched", harness="viewed", prompt=scripted("do", **script))


@pytest.mark.usefixtures("viewed")
async def test_an_agent_is_seen_at_work(cli: Cli, stack: Stack, tmp_path: Path) -> None:
    run_id = await asked(stack, reports=[REPORT], wait_for=str(tmp_path / "go"))
    terminal = await cli.terminal("watch", run_id, columns=200)
    await terminal.until(lambda text: "turn 4/20 · Bash: pytest -q · 12.3k tokens · $0.08 · 3/7 todos" in text)
    assert " 43%" in terminal.text, "of its to-do list"
    name = pb.EffectName(run_id=run_id, key="it")

    async def polled() -> Any:
        effect = (await stack.client.GetEffect(pb.GetEffectRequest(effect=name))).effect
        return effect if effect.progress.turns else None

    effect = await eventually(polled, timeout=60)
    assert (effect.progress.tool, effect.progress.turns_max, effect.progress.todos_done) == ("Bash", 20, 3)
    assert (effect.usage.input_tokens, effect.usage.cost_usd, effect.usage.model) == (10_100, 0.08, "gpt-x")
    live = [frame async for frame in until_progress(stack, name)]
    assert live[-1].progress.progress.todos == 7
    listed, shown = await asyncio.gather(cli("ps", "--effects"), cli("show", f"{run_id}/it"))
    [line] = [line for line in listed.out.splitlines() if f"{run_id}/it" in line or f"{run_id[-12:]}/it" in line]
    assert "43%, turn 4/20, Bash: pytest -q, 12.3k tokens, $0.08, 3/7 todos" in line
    assert " ago" in line
    assert "12.3k tokens (10.1k in, 2.2k out) · $0.08 · gpt-x" in shown.out
    assert "last heard" in shown.out
    (tmp_path / "go").touch()
    assert await terminal.end() == 0
    assert "12.3k tokens · $0.08" in terminal.text


async def until_progress(stack: Stack, name: pb.EffectName) -> AsyncIterator[pb.WatchEffectResponse]:
    """Frames of WatchEffect up to the first that says what the agent does."""
    call = stack.client.WatchEffect(pb.WatchEffectRequest(effect=name))
    try:
        async for frame in call:
            yield frame
            if frame.progress.progress.tool:
                return
    finally:
        call.cancel()


@pytest.mark.usefixtures("viewed")
async def test_what_an_agent_says_and_does_is_read_while_it_runs(cli: Cli, stack: Stack, tmp_path: Path) -> None:
    run_id = await asked(stack, transcript=SAID, hold=str(tmp_path / "hold"), wait_for=str(tmp_path / "go"))
    follow = await cli.start("logs", "--pretty", "-f", f"{run_id}/it")
    await follow.until("3 passed")
    assert follow.process.returncode is None
    (tmp_path / "go").touch()
    done = await follow.end()
    assert [line[9:] for line in done.out.splitlines()] == [
        "I look at the tests.", "▸ Bash  pytest -q", "│ 3 passed",
    ]  # fmt: skip
    raw = await cli("logs", "--stream", "transcript", f"{run_id}/it")
    assert [json.loads(line)["type"] for line in raw.out.splitlines()] == ["text", "tool", "tool_result"]


@pytest.mark.usefixtures("viewed")
async def test_of_a_long_transcript_both_ends_are_read_and_the_gap_is_said(cli: Cli, stack: Stack) -> None:
    words = {"type": "text", "text": "so it goes " * 1_000}
    run_id = await asked(stack, transcript=[words], times=150)
    assert (await cli("watch", run_id)).code == 0
    done = await cli("logs", "--pretty", f"{run_id}/it")
    assert done.code == 0
    assert "bytes of the transcript were not kept]" in done.out
    assert "cut in half" in done.out
    whole = done.out.count("so it goes " * 999)
    assert 80 <= whole <= 96, "1 MiB of 11 KB each, less what was cut in half"


@pytest.mark.usefixtures("viewed")
async def test_harnesses_are_listed_and_one_that_is_missing_says_what_to_do(cli: Cli, stack: Stack) -> None:
    listed = await cli("harnesses", "--json")
    found = {line["name"]: line for line in map(json.loads, listed.out.splitlines()) if line["executor_id"] == "viewed"}
    assert found.keys() == {"ghost", "echoing", "viewed"}
    assert (found["echoing"]["found"], found["echoing"]["version"]) == (True, "1.2.3")
    assert (found["ghost"]["found"], "no-such-ghost" in found["ghost"]["remedy"]) == (False, True)
    run_id = await stack.create("agents.one", harness="ghost", prompt="boo")

    async def waits() -> str:
        said = (await cli("show", f"{run_id}/it")).out
        return said if "no executor has" in said else ""

    said = await eventually(waits, timeout=60)
    assert "no executor has harness ghost; viewed says: ghost: no no-such-ghost on PATH" in said
    await cli("cancel", run_id)


@pytest.mark.usefixtures("viewed")
async def test_an_agent_cli_of_any_make_can_be_read(cli: Cli, stack: Stack) -> None:
    run_id = await stack.create("agents.watched", harness="echoing", prompt="say what I say")
    assert (await cli("watch", run_id)).out == "say what I say\n"
    drawn = (await cli("logs", "--pretty", f"{run_id}/it")).out
    assert "> say what I say\n" in drawn
    assert "✓ done\n" in drawn


async def test_what_has_no_transcript_says_where_its_output_is(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "release").touch()
    run_id = await cli.detached("cli.works", f"folder={tmp_path}")
    await cli("watch", run_id)
    slow = f"{run_id}/packages/web/compile-and-link-all-of-it/slow"
    done = await cli("logs", "--pretty", slow)
    assert (done.code, done.out) == (0, "")
    assert f"it is no agent: its output is shown by `backburner logs {slow}`" in done.err
