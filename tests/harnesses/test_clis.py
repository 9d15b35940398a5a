"""Real agent CLIs, driven by a real executor against the scripted model server: what the journal says of each case."""

import json
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from executor_service.harness.cli import runner
from executor_service.markers import marked
from executor_service.server import ExecutorServer
from tests.harnesses.conftest import StartCli
from tests.harnesses.specs import agent
from tests.harnesses.table import clis
from tests.support.eventually import eventually
from tests.support.fake_scheduler import Dispatch, FakeScheduler, Settled
from tests.support.harnesses import CLIS
from tests.support.model_server import Bash, Fault, Hang, ModelServer, Scenario, Turn, asked_and_answered

pytestmark = pytest.mark.timeout(300)

SCHEMA = {"type": "object", "properties": {"approve": {"type": "boolean"}}, "required": ["approve"]}
#: The answer is there within this, or the machine is lost.
SECONDS = 240.0
#: These tell of a tool, and of what asking for it consumed, when it has ended.
LATE = ("opencode",)


def usage_of(settled: Settled) -> dict[str, float]:
    gave = settled.data.get("result") or settled.data["partial"]
    usage = gave.get("usage", {})
    return {name: usage.get(f"{name}_tokens", 0.0) for name in ("input", "cached_input", "output")}


def handed_out(server: ModelServer, key: str = "key") -> dict[str, float]:
    total = server.total(key=key)
    return {"input": total.input, "cached_input": total.cached, "output": total.output}


async def transcript(scheduler: FakeScheduler, dispatch: Dispatch) -> list[dict[str, Any]]:
    kept = b"".join(data for _, data in await scheduler.output(dispatch, stream=3))
    return [json.loads(line) for line in kept.splitlines()]


@pytest.mark.parametrize("name", clis())
async def test_a_tool_call_and_an_answer(
    name: str, start_cli: StartCli, scheduler: FakeScheduler, model_server: ModelServer, tmp_path: Path
) -> None:
    await start_cli(name)
    dispatch = await scheduler.one(**agent(name, model_server, cwd=str(tmp_path)))
    settled = await scheduler.settled(dispatch, SECONDS)
    assert settled.value == "All is done."
    result = settled.data["result"]
    assert (result["harness"], settled.data["death"]) == (name, "DEATH_PROVEN")
    assert usage_of(settled) == handed_out(model_server), "to the token"
    assert result["usage"]["turns"] >= 2
    session = result["session"]
    assert (session["harness"], session["workspace"]) == (name, str(tmp_path))
    assert session["session_id"]
    events = await transcript(scheduler, dispatch)
    tool = next(event for event in events if event["type"] == "tool")
    assert "echo hello" in json.dumps(tool["input"])
    assert "hello" in next(event["text"] for event in events if event["type"] == "tool_result")
    assert events[-1]["type"] == "exit"


#: What the provider says, and the classes that it may be: some CLIs hide one status behind the words of another.
TROUBLES = {
    "authentication": {"AUTHENTICATION"},
    "rate_limit": {"RATE_LIMITED"},
    "quota": {"QUOTA_EXHAUSTED"},
    "server": {"HARNESS_ERROR", "OVERLOADED"},
    "overloaded": {"OVERLOADED"},
    "context_overflow": {"CONTEXT_OVERFLOW"},
}
#: "Come again at once": for opencode, copilot and whoever else asks a provider how long to wait.
AT_ONCE = {"retry-after-ms": "50", "retry-after": "0"}
#: qwen-code asks nobody: it tries seven times over 80 s.
HURRIED = {"qwen-code": {"NODE_OPTIONS": f"--require {Path(__file__).with_name('hurried.cjs')}"}}


@pytest.mark.parametrize("kind", TROUBLES)
@pytest.mark.parametrize("name", clis())
async def test_what_a_provider_refuses_has_its_class(
    name: str, kind: str, start_cli: StartCli, scheduler: FakeScheduler, model_server: ModelServer
) -> None:
    await start_cli(name)
    model_server.play(Scenario(faults=(Fault(kind, on_turn=None, headers=AT_ONCE),)))
    settled = await scheduler.run(SECONDS, **agent(name, model_server, env=HURRIED.get(name, {})))
    # Of a provider that says when it takes requests again, and that is far, the effect waits for it.
    assert settled.type in ("EFFECT_RESOLVED", "EFFECT_PARKED")
    reason = settled.data["error"]["reason"].removeprefix("EFFECT_REASON_")
    assert reason in TROUBLES[kind], settled.data["error"]
    assert usage_of(settled) == handed_out(model_server)


@pytest.mark.parametrize("name", clis())
async def test_a_cancel_in_the_middle_of_a_tool_call_leaves_nobody(
    name: str, start_cli: StartCli, scheduler: FakeScheduler, model_server: ModelServer, tmp_path: Path
) -> None:
    executor = await start_cli(name)
    dispatch = await hold_in_a_tool(executor, scheduler, model_server, name, tmp_path)
    held = next(iter(executor.attempts))
    (await scheduler.session()).cancel(dispatch)
    settled = await scheduler.settled(dispatch, SECONDS)
    assert (settled.type, settled.data["death"]) == ("EFFECT_CANCELLED", "DEATH_PROVEN")
    assert marked(held.marker) == []
    assert not alive(tmp_path)
    if name not in LATE:
        assert usage_of(settled) == handed_out(model_server), "what was consumed until then is known"
    assert settled.data["partial"]["session"]["session_id"]


@pytest.mark.parametrize("name", clis())
async def test_a_cli_that_is_killed_is_a_crash_and_leaves_nobody(
    name: str, start_cli: StartCli, scheduler: FakeScheduler, model_server: ModelServer, tmp_path: Path
) -> None:
    executor = await start_cli(name)
    dispatch = await hold_in_a_tool(executor, scheduler, model_server, name, tmp_path)
    held = next(iter(executor.attempts))
    os.kill(held.pid, signal.SIGKILL)
    settled = await scheduler.settled(dispatch, SECONDS)
    assert (settled.reason, settled.data["death"]) == ("HARNESS_CRASHED", "DEATH_PROVEN")
    assert "SIGKILL" in settled.data["error"]["message"]
    assert not alive(tmp_path)
    if name not in (*LATE, "copilot"):  # copilot writes what it consumed a moment later
        assert usage_of(settled) == handed_out(model_server)


@pytest.mark.parametrize("name", clis())
async def test_a_cli_that_hangs_is_ended_by_its_profile(
    name: str, start_cli: StartCli, scheduler: FakeScheduler, model_server: ModelServer
) -> None:
    await start_cli(name)
    model_server.play(Scenario(hangs=(Hang(on_turn=None),)))
    work = agent(name, model_server, options={"silence_s": 3, "retry_silence_s": 3})
    settled = await scheduler.run(SECONDS, **work)
    assert (settled.data["state"], settled.reason) == ("EFFECT_STATE_TIMED_OUT", "TIMEOUT_SILENCE")
    assert "said nothing for 3 s while" in settled.data["error"]["message"]
    assert settled.data["death"] == "DEATH_PROVEN"


@pytest.mark.parametrize("name", clis())
async def test_a_cli_that_lingers_after_its_last_word_has_succeeded(
    name: str, start_cli: StartCli, scheduler: FakeScheduler, model_server: ModelServer, tmp_path: Path
) -> None:
    lingering = tmp_path / "lingering"
    real = shlex.quote(str(CLIS[name].executable))
    lingering.write_text(f'#!/bin/sh\n{real} "$@"\n[ "$1" = --version ] && exit\nexec sleep 1000\n')
    lingering.chmod(0o755)
    executor = await start_cli(name, lingering)
    left = "setsid sleep 1000 >/dev/null 2>&1 & echo $! >left; echo hello"
    model_server.play(asked_and_answered(left))
    dispatch = await scheduler.one(**agent(name, model_server, cwd=str(tmp_path)))
    await eventually(lambda: list(executor.attempts))
    held = next(iter(executor.attempts))
    settled = await scheduler.settled(dispatch, SECONDS)
    assert (settled.value, settled.data["state"]) == ("All is done.", "EFFECT_STATE_SUCCEEDED")
    assert settled.data["death"] == "DEATH_PROVEN"
    assert marked(held.marker) == []


@pytest.mark.parametrize("name", clis())
async def test_a_bad_exit_speaks_against_a_good_last_word(
    *,
    name: str,
    start_cli: StartCli,
    scheduler: FakeScheduler,
    model_server: ModelServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "LINGER_SECONDS", SECONDS)  # several take seconds to exit, all do on a busy machine
    program = tmp_path / "program"
    real = shlex.quote(str(CLIS[name].executable))
    program.write_text(f'#!/bin/sh\n{real} "$@"\n[ "$1" = --version ] || exit 3\n')
    program.chmod(0o755)
    await start_cli(name, program)
    settled = await scheduler.run(SECONDS, **agent(name, model_server, cwd=str(tmp_path)))
    assert settled.reason == "HARNESS_CRASHED"
    assert "exited with code 3" in settled.data["error"]["message"]
    assert usage_of(settled) == handed_out(model_server)


@pytest.mark.parametrize("name", clis())
async def test_a_session_goes_on_and_nothing_is_counted_twice(
    name: str, start_cli: StartCli, scheduler: FakeScheduler, model_server: ModelServer, tmp_path: Path
) -> None:
    await start_cli(name)
    first = await scheduler.run(SECONDS, **agent(name, model_server, cwd=str(tmp_path)))
    session = first.data["result"]["session"]
    again = agent(name, model_server, "And again.", "second", cwd=str(tmp_path))
    second = await scheduler.run(SECONDS, **again, continue_from="e", continue_session=session)
    assert second.value == "All is done."
    assert "session_lost" not in second.data["result"]
    assert second.data["result"]["session"]["session_id"] == session["session_id"]
    assert second.data["result"]["continued_session_id"] == session["session_id"]
    assert usage_of(second) == handed_out(model_server, "second"), "the first effect's tokens are the first effect's"


@pytest.mark.parametrize("name", clis())
async def test_a_session_that_is_gone_is_replaced_by_a_fresh_one(
    name: str, start_cli: StartCli, scheduler: FakeScheduler, model_server: ModelServer, tmp_path: Path
) -> None:
    await start_cli(name)
    gone = {"harness": name, "session_id": "0199e0a0-0000-7000-8000-000000000000", "workspace": str(tmp_path)}
    work = agent(name, model_server, cwd=str(tmp_path))
    settled = await scheduler.run(SECONDS, **work, continue_from="e", continue_session=gone)
    assert (settled.value, settled.data["result"].get("session_lost")) == ("All is done.", True)


@pytest.mark.parametrize("name", clis())
async def test_an_answer_that_does_not_fit_is_mended_in_one_turn(
    name: str, start_cli: StartCli, scheduler: FakeScheduler, model_server: ModelServer, tmp_path: Path
) -> None:
    await start_cli(name)
    wrong = Scenario(turns=(Turn(call=Bash("echo hello")), Turn(text="I approve.")), hangs=(Hang(on_turn=1),))
    model_server.play(wrong)
    work = agent(name, model_server, cwd=str(tmp_path), output_schema=SCHEMA)
    dispatch = await scheduler.one(**work)
    await eventually(lambda: any(request.turn == 1 for request in model_server.requests()), SECONDS)
    model_server.play(Scenario(turns=(Turn(text='```json\n{"approve": true}\n```'),)))
    settled = await scheduler.settled(dispatch, SECONDS)
    assert settled.value == {"approve": True}
    assert settled.data["result"]["repair_turns"] == 1
    assert usage_of(settled) == handed_out(model_server)


#: A tool that does not end: a tree of processes in groups and sessions of their own.
TREE = "(setsid sleep 1000 & echo $! >a; sleep 1000 & echo $! >b; wait) & echo $! >c; sleep 1000; echo no >d"


async def hold_in_a_tool(
    executor: ExecutorServer, scheduler: FakeScheduler, server: ModelServer, name: str, folder: Path
) -> Dispatch:
    """An agent whose tool runs and does not end."""
    server.play(asked_and_answered(TREE))
    dispatch = await scheduler.one(**agent(name, server, cwd=str(folder)))
    await tree_runs(folder)
    await eventually(lambda: name in LATE or any(held.progress.tool for held in executor.attempts), SECONDS)
    return dispatch


async def tree_runs(folder: Path) -> None:
    """Waits for the processes of the tool."""
    await eventually(lambda: all((folder / part).exists() and (folder / part).read_text() for part in "abc"), SECONDS)


def alive(folder: Path) -> list[int]:
    """Which of the tool's processes still run."""
    pids = [int((folder / part).read_text()) for part in "abc"]
    return [pid for pid in pids if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
