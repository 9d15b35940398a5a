"""Agent CLIs that hang, flood, come later, are upgraded, removed or logged in: real scripts, looked for."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.harness.cli import discovery, lookout
from executor_service.harness.cli.accounts import fingerprint
from executor_service.harness.cli.adapter import Adapter
from executor_service.harness.cli.claude_code import ClaudeCode
from executor_service.harness.cli.codex import Codex
from executor_service.harness.cli.copilot import Copilot
from executor_service.harness.cli.discovery import Found, look
from executor_service.harness.cli.gemini_cli import GeminiCli
from executor_service.harness.cli.lookout import Lookout
from executor_service.harness.cli.opencode import OpenCode
from scheduler_service.api.hello import check_found
from tests.support.eventually import eventually
from tests.support.journals import alive

KEYS = ("OPENAI_API_KEY", "CODEX_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY", "CODEX_HOME",
        "CLAUDE_CONFIG_DIR", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")  # fmt: skip


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the program `codex`, which runs this script."""

    def write(script: str) -> Path:
        new = tmp_path / "codex.new"
        new.write_text(f"#!/bin/sh\n{script}\n")
        new.chmod(0o755)
        return new.rename(tmp_path / "codex")  # as installers do: the old one may be running

    return write


@asynccontextmanager
async def looking(home: Path, every_s: float) -> AsyncIterator[tuple[Lookout, list[Found]]]:
    """A lookout for codex at work, and what it has told."""
    told: list[Found] = []
    made = Lookout([Codex()], {"codex": str(home / "codex")}, lambda name: home, every_s=every_s)
    made.on_change = told.append
    work = asyncio.create_task(made.run())
    try:
        yield made, told
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def test_copilot_tells_the_release_that_will_run_and_not_what_it_has_updated_itself_to(tmp_path: Path) -> None:
    program = tmp_path / "copilot"
    program.write_text('#!/bin/sh\n[ "$COPILOT_AUTO_UPDATE" = false ] && echo 1.0.87 || echo 1.0.102\n')
    program.chmod(0o755)
    found = await look(Copilot(), str(program), tmp_path)
    assert found.check.version == "1.0.87"


def placed(folder: Path, script: str) -> str:
    """The path of a `codex` there that runs this script."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "codex").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "codex").chmod(0o755)
    return str(folder / "codex")


async def test_what_is_told_of_a_cli_is_never_more_or_other_than_a_scheduler_takes(tmp_path: Path) -> None:
    """A hello that is refused for it would keep the executor away, with all else that it has."""
    undecodable = tmp_path / os.fsdecode(b"not-\xff-utf-8")
    deep = tmp_path.joinpath(*["d" * 200] * 18)
    many = "i=0; while [ $i -lt 500 ]; do printf 1.; i=$((i+1)); done; echo 1"
    for folder, script in ((undecodable, "echo 1.0.0"), (undecodable, "exit 3"), (tmp_path, many),
                           (deep, "printf '%900s' x >&2; exit 3")):  # fmt: skip
        check = (await look(Codex(), placed(folder, script), tmp_path)).check
        assert check.path
        check_found(pb.HarnessesFound(harness_checks=[check]))
    for gone in (str(undecodable / "gone"), "g" * 5000):
        check_found(pb.HarnessesFound(harness_checks=[(await look(Codex(), gone, tmp_path)).check]))


@pytest.mark.parametrize(("script", "said"), [
    ("sleep 1000 & echo $! $$ > {pids}; wait", "has not answered within 1 s"),
    ("sleep 1000 & echo $! $$ > {pids}; exec yes 1.2.3", "says more than 64 KiB"),
    ("sleep 1000 & echo $! $$ > {pids}; exec yes 1.2.3 >&2", "says more than 64 KiB"),
])  # fmt: skip
async def test_one_that_hangs_or_floods_is_ended_with_its_group(
    tmp_path: Path, program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    monkeypatch.setattr(discovery, "VERSION_SECONDS", 1.0 if "wait" in script else 60.0)
    pids = tmp_path / "pids"
    found = await look(Codex(), str(program(script.format(pids=pids))), tmp_path)
    assert found.program is None
    assert said in found.check.remedy
    assert (found.check.found, found.check.path) == (False, str(tmp_path / "codex"))
    left = [int(pid) for pid in pids.read_text().split()]
    assert len(left) == 2
    await eventually(lambda: not any(map(alive, left)), 10, f"of {left} somebody is alive")


async def test_what_it_leaves_running_does_not_hold_up_the_answer(
    tmp_path: Path, program: Callable[[str], Path]
) -> None:
    pids = tmp_path / "pids"
    found = await look(Codex(), str(program(f"sleep 1000 & echo $! > {pids}; echo codex-cli 0.170.1")), tmp_path)
    assert (found.check.found, found.check.version, found.check.version_known) == (True, "0.170.1", True)
    await eventually(lambda: not alive(int(pids.read_text())), 10, "what it left is alive")


async def test_what_is_slow_holds_up_nobody_and_is_told_later(tmp_path: Path, program: Callable[[str], Path]) -> None:
    gate = tmp_path / "gate"
    program(f"until test -e {gate}; do sleep 0.02; done; echo 0.170.1")
    async with looking(tmp_path, 0) as (made, told):
        await made.looked(0.05)
        assert [found.check.looking for found in made.found.values()] == [True]
        assert not told
        gate.touch()
        await made.looked(None)
        [found] = told
        assert (found.check.looking, found.check.version) == (False, "0.170.1")
        assert made.found["codex"] is found


async def test_one_that_comes_later_is_upgraded_and_goes_is_seen_each_time(
    tmp_path: Path, program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "PAUSE_SECONDS", 0.01)
    async with looking(tmp_path, 0.02) as (made, told):
        await made.looked(None)
        for script in ("echo 0.170.1", "echo 0.171.0", "exit 3"):
            known = made.found["codex"]
            program(script)
            await eventually(lambda known=known: made.found["codex"] is not known and told, 30, script)
        (tmp_path / "codex").unlink()
        await eventually(lambda: "is no program" in told[-1].check.remedy, 30, "it is still there")
        seen = [found.program.version if found.program else "" for found in told]
        assert seen == ["", "0.170.1", "0.171.0", "", ""]
        assert "ended with 3" in told[-2].check.remedy


async def test_a_failure_that_speaks_against_it_has_it_looked_at(
    tmp_path: Path, program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no period here: by itself it would never look again."""
    monkeypatch.setattr(lookout, "PAUSE_SECONDS", 0.01)
    count = tmp_path / "count"
    program(f"echo x >> {count}; echo 0.170.1")
    async with looking(tmp_path, 0) as (made, told):
        await made.looked(None)
        made.doubt("codex", "REFUSED")
        made.doubt("another", "AUTHENTICATION")
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert count.read_text() == "x\n"
        assert told[-1].check.login == pb.HARNESS_LOGIN_MISSING
        made.doubt("codex", "AUTHENTICATION")
        await eventually(lambda: len(count.read_text()) > 4, 30, "nobody looked")
        (tmp_path / ".codex").mkdir()
        (tmp_path / ".codex" / "auth.json").write_text('{"tokens": {"account_id": "a-1"}}')
        await eventually(lambda: told[-1].check.login == pb.HARNESS_LOGIN_FOUND, 30, "the login is not seen")
        assert told[-1].check.account == f"openai:{fingerprint('a-1')}"


async def test_one_that_did_run_is_asked_twice_before_it_is_given_up(
    tmp_path: Path, program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "PAUSE_SECONDS", 0.01)
    fails = tmp_path / "fails"
    program(f"test -e {fails} && rm {fails} && exit 1; echo 0.170.1")
    async with looking(tmp_path, 0.02) as (made, told):
        await made.looked(None)
        fails.touch()
        await eventually(lambda: not fails.exists(), 30, "nobody looked")
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert len(told) == 1, told


def _write(home: Path, name: str, content: object) -> None:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("adapter", "files", "env", "account"), [
    (ClaudeCode(), {}, {}, ""),
    (ClaudeCode(), {}, {"ANTHROPIC_API_KEY": "k"}, "k"),
    (ClaudeCode(), {".claude.json": {"oauthAccount": {"accountUuid": "u"}}}, {}, "u"),
    (ClaudeCode(), {"c/.claude.json": {"oauthAccount": {"accountUuid": "u"}}, ".claude.json": {}},
     {"CLAUDE_CONFIG_DIR": "{home}/c"}, "u"),
    (ClaudeCode(), {".claude.json": ["no object"]}, {}, ""),
    (Codex(), {".codex/auth.json": {"tokens": {"account_id": "acct-1"}}}, {"OPENAI_API_KEY": "k"}, "acct-1"),
    (Codex(), {".codex/auth.json": {"tokens": {"account_id": "acct-1"}}}, {"CODEX_API_KEY": "k"}, "k"),
    (Codex(), {".codex/auth.json": {"OPENAI_API_KEY": "k", "tokens": None}}, {}, "k"),
    (Codex(), {".codex/auth.json": {"tokens": {"account_id": "acct-1"}}}, {"CODEX_HOME": "{home}/c"}, ""),
    (Codex(), {}, {"OPENAI_API_KEY": "k"}, "k"),
    (GeminiCli(), {".gemini/google_accounts.json": {"active": "me@x"}}, {}, "me@x"),
    (OpenCode(), {}, {"OPENAI_API_KEY": "k"}, "k"),
    (OpenCode(), {}, {"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "l"}, ""),
    (OpenCode(), {".local/share/opencode/auth.json": {}}, {"OPENAI_API_KEY": "k"}, ""),
])  # fmt: skip
def test_the_account_is_told_without_a_call_and_nobody_can_read_it(
    tmp_path: Path, adapter: Adapter, files: dict[str, object], env: dict[str, str], account: str
) -> None:
    for name, content in files.items():
        _write(tmp_path, name, content)
    env = {name: value.format(home=tmp_path) for name, value in env.items()}
    told = adapter.account(env, tmp_path, None)
    assert told == fingerprint(account)
    assert len(account) < 2 or account not in told


async def test_a_new_login_of_the_same_account_is_told(tmp_path: Path, program: Callable[[str], Path]) -> None:
    path = program("echo 0.170.1")
    seen = []
    for token in ("tokens-word-1", "tokens-word-2"):
        _write(tmp_path, ".codex/auth.json", {"tokens": {"account_id": "a", "access_token": token}})
        seen.append((await look(Codex(), str(path), tmp_path)).check)
    assert seen[0].account == seen[1].account != ""
    assert seen[0].login_id != seen[1].login_id
    assert "tokens-word" not in str(seen[0])
