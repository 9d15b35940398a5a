"""`backburner demo agents`: on its sample, with real CLIs, and on a repository of somebody's."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.harnesses import CLIS
from tests.support.model_server import ModelServer, Scenario, Turn
from tests.support.repositories import git, repository, state_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
ANSWER = json.dumps({"summary": "Done, it seems.", "findings": []})


def real(*names: str) -> list[str]:
    """Options for the CLIs of these names that are installed."""
    return [f"--harness-path={name}={CLIS[name].executable}" for name in names if not CLIS[name].why_not()]


def demo(home: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run it where nobody is logged in, and no agent CLI is on PATH."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith(("_KEY", "_TOKEN", "_URL"))}
    kept |= {
        "COLUMNS": "200",
        "HOME": str(home),
        "PATH": f"{home}/bin",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto' / 'gen'}",
    }
    done = subprocess.run(
        [sys.executable, "-m", "scheduler_service.cli", "demo", "agents", *arguments],
        cwd=home, env=kept | env, capture_output=True, text=True, check=False, timeout=280, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A HOME with the few programs that are needed on PATH."""
    (tmp_path / "bin").mkdir()
    for name in ("git", "sh", "cat", "bash"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    return tmp_path


@pytest.fixture
def kept(home: Path) -> Iterator[list[str]]:
    """Folders that a demo keeps, to be removed."""
    folders: list[str] = []
    yield folders
    for folder in folders:
        shutil.rmtree(folder)


def check_sample(said: dict[str, Any]) -> None:
    """The sample is mended in two goes, documented and reviewed, and the loop never waited."""
    report = said["run"]["result"]["value"]
    work = {one["role"]: one for one in report["work"]}
    assert (report["passed_before"], report["passed_after"]) == (False, True)
    assert {role: one["merged"] for role, one in work.items()} == {"fix": True, "document": True, "review": False}
    assert [finding["file"] for finding in work["review"]["findings"]] == ["tally/ledger.py", "tally/money.py"]
    assert len(report["branches"]) == 1
    again = next(one for key, one in said["seen"].items() if key.endswith("/again"))
    assert again["continued"], "the fix goes on in its session"
    assert said["holds"]
    assert {item["key"] for item in said["evidence"]} == set(said["seen"])
    for one in said["seen"].values():
        # What finds the directory of the effect before it still in use is handed back unstarted, and offered again.
        assert one["state"] == "SUCCEEDED"
        assert one["attempts"] <= 2
        assert one["turns"] > 1
        assert sum(one["tools"].values()) > 1
        assert one["input_tokens"] == 1800 + 2100 * (one["turns"] - 1)


def test_the_sample_without_any_agent_cli(home: Path) -> None:
    done = demo(home, "--json")
    said = json.loads(done.stdout)
    check_sample(said)
    assert [(part["harness"], part["real"]) for part in said["parts"]] == [("demo-agent", False)] * 3
    assert "STAND-IN: a script, no model, costs nothing" in done.stderr
    assert "cost unknown" not in done.stderr, "a script costs nothing, and that is known"
    assert {one["cost_usd"] for one in said["seen"].values()} == {0.0}
    left = said["run"]["input"]["order"]["place"]
    assert not Path(left).parent.exists(), "nothing is left behind"


@pytest.mark.skipif(len(real("claude-code", "codex")) < 2, reason="claude-code and codex are not both installed")
def test_the_sample_with_real_clis_and_no_account_whoever_is_logged_in(home: Path) -> None:
    theirs = {"ANTHROPIC_AUTH_TOKEN": "theirs", "CLAUDE_CODE_USE_BEDROCK": "1", "OPENAI_API_KEY": "theirs"}
    done = demo(home, "--json", "--stand-ins", *real("claude-code", "codex"), **theirs)
    said = json.loads(done.stdout)
    check_sample(said)
    assert [part["harness"] for part in said["parts"]] == ["claude-code", "codex", "demo-agent"]
    assert not any(part["real"] for part in said["parts"])
    assert not (home / ".claude").exists()
    assert not (home / ".codex").exists()


def test_a_repository_of_somebody_stays_as_it_is_but_for_a_branch(home: Path, kept: list[str]) -> None:
    repo = repository(home / "repo")
    (repo / "dirty.txt").write_text("not committed\n")
    before = (*state_of(repo), git(repo, "for-each-ref"))
    with ModelServer(Scenario(turns=(Turn(text=ANSWER),))) as server:
        account = {"ANTHROPIC_API_KEY": "theirs", "ANTHROPIC_BASE_URL": server.url}
        done = demo(home, str(repo), "--test", "cat a.txt", "--yes", *real("claude-code"), **account)
        charged = server.total(key="theirs")
    kept += re.findall(r"kept in (\S+):", done.stdout)
    assert "has uncommitted changes: the agents get its last commit, without them" in done.stderr
    [branch] = re.findall(r"new branch (\S+) in", done.stdout)
    notes = set(git(repo, "diff", "--name-only", "HEAD", branch).split())
    if real("claude-code"):
        assert charged.input > 0
        assert notes == {"NOTES-document.md"}, "the account's agent changed nothing"
        assert re.search(r"fix +claude-code .* for at most \$0.50 a task", done.stderr)
        assert len(kept) == 1, "what was paid for is kept"
    else:
        assert notes == {"NOTES-fix.md", "NOTES-document.md"}
    git(repo, "branch", "-D", branch)
    assert (*state_of(repo), git(repo, "for-each-ref")) == before
