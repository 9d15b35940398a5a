"""Real CLIs with both services: retries that go on with the session, parking until a reset, failover."""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from google.protobuf import json_format

from backburner.scheduler.v1 import operator_service_pb2 as operator_pb
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.journal.verify import verify
from tests.harnesses.specs import agent
from tests.harnesses.table import clis
from tests.support.eventually import eventually
from tests.support.harnesses import Cli
from tests.support.journals import journal_of, of_type
from tests.support.model_server import Fault, ModelServer, Scenario, asked_and_answered
from tests.support.services import Stack, running_stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

StackOf = Callable[..., Any]


@pytest.fixture
async def stack_of(cli: Callable[[str], Cli], database_url: str, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Both services, the executor with these CLIs alone."""
    stacks: list[Any] = []

    async def start(*names: str, **env: str) -> Stack:
        paths = ",".join(f"{name}={cli(name).executable}" for name in names)
        executor = {
            "BACKBURNER_AGENTS": ",".join(names), "BACKBURNER_HARNESS_PATHS": paths, "BACKBURNER_AGENT_HOMES": "tenant",
            **env,
        }  # fmt: skip
        context = running_stack(database_url, tmp_path, "", executor_env=executor)
        stacks.append(context)
        started: Stack = await context.__aenter__()
        return started

    yield start
    for context in stacks:
        await context.__aexit__(None, None, None)


async def ask(stack: Stack, key: str, **spec: Any) -> tuple[str, str]:
    """Requests an effect in a run of its own; gives the ids of both."""
    created = await stack.client.CreateRun(pb.CreateRunRequest(key=key, client=pb.ClientDriven()), timeout=30)
    asked = pb.RequestEffectsRequest(run_id=created.run.run_id, client_epoch=created.client_epoch)
    json_format.ParseDict({"key": "it", "spec": spec}, asked.effects.add())
    answer = await stack.client.RequestEffects(asked, timeout=30)
    return created.run.run_id, answer.effects[0].effect_id


async def effect_of(stack: Stack, effect_id: str) -> pb.Effect:
    named = pb.GetEffectRequest(effect=pb.EffectName(effect_id=effect_id))
    return (await stack.client.GetEffect(named, timeout=30)).effect


async def sound(stack: Stack, run_id: str) -> None:
    [checked] = [found async for found in verify(stack.dsn, [run_id])]
    assert checked.violations == []


def value_of(effect: pb.Effect) -> Any:
    return json_format.MessageToDict(effect.result)["value"]["value"]


async def settled(stack: Stack, effect_id: str) -> pb.Effect:
    async def done() -> bool:
        return bool((await effect_of(stack, effect_id)).settle_seq)

    await eventually(done, timeout=180, message=lambda: stack.executor.tail)
    return await effect_of(stack, effect_id)


def tokens(*usages: Mapping[str, Any]) -> tuple[float, float]:
    """Input and output of several attempts together."""
    return sum(u.get("input_tokens", 0) for u in usages), sum(u.get("output_tokens", 0) for u in usages)


#: Of a step that was killed they know nothing: they write down what it consumed, and copilot its session, when it ends
#: or some time into it.
LATE = ("opencode", "copilot")


@pytest.mark.parametrize("name", clis())
async def test_a_retry_goes_on_with_the_session_and_each_token_is_counted_once(
    name: str, stack_of: StackOf, model_server: ModelServer, tmp_path: Path
) -> None:
    stack = await stack_of(name)
    work = tmp_path / "work"
    work.mkdir()
    model_server.play(asked_and_answered("echo $$ >pid; sleep 1000"))
    retry = {"max_attempts": 2, "initial": "0.100s"}
    run_id, effect_id = await ask(stack, f"retry/{name}", retry=retry, **agent(name, model_server, cwd=str(work)))
    await eventually(lambda: (work / "pid").exists() and (work / "pid").read_text().strip(), timeout=120)
    killed = child_of(stack.executor.pid, int((work / "pid").read_text()))
    before = model_server.total(key="key")
    model_server.play(asked_and_answered())
    killed.kill()
    effect = await settled(stack, effect_id)
    rows = await journal_of(stack.dsn, run_id)
    [failed], [resolved] = of_type(rows, "EFFECT_ATTEMPT_FAILED"), of_type(rows, "EFFECT_RESOLVED")
    assert failed.data["error"]["reason"] == "EFFECT_REASON_HARNESS_CRASHED"
    session = failed.data["partial"]["session"]["session_id"]
    result = resolved.data["result"]
    assert result["value"]["value"] == "All is done."
    started = of_type(rows, "EFFECT_STARTED")[-1]
    assert started.attempt == 2
    if name == "copilot" and "continues" not in started.data:
        assert session in result["fresh_because"], "it began anew, and says so"
    else:
        assert (started.data["continues"]["session_id"], result["continued_session_id"]) == (session, session)
    handed = model_server.total(key="key")
    told = tokens(failed.data["partial"].get("usage", {}), result["usage"])
    possible = [(handed.input, handed.output)]
    if name in LATE:
        possible.append((handed.input - before.input, handed.output - before.output))
    assert told in possible
    assert (effect.usage.input_tokens, effect.usage.output_tokens) == told
    await sound(stack, run_id)


def child_of(executor: int, pid: int) -> psutil.Process:
    """The CLI that a tool's process descends from: the highest that is not the executor's own keeper."""
    own = psutil.Process(pid)
    line = [own, *own.parents()]
    keepers = [process for process in line if process.pid == executor or "keeper" in " ".join(process.cmdline())]
    above = next(index for index, process in enumerate(line) if process in keepers)
    return line[above - 1]


async def test_a_spent_quota_parks_until_the_reset_without_a_slot(stack_of: StackOf, model_server: ModelServer) -> None:
    stack = await stack_of("claude-code", BACKBURNER_PARK_SECONDS="1", BACKBURNER_SLOTS_AGENTS="1")
    reset = int(time.time()) + 20
    model_server.play(Scenario(faults=(Fault("usage_limit", message=f"Claude AI usage limit reached|{reset}"),)))
    run_id, effect_id = await ask(stack, "quota", **agent("claude-code", model_server))

    async def parked() -> list[Any]:
        rows = await journal_of(stack.dsn, run_id)
        assert not of_type(rows, "EFFECT_RESOLVED"), rows[-1]
        return of_type(rows, "EFFECT_PARKED")

    [row] = await eventually(parked, timeout=60)
    assert row.data["error"]["reason"] == "EFFECT_REASON_QUOTA_EXHAUSTED"
    waiting = (await effect_of(stack, effect_id)).waiting_on
    assert waiting.message.startswith("parked, without a slot")
    [executor] = (await stack.operator.ListExecutors(operator_pb.ListExecutorsRequest(), timeout=30)).executors
    assert executor.slots_taken["agents"] == 0
    model_server.play(asked_and_answered())
    effect = await settled(stack, effect_id)
    assert value_of(effect) == "All is done."
    dispatched = of_type(await journal_of(stack.dsn, run_id), "EFFECT_DISPATCHED")
    assert len(dispatched) == 2
    assert dispatched[-1].recorded_at.timestamp() >= reset - 1
    await sound(stack, run_id)


async def test_the_next_harness_of_the_chain_does_what_the_first_may_not(
    stack_of: StackOf, model_server: ModelServer
) -> None:
    stack = await stack_of("claude-code", "codex")
    model_server.play(Scenario(faults=(Fault("authentication", on_turn=None),)), key="no")
    first = agent("claude-code", model_server, key="no")["agent"]
    second = agent("codex", model_server, key="yes")["agent"]
    options = {"claude-code": first["options"], "codex": {**second["options"], "model": second["model"]}}
    work = {**first, "env": {**first["env"], **second["env"]}, "options": options}
    run_id, effect_id = await ask(stack, "chain", agent=work, fallbacks=["codex"])
    effect = await settled(stack, effect_id)
    assert value_of(effect) == "All is done."
    assert effect.result.harness == "codex"
    [failed] = of_type(await journal_of(stack.dsn, run_id), "EFFECT_ATTEMPT_FAILED")
    assert failed.data["error"]["reason"] == "EFFECT_REASON_AUTHENTICATION"
    assert failed.data["next_harness"] == "codex"
