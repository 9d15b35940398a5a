"""`backburner demo` on repositories of every shape."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
GIT = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]


def git(folder: Path, *arguments: str) -> None:
    subprocess.run([*GIT, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "tests").mkdir(parents=True)
    for number in range(30):
        (folder / f"module_{number}.py").write_text(f"import os\n\n\ndef f():\n    return {number}  # TODO\n")
    (folder / "tests" / "test_a.py").write_text(
        "import time, pytest\n\n@pytest.mark.parametrize('n', range(20))\ndef test_a(n):\n    time.sleep(0.1)\n"
        "    assert n != 7\n"
    )
    return folder


def demo(folder: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto" / "gen")])
    env = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "COLUMNS")}
    done = subprocess.run(
        [sys.executable, "-m", "scheduler_service.cli", "demo", str(folder), *arguments],
        cwd=cwd,
        env={**env, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_a_repository_with_a_history(project: Path) -> None:
    git(project, "init", "-q")
    git(project, "add", "-A")
    for number in range(200):
        git(project, "commit", "-q", "--allow-empty", "-m", f"commit {number}")
    done = demo(project, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["holds"]
    assert {item["key"] for item in said["evidence"]} == {"tests", "history", "content"}
    assert all(item["foreground"] > 0 for item in said["evidence"])
    report = said["run"]["result"]["value"]
    verdicts = {finding["key"]: finding["verdict"] for finding in report["findings"]}
    assert "commits 200" in verdicts["history"]
    assert "exit code 1: 1 failed, 19 passed" in verdicts["tests"]  # a finding, not a failure of the demo
    assert "was cancelled (RACE_LOST)" in report["race"] or "had finished" in report["race"]
    assert report["answer"] == "accept by demo"


def test_a_repository_without_commits(project: Path) -> None:
    git(project, "init", "-q")
    done = demo(project)
    assert done.returncode == 0, done.stderr
    assert "skipped: no commits yet" in done.stdout
    assert "FROM backburner.journal" in done.stdout
    assert "The loop never waited" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_folder_without_git(project: Path) -> None:
    done = demo(project, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "skipped: not a git repository" in done.stdout


def test_nothing_is_left_behind(project: Path) -> None:
    before = sorted(project.rglob("*"))
    assert demo(project).returncode == 0
    assert sorted(project.rglob("*")) == before
