"""Secrets by name: the child has their values, and nothing that is recorded, shown or logged has."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from executor_service.harness.agent import Answer, Attempt, Host
from executor_service.server import ExecutorServer
from tests.integration.executor.conftest import StartExecutor
from tests.integration.executor.test_agents import Stub, ask
from tests.support import scripted_agent
from tests.support.eventually import eventually
from tests.support.fake_scheduler import FakeScheduler

KEY = 'sk-"quoted"-0123456789'


@pytest.fixture
async def executor(start_executor: StartExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExecutorServer:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "anthropic").write_text(KEY + "\n")
    (folder / "anthropic").chmod(0o440)
    (folder / "open").write_text(KEY)
    (folder / "open").chmod(0o444)
    (folder / "short").write_text("1234567")
    (folder / "short").chmod(0o400)
    os.mkfifo(folder / "pipe", 0o600)
    monkeypatch.setenv("BACKBURNER_SECRET_GIT_HUB", "ghp_of_the_environment")
    server: ExecutorServer = await start_executor(harness_modules=(scripted_agent.__name__,), secrets_dir=str(folder))
    return server


pytestmark = pytest.mark.usefixtures("executor")

#: Says it on all ways that there are, in two pieces each, and waits for a file to end.
LEAKS = r"""
import json, os, sys, time
key, hold = os.environ["KEY"], sys.argv[1]
for fd in (1, 2):
    os.write(fd, b"it is " + key[:9].encode()); time.sleep(0.3); os.write(fd, key[9:].encode() + b"\n")
pipe = int(os.environ["BACKBURNER_PROGRESS_FD"])
line = json.dumps({"step": "with " + key, "data": {key: key}, "result": {"key": [key]}}).encode() + b"\n"
os.write(pipe, line[:20]); time.sleep(0.3); os.write(pipe, line[20:])
print('::backburner ' + json.dumps({"failure": {"reason": "OVERLOADED", "message": key}}), flush=True)
while not os.path.exists(hold): time.sleep(0.02)
sys.exit(3)
"""


def shell(tmp_path: Path, source: str = LEAKS, **secrets: str) -> dict[str, Any]:
    argv = [sys.executable, "-S", "-E", "-c", source, str(tmp_path / "end")]
    return {"shell": {"argv": argv, "check": True, "secrets": secrets}}


async def everything(scheduler: FakeScheduler) -> str:
    """All that the database has, as text."""
    tables = await scheduler.query("SELECT tablename FROM pg_tables WHERE schemaname = 'backburner'")
    found = [await scheduler.query(f"SELECT t::text FROM backburner.{name} t") for (name,) in tables]
    output = await scheduler.query("SELECT data FROM backburner.effect_output")
    return repr(found) + repr([bytes(data) for (data,) in output])


def pieces(text: str) -> list[str]:
    """What would give the secret away in a text."""
    forms = (KEY, json.dumps(KEY)[1:-1], json.dumps(json.dumps(KEY))[1:-1], KEY[9:], "ghp_of_the")
    return [form for form in forms if form in text]


async def test_a_secret_that_a_child_says_is_nowhere(
    scheduler: FakeScheduler, executor: ExecutorServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dispatch = await scheduler.one(**shell(tmp_path, KEY="anthropic"))
    await eventually(lambda: executor.attempts.get(dispatch.effect_id, 1), timeout=60)
    found = executor.attempts.get(dispatch.effect_id, 1)
    assert found is not None
    await eventually(lambda: bool(found.progress.step), timeout=60)
    frames = [frame.message() for frame in found.log.after(0, include_output=True, limit=1000)]
    live = repr(frames) + repr(found.snapshot())
    (tmp_path / "end").touch()
    settled = await scheduler.settled(dispatch)
    assert settled.data["error"] == {"reason": "EFFECT_REASON_OVERLOADED", "message": "***"}
    assert settled.value == {"key": ["***"]}
    assert settled.data["result"]["stderr"]["tail"] == "it is ***\n"
    assert any(frame.HasField("output") for frame in frames)
    assert "with ***" in live
    assert pieces(live) == []
    assert pieces(await everything(scheduler)) == []
    assert pieces(caplog.text) == []


async def test_the_child_has_the_values(scheduler: FakeScheduler, tmp_path: Path) -> None:
    source = "import os; open('%s', 'w').write(os.environ['A'] + ' ' + os.environ['B'])" % (tmp_path / "said")
    await scheduler.run(**shell(tmp_path, source, A="anthropic", B="git-hub"))
    assert (tmp_path / "said").read_text() == f"{KEY} ghp_of_the_environment"


async def test_an_agent_has_them_too_and_what_it_says_is_masked(scheduler: FakeScheduler, tmp_path: Path) -> None:
    work = {"cwd": str(tmp_path), "secrets": {"KEY": "anthropic"}}
    asked = ask("go", spec={"agent": work}, sh='echo "$KEY" >&2; printf %s "$KEY" > key')
    settled = await scheduler.run(**asked)
    assert (tmp_path / "key").read_text() == KEY
    assert settled.data["result"]["stderr"]["tail"].startswith("***\n")
    assert pieces(await everything(scheduler)) == []


async def test_what_only_begins_like_a_secret_is_not_lost(scheduler: FakeScheduler, tmp_path: Path) -> None:
    source = f"import os; os.write(1, {KEY[:9].encode()!r})"
    settled = await scheduler.run(**shell(tmp_path, source, KEY="anthropic"))
    assert settled.data["result"]["stdout"]["tail"] == KEY[:9]


@pytest.mark.parametrize("raises", [False, True])
async def test_a_harness_that_gives_a_secret_away_does_not(
    scheduler: FakeScheduler, executor: ExecutorServer, caplog: pytest.LogCaptureFixture, *, raises: bool
) -> None:
    """It has no child whose output could be masked."""

    async def tells(_host: Host, _attempt: Attempt) -> Answer:
        if raises:
            raise RuntimeError(f"bad key {KEY}")
        return Answer(text=f"the key is {KEY}", session_id=KEY)

    Stub(executor, tells)
    settled = await scheduler.run(**ask(spec={"agent": {"secrets": {"KEY": "anthropic"}}}))
    if raises:
        assert settled.data["error"]["message"] == "the executor failed: RuntimeError: bad key ***"
        assert "bad key ***" in caplog.text
    else:
        assert settled.value == "the key is ***"
    assert pieces(await everything(scheduler)) == []
    assert pieces(caplog.text) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "secret 'missing' is not on this executor"),
        ("../secrets/anthropic", "is no name of a secret"),
        ("open", "chmod o-rwx"),
        ("short", "must be text of 8 to 65536 bytes"),
        ("pipe", "/pipe on the executor is a named pipe: put a regular file with the value there"),
    ],
)
async def test_a_secret_that_cannot_be_had_is_named(
    scheduler: FakeScheduler, tmp_path: Path, name: str, said: str
) -> None:
    settled = await scheduler.run(**shell(tmp_path, KEY=name))
    assert settled.reason == "INVALID_WORK"
    assert said in settled.data["error"]["message"]


async def test_prompts_are_rendered_with_inputs_and_files(scheduler: FakeScheduler, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("the words of a")
    work = {"cwd": str(tmp_path), "inputs": {"who": {"name": "Ann"}}, "attachments": [{"path": "a.md"}]}
    settled = await scheduler.run(**ask("Greet {{who.name}}", spec={"agent": work}))
    assert settled.value == "turn 1: Greet Ann"
    [session] = (tmp_path / "state").glob("**/codex-*")
    assert "the words of a" in session.read_text()
    no_file = work | {"attachments": [{"path": "b"}]}
    for wrong, said in ((work | {"inputs": {}}, "names nothing"), (no_file, "/b' cannot be read")):
        settled = await scheduler.run(**ask("Greet {{who.name}}", spec={"agent": wrong}))
        assert settled.reason == "INVALID_WORK"
        assert said in settled.data["error"]["message"]


async def test_the_key_of_the_provider_is_a_secret_too(
    scheduler: FakeScheduler, start_executor: StartExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not asked for by name: the CLI gets it from the executor's own environment."""
    await scheduler.session()
    monkeypatch.setenv("TALKER_KEY", KEY)
    program = tmp_path / "talker"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo 1.0.0 && exit\nprintf %s "the key is $TALKER_KEY"\n')
    program.chmod(0o755)
    commands = {"talker": {"argv": [str(program)], "credentials": ["TALKER_KEY"], "output": "text"}}
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    await start_executor(
        executor_id="talks", state_dir=str(tmp_path / "talks"), agents=("talker",),
        harness_commands=str(tmp_path / "commands.json"),
    )  # fmt: skip
    await scheduler.session(after=1)
    settled = await scheduler.run(**ask(harness="talker", spec={"agent": {"cwd": str(tmp_path)}}))
    assert settled.value == "the key is ***"
    assert pieces(await everything(scheduler)) == []


async def test_passwords_that_a_child_inherits_or_is_given_are_secrets_too(
    scheduler: FakeScheduler, start_executor: StartExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all that it says, and it says each of them in two pieces."""
    await scheduler.session()
    monkeypatch.setenv("DEPLOY_PASSWORD", KEY)
    monkeypatch.setenv("HTTPS_PROXY", "http://ann:hidden-in-a-url@proxy:8080")
    allowed = ("DEPLOY_PASSWORD", "HTTPS_PROXY")
    await start_executor(executor_id="allows", state_dir=str(tmp_path / "allows"), env_allow=allowed)
    await scheduler.session(after=1)
    (tmp_path / "end").touch()
    source = LEAKS.replace('os.environ["KEY"]', 'os.environ["DEPLOY_PASSWORD"]').replace("sys.exit(3)", "")
    source += "print(os.environ['HTTPS_PROXY'], os.environ['PLAIN'], os.environ['APP_SECRET'])"
    work = shell(tmp_path, source)
    work["shell"]["env"] = {"PLAIN": "not a secret", "APP_SECRET": "given by the effect"}
    settled = await scheduler.run(**work)
    assert settled.value == {"key": ["***"]}
    assert settled.data["result"]["stderr"]["tail"] == "it is ***\n"
    assert settled.data["result"]["stdout"]["tail"].endswith("http://ann:***@proxy:8080 not a secret ***\n")
    found = await everything(scheduler)
    assert pieces(found) == []
    assert "hidden-in-a-url" not in found


#: Reports numbers of which one is the value of a secret variable, by the pipe and by a line of its output.
COUNTS = r"""
import json, os
os.write(int(os.environ["BACKBURNER_PROGRESS_FD"]), json.dumps({"usage": {"input_tokens": 20240115}}).encode() + b"\n")
print("::backburner " + json.dumps({"result": {"day": 20240115, "days": [20240116, "on 20240115"]}}), flush=True)
"""


async def test_a_secret_that_is_a_number_makes_no_report_another_or_none(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    work = shell(tmp_path, COUNTS)
    work["shell"]["env"] = {"PARTITION_KEY": "20240115"}
    settled = await scheduler.run(**work)
    assert settled.value == {"day": "***", "days": [20240116, "on ***"]}
    assert settled.data["result"]["usage"]["input_tokens"] == 20240115
