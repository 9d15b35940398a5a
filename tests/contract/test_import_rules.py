"""The import rules of pyproject.toml hold, and each of them would notice a breach."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_import_rules_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def copied_tree(tmp_path: Path) -> Path:
    for name in ("scheduler_service", "executor_service"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "imported", "contract"),
    [
        ("executor_service/planted.py", "scheduler_service.authoring", "The services meet in Postgres"),
        ("scheduler_service/planted.py", "executor_service.errors", "The services meet in Postgres"),
        ("scheduler_service/api/planted.py", "psycopg", "Each service has one importer of psycopg"),
        ("executor_service/planted.py", "psycopg", "Each service has one importer of psycopg"),
        ("scheduler_service/replay/planted.py", "scheduler_service.journal", "Replay is pure"),
        ("scheduler_service/replay/planted.py", "time", "Replay is pure"),
        ("scheduler_service/authoring/planted.py", "grpc", "Authoring is pure"),
        ("scheduler_service/server_planted.py", "scheduler_service.postgres", "Only the command line"),
    ],
)
def test_planted_import_is_noticed(copied_tree: Path, module: str, imported: str, contract: str) -> None:
    (copied_tree / module).write_text(f"import {imported}\n")
    done = lint_imports(copied_tree)
    broken = [line for line in done.stdout.splitlines() if " BROKEN" in line]
    assert done.returncode == 1, done.stdout + done.stderr
    assert any(line.startswith(contract) for line in broken), done.stdout
