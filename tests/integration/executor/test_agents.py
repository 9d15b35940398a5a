"""Agents of a harness module: answers, sessions, failures, and that a child in the middle of its work dies with it."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from executor_service.errors import StartError
from executor_service.harness.agent import AgentEffects, AgentRequest, Answer, Attempt, ChildWork, Failure, Host
from executor_service.server import ExecutorServer
from tests.integration.executor.conftest import StartExecutor
from tests.support import scripted_agent
from tests.support.eventually import eventually
from tests.support.fake_scheduler import FakeScheduler, Settled

SCHEMA = {"type": "object", "properties": {"approve": {"type": "boolean"}}, "required": ["approve"]}


@pytest.fixture
async def executor(start_executor: StartExecutor) -> ExecutorServer:
    server: ExecutorServer = await start_executor(harness_modules=(scripted_agent.__name__,))
    return server


pytestmark = pytest.mark.usefixtures("executor")


def ask(
    prompt: str = "work", harness: str = "codex", spec: Mapping[str, Any] | None = None, **script: Any
) -> dict[str, Any]:
    work: dict[str, Any] = {"harness": harness, "prompt": f"{prompt} {json.dumps(script)}" if script else prompt}
    given = dict(spec or {})
    return {"agent": work | given.pop("agent", {}), **given}


def session_of(settled: Settled) -> dict[str, Any]:
    gave: dict[str, Any] = settled.data.get("result") or settled.data["partial"]
    return dict(gave["session"])


async def test_the_hello_tells_of_the_harnesses(scheduler: FakeScheduler) -> None:
    hello = (await scheduler.session()).hello
    told = {(h.name, h.version, h.pool) for h in hello.harnesses}
    assert told >= {(name, "0.0-scripted", "agents") for name in scripted_agent.NAMES}


async def test_an_answer_has_text_usage_output_session_and_proof_of_death(scheduler: FakeScheduler) -> None:
    settled = await scheduler.run(**ask("review this", usage={"input_tokens": 7, "cost_usd": 0.5, "model": "m"}))
    result = settled.data["result"]
    assert settled.value == 'turn 1: review this {"usage": {"input_tokens": 7, "cost_usd": 0.5, "model": "m"}}'
    assert result["usage"] == {"input_tokens": 7.0, "cost_usd": 0.5, "model": "m"}
    assert (result["exit_code"], result["stderr"]["tail"]) == (0, "turn 1 is done\n")
    assert settled.data["death"] == "DEATH_PROVEN"
    session = session_of(settled)
    assert (session["harness"], session["executor_id"]) == ("codex", "executor-under-test")
    assert session["session_id"].startswith("codex-")


async def test_a_transcript_is_stored_beside_what_the_child_wrote(scheduler: FakeScheduler) -> None:
    events = [{"type": "text", "text": "hm"}, {"type": "tool", "name": "Bash", "input": {"command": "pytest"}}]
    dispatch = await scheduler.one(**ask(transcript=events, times=2))
    settled = await scheduler.settled(dispatch)
    kept = b"".join(data for _, data in await scheduler.output(dispatch, stream=3))
    read = [json.loads(line) for line in kept.splitlines()]
    assert [{name: value for name, value in event.items() if name != "t"} for event in read] == events * 2
    assert [event["t"] for event in read] == sorted(event["t"] for event in read)
    assert b'"type": "event"' in b"".join(data for _, data in await scheduler.output(dispatch, stream=1))
    assert "transcript" not in settled.data["result"], "8 KiB of it in each journal row would help nobody"


async def test_a_session_goes_on(scheduler: FakeScheduler, tmp_path: Path) -> None:
    first = await scheduler.run(**ask("first", spec={"agent": {"cwd": str(tmp_path)}}))
    session = session_of(first)
    assert session["workspace"] == str(tmp_path)
    second = await scheduler.run(**ask("second", spec={"continue_from": "e", "continue_session": session}))
    assert second.value == "turn 2: second"
    assert session_of(second) == session, "it runs where the session was"
    assert "session_lost" not in second.data["result"]


LOST: dict[str, dict[str, Any]] = {
    "its files are gone": {"continue_from": "e", "continue_session": {"harness": "codex", "session_id": "gone"}},
    "another harness's": {"continue_from": "e", "continue_session": {"harness": "gemini-cli", "session_id": "s"}},
    "the earlier effect left none": {"continue_from": "e"},
}


@pytest.mark.parametrize("why", LOST)
async def test_a_lost_session_is_replaced_by_a_fresh_one_which_the_result_says(
    scheduler: FakeScheduler, why: str
) -> None:
    settled = await scheduler.run(**ask("go on", spec=LOST[why]))
    assert settled.value == "turn 1: go on"
    assert settled.data["result"]["session_lost"] is True
    assert session_of(settled)["session_id"].startswith("codex-")


@pytest.mark.parametrize("why", LOST)
async def test_a_lost_session_fails_the_effect_that_asked_for_that(scheduler: FakeScheduler, why: str) -> None:
    spec = {**LOST[why], "if_session_lost": "fail"}
    settled = await scheduler.run(max_attempts=5, **ask("go on", spec=spec))
    assert (settled.type, settled.reason) == ("EFFECT_RESOLVED", "SESSION_LOST"), "no other attempt would do better"


async def test_a_structured_answer_is_the_value(scheduler: FakeScheduler) -> None:
    settled = await scheduler.run(**ask(value={"approve": True}, spec={"agent": {"output_schema": SCHEMA}}))
    assert settled.value == {"approve": True}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ({"value": {"approve": "yes"}}, "answer.approve is string, not boolean"),
        ({"value": {}}, "answer.approve is missing"),
        ({"text": "fine by me"}, "answer is string, not object"),
        ({"value": {"approve": True, "n": 2**60}}, "result.n: integer 1152921504606846976 is beyond 2^53"),
    ],
)
async def test_an_answer_that_does_not_fit_is_an_invalid_result(
    scheduler: FakeScheduler, script: dict[str, Any], said: str
) -> None:
    settled = await scheduler.run(**ask(spec={"agent": {"output_schema": SCHEMA}}, **script))
    assert settled.reason == "INVALID_RESULT"
    assert said in settled.data["error"]["message"]


async def test_a_failure_has_its_reason_its_session_and_its_own_pause(scheduler: FakeScheduler) -> None:
    failure = {"reason": "RATE_LIMITED", "message": "quota spent", "retry_after_s": 3600}
    settled = await scheduler.run(max_attempts=3, **ask(fail=failure))
    assert (settled.type, settled.reason) == ("EFFECT_PARKED", "RATE_LIMITED")
    assert settled.data["error"]["message"] == "quota spent"
    assert session_of(settled)["harness"] == "codex"
    row = await scheduler.query("SELECT not_before > clock_timestamp() + interval '50 min' FROM backburner.effects")
    assert row == [(True,)], "the quota's reset counts, not the retry policy's pause"


async def test_a_reason_that_nobody_knows_is_a_harness_error(scheduler: FakeScheduler) -> None:
    settled = await scheduler.run(**ask(fail={"reason": "MOON_PHASE", "message": "wait"}))
    assert (settled.reason, settled.data["error"]["message"]) == ("HARNESS_ERROR", "MOON_PHASE: wait")


async def test_exit_with_an_error_after_an_answer_is_a_failure_that_keeps_it(scheduler: FakeScheduler) -> None:
    settled = await scheduler.run(**ask(text="nearly", exit=3))
    assert settled.reason == "HARNESS_ERROR"
    assert settled.value == "nearly"
    assert settled.data["result"]["exit_code"] == 3


@pytest.mark.invariant("I10")
async def test_a_cancel_in_the_middle_ends_the_child_and_keeps_its_session(
    scheduler: FakeScheduler, executor: ExecutorServer, tmp_path: Path
) -> None:
    dispatch = await scheduler.one(**ask(steps=["thinking"], wait_for=str(tmp_path / "never")))
    await eventually(lambda: (held := executor.attempts.get(dispatch.effect_id, 1)) and held.progress.step)
    scheduler.sessions[-1].cancel(dispatch)
    settled = await scheduler.settled(dispatch)
    assert (settled.type, settled.data["death"]) == ("EFFECT_CANCELLED", "DEATH_PROVEN")
    assert session_of(settled)["session_id"].startswith("codex-")


@pytest.mark.invariant("I10")
async def test_an_agent_that_runs_too_long_keeps_its_session(
    scheduler: FakeScheduler, executor: ExecutorServer, tmp_path: Path
) -> None:
    dispatch = await scheduler.one(
        timeouts={"start_to_close": "600s"}, **ask(steps=["thinking"], wait_for=str(tmp_path / "never"))
    )
    await eventually(lambda: (held := executor.attempts.get(dispatch.effect_id, 1)) and held.progress.step)
    attempt = executor.attempts.get(dispatch.effect_id, 1)
    assert attempt is not None
    attempt._timers["start to close"]._run()  # it has said its session: now its time is over
    settled = await scheduler.settled(dispatch)
    assert (settled.reason, settled.data["death"]) == ("TIMEOUT_START_TO_CLOSE", "DEATH_PROVEN")
    assert session_of(settled)["session_id"].startswith("codex-")


class Stub:
    """A harness in place of codex whose `run` a test gives."""

    name, version = "codex", ""

    def __init__(self, executor: ExecutorServer, run: Callable[[Host, Attempt], Awaitable[Answer]]) -> None:
        wrapped = executor.attempts.harnesses.find("agent/codex")
        assert isinstance(wrapped, AgentEffects)
        self._host, self._run = wrapped._host, run
        wrapped._agent = self

    async def run(self, request: AgentRequest, attempt: Attempt) -> Answer:
        return await self._run(self._host, attempt)


async def test_an_error_of_the_harness_ends_its_child(scheduler: FakeScheduler, executor: ExecutorServer) -> None:
    async def reads_badly(host: Host, attempt: Attempt) -> Answer:
        source = "import time; print('no JSON', flush=True); time.sleep(60)"
        work = ChildWork([sys.executable, "-S", "-E", "-c", source])
        return Answer(await host.children.run(work, attempt, on_line=json.loads))

    Stub(executor, reads_badly)
    settled = await scheduler.run(**ask())
    assert settled.reason == "HARNESS_ERROR"
    assert "JSONDecodeError" in settled.data["error"]["message"]


async def test_a_harness_without_a_child_ends_when_asked_and_keeps_what_it_has(
    scheduler: FakeScheduler, executor: ExecutorServer
) -> None:
    begun, asked = asyncio.Event(), asyncio.Event()

    async def waits(_host: Host, attempt: Attempt) -> Answer:
        attempt.started(0)
        attempt.on_end(asked.set)
        begun.set()
        await asked.wait()
        return Answer(text="so far", session_id="s-1")

    Stub(executor, waits)
    dispatch = await scheduler.one(**ask())
    await asyncio.wait_for(begun.wait(), 30)
    scheduler.sessions[-1].cancel(dispatch)
    settled = await scheduler.settled(dispatch)
    assert settled.type == "EFFECT_CANCELLED"
    assert settled.data["partial"]["value"] == {"value": "so far"}
    assert session_of(settled)["session_id"] == "s-1"


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("tests.support.no_such_module", "cannot import"),
        ("tests.support.eventually", "no function `harnesses(host)`"),
        (f"{scripted_agent.__name__},{scripted_agent.__name__}", "already brought by"),
    ],
)
async def test_a_module_that_cannot_be_used_is_an_error_at_start(
    start_executor: StartExecutor, tmp_path: Path, module: str, said: str
) -> None:
    with pytest.raises(StartError, match=said.replace("(", r"\(").replace(")", r"\)")):
        await start_executor(state_dir=str(tmp_path / "other"), harness_modules=tuple(module.split(",")))


def test_failures_of_harnesses_need_no_more_than_reason_and_message() -> None:
    assert Failure("OVERLOADED", "busy") == Failure("OVERLOADED", "busy", final=False, retry_after_s=None)
