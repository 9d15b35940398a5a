"""Who takes which role, and how a repository's tests are run."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from backburner.scheduler.v1 import dispatch_service_pb2 as dispatch
from executor_service.harness.cli.events import Tokens
from executor_service.harness.cli.prices import load_prices
from scheduler_service.cli.demo.agents import driver
from scheduler_service.cli.demo.agents.guess import guess_test_command
from scheduler_service.cli.demo.agents.plan import choose
from scheduler_service.cli.demo.agents.stand_ins import price_stand_ins
from scheduler_service.cli.errors import UsageProblem
from tests.support.repositories import repository


def check(name: str, *, login: bool = False, found: bool = True) -> dispatch.HarnessCheck:
    state = dispatch.HARNESS_LOGIN_FOUND if login else dispatch.HARNESS_LOGIN_MISSING
    return dispatch.HarnessCheck(name=name, found=found, version="1.2.3", login=state)


def chosen(
    *checks: dispatch.HarnessCheck, named: tuple[str, ...] = (), accounts: bool = True
) -> list[tuple[str, bool]]:
    return [(part.harness, part.real) for part in choose(checks, named, accounts=accounts)]


def test_accounts_come_first_and_the_small_agent_last() -> None:
    small = ("demo-agent", False)
    assert chosen() == [small, small, small]
    found = [check("claude-code"), check("codex", login=True), check("opencode"), check("pi", found=False)]
    assert chosen(*found) == [("codex", True), ("claude-code", False), small]
    assert chosen(*found, accounts=False) == [("claude-code", False), ("codex", False), small]
    every = [check(name, login=True) for name in ("claude-code", "codex", "gemini-cli", "opencode")]
    assert chosen(*every) == [("claude-code", True), ("codex", True), ("gemini-cli", True)]


def test_a_script_costs_nothing_and_the_prices_of_who_runs_the_demo_hold(tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text('{"models": {"m": [1, 2, 3, 4]}}')
    written = price_stand_ins(tmp_path / "data" / "prices.json", str(mine))
    assert json.loads(written.read_text())["models"] == {"m": [1, 2, 3, 4], "scripted": [0, 0, 0, 0]}
    alone = price_stand_ins(tmp_path / "prices.json", "")
    assert load_prices(str(alone)).cost("scripted", Tokens(100, 10, 0, 0)) == 0.0


@pytest.mark.parametrize("said", ["no JSON", "[]", '{"models": 7}'])
def test_prices_that_cannot_be_read_are_left_to_the_executor_to_tell(tmp_path: Path, said: str) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text(said)
    assert price_stand_ins(tmp_path / "prices.json", str(mine)) == mine
    assert price_stand_ins(tmp_path / "prices.json", str(tmp_path / "gone")) == tmp_path / "gone"


def test_named_harnesses_take_turns() -> None:
    found = [check("claude-code", login=True), check("codex", login=True)]
    assert chosen(*found, named=("codex",)) == [("codex", True)] * 3
    assert chosen(*found, named=("codex", "claude-code"))[2] == ("codex", True)
    with pytest.raises(UsageProblem, match="pi: it is not on this machine; there are: claude-code, codex"):
        chosen(*found, named=("pi",))
    with pytest.raises(UsageProblem, match="not logged in, and cannot be led to the stand-in"):
        chosen(check("opencode"), named=("opencode",))


@pytest.mark.parametrize(
    ("files", "command"),
    [
        ({}, ""),
        ({"tests/test_a.py": "", "Makefile": "test:\n\ttrue\n"}, "-m pytest -q -p no:cacheprovider"),
        ({"package.json": json.dumps({"scripts": {"test": "jest"}}), "package-lock.json": "{}"}, "npm ci"),
        ({"package.json": json.dumps({"scripts": {"test": "jest"}})}, "npm install"),
        ({"package.json": json.dumps({"scripts": {"test": "echo 'Error: no test specified' && exit 1"}})}, ""),
        ({"package.json": "[]", "go.mod": "module a\n"}, "go test ./..."),
        ({"Cargo.toml": ""}, "cargo test"),
        ({"Makefile": "all:\n\ttrue\n\ntest : all\n\ttrue\n"}, "make test"),
        ({"Makefile": "tests:\n\ttrue\n"}, ""),
    ],
)
def test_how_tests_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], command: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/bin/{name}")
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    guessed = guess_test_command(tmp_path)
    assert command in guessed if command else guessed == ""


def test_a_tool_that_is_not_here_is_no_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: None)
    (tmp_path / "go.mod").write_text("module a\n")
    assert guess_test_command(tmp_path) == ""


def wanted(path: Path | None, *, yes: bool = False) -> driver.Wanted:
    return driver.Wanted(path, "", (), (), accounts=True, budget_usd=0.25, yes=yes, keep=False, as_json=False)


def test_what_cannot_be_done_is_said_before_anything_is_started(tmp_path: Path) -> None:
    for path, problem in (
        (tmp_path, "no git repository with a commit"),
        (repository(tmp_path / "r"), "cannot be told"),
    ):
        (data := tmp_path / "data").mkdir()
        with pytest.raises(UsageProblem, match=problem):
            driver.run_agents_demo(wanted(path), data)
        assert not data.exists()


def test_no_account_is_used_unless_somebody_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # no terminal
    job, account = driver.Job(tmp_path, "true"), [check("claude-code", login=True)]
    with pytest.raises(UsageProblem, match="nobody is there to ask; --yes agrees, --stand-ins uses none"):
        driver._agreed(wanted(tmp_path), account, job)
    said = capsys.readouterr().err
    assert "for at most $0.25" in said
    assert said.count("STAND-IN") == 2
    assert driver._agreed(wanted(tmp_path, yes=True), account, job)[0].real
    assert not any(part.real for part in driver._agreed(wanted(tmp_path), [check("claude-code")], job))
