import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scheduler_service.cli.demo import children
from scheduler_service.cli.demo.survey import Survey, survey_of

GIT = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]


@pytest.fixture(autouse=True)
def no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    # When the demo runs these tests, what they report would be taken for their own progress.
    monkeypatch.delenv("BACKBURNER_PROGRESS_FD", raising=False)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run([*GIT, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("import os\n")
    (tmp_path / "b.txt").write_text("same\n")
    (tmp_path / "c.txt").write_text("same\n")
    (tmp_path / ".gitignore").write_text("ignored/\n")
    (tmp_path / "ignored").mkdir()
    (tmp_path / "ignored" / "d.py").write_text("x = 1\n")
    return tmp_path


def commit(folder: Path, count: int) -> None:
    git(folder, "add", "-A")
    for number in range(count):
        git(folder, "commit", "-q", "--allow-empty", "-m", f"commit {number}")


def missing(survey: Survey) -> dict[str, str]:
    return {slow.key: slow.missing for slow in survey.slow}


def test_a_repository_without_commits_has_files_and_no_history(repository: Path) -> None:
    survey = survey_of(repository, 10)
    assert survey.files == [".gitignore", "a.py", "b.txt", "c.txt"]
    assert missing(survey)["history"] == "no commits yet"
    assert survey.is_git


def test_a_repository_with_commits_has_a_history(repository: Path) -> None:
    commit(repository, 1)
    assert missing(survey_of(repository, 10))["history"] == ""


def test_a_folder_without_git_is_walked(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x").write_text("")
    survey = survey_of(tmp_path, 10)
    assert survey.files == ["a.py"]
    assert (survey.is_git, missing(survey)["history"]) == (False, "not a git repository")


def test_files_are_capped_and_python_goes_first(repository: Path) -> None:
    assert survey_of(repository, 1).files == ["a.py"]
    assert survey_of(repository, 1).total_files == 4


def test_the_fingerprint_is_always_there_so_that_something_runs_in_the_background(tmp_path: Path) -> None:
    assert [key for key, why in missing(survey_of(tmp_path, 10)).items() if not why] == ["content"]


def test_tests_and_types_are_found(repository: Path) -> None:
    (repository / "tests" / "unit").mkdir(parents=True)
    (repository / "tests" / "unit" / "test_a.py").write_text("def test_a(): pass\n")
    (repository / "pyproject.toml").write_text('[tool.mypy]\nfiles = ["a.py"]\n')
    by_key = {slow.key: slow for slow in survey_of(repository, 10).slow}
    assert by_key["tests"].argv[1:4] == ["-m", "pytest", "tests/unit"]
    assert by_key["types"].argv[1:] == ["-m", "mypy"]


def run_child(
    folder: Path, argv: list[str], env: dict[str, str] | None = None
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    read, write = os.pipe()
    given = {**os.environ, **(env or {}), "BACKBURNER_PROGRESS_FD": str(write)}
    done = subprocess.run(argv, cwd=folder, env=given, pass_fds=[write], capture_output=True, text=True, check=False)
    os.close(write)
    with os.fdopen(read) as reports:
        return done, [json.loads(line) for line in reports]


def test_the_walk_counts_every_commit_and_reports_each_percent_once(repository: Path) -> None:
    commit(repository, 5)
    done, said = run_child(repository, [sys.executable, "-P", children.__file__, "history", str(repository)])
    assert done.returncode == 0, done.stderr
    assert [report["percent"] for report in said[:-1]] == [20, 40, 60, 80, 100]
    assert said[-1]["result"]["commits"] == 5
    assert said[-1]["result"]["authors"] == 1


def test_the_fingerprint_changes_with_the_content_only(repository: Path) -> None:
    first = children.content(repository)
    assert (first["files"], first["copies"]) == (4, 1)
    assert children.content(repository) == first
    (repository / "a.py").write_text("import sys\n")
    assert children.content(repository)["sha256"] != first["sha256"]


def test_without_a_pipe_reports_go_to_stdout_with_their_prefix(capfd: pytest.CaptureFixture[str]) -> None:
    children.say(percent=1)
    assert capfd.readouterr().out == '::backburner {"percent": 1}\n'


def test_the_tests_of_a_repository_report_their_percent_and_leave_nothing_behind(repository: Path) -> None:
    (repository / "tests").mkdir()
    (repository / "tests" / "test_a.py").write_text("def test_a(): print('x')\ndef test_b(): assert 0\n")
    before = sorted(path for path in repository.rglob("*") if ".git/" not in str(path))
    tests = next(slow for slow in survey_of(repository, 10).slow if slow.key == "tests")
    done, said = run_child(repository, tests.argv, tests.env)
    assert done.returncode == 1  # one of them fails: a finding
    assert "1 failed, 1 passed" in done.stdout
    assert said[-1] == {"percent": 100.0, "step": "tests/test_a.py"}
    assert sorted(path for path in repository.rglob("*") if ".git/" not in str(path)) == before
