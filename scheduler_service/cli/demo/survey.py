"""What a folder offers to check: its files, its history, its tests, its type check. Ordinary blocking code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).parent
_CHILDREN: Final = str(_HERE / "children.py")
_LEFT_OUT: Final = {"node_modules", "venv", "__pycache__"}


@dataclass(frozen=True)
class Slow:
    """A command for the background, or in `missing` why there is none."""

    key: str
    what: str
    argv: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True)
class Survey:
    """What a folder offers. `files` are those to look at one by one, at most as many as asked for."""

    files: list[str]
    total_files: int
    is_git: bool
    slow: list[Slow]


def survey_of(root: Path, files_max: int) -> Survey:
    """Look at a folder."""
    why_no_history = _why_no_history(root)
    is_git = _is_git(root)
    files = _listed(root) if is_git else sorted(_walked(root))
    # Python files first: those have the most to check. Then the rest, up to the cap.
    chosen = sorted(files, key=lambda name: (not name.endswith(".py"), name))[:files_max]
    history = Slow("history", "walk of the whole history", _child("history", root), missing=why_no_history)
    content = Slow("content", "fingerprint of every file", _child("content", root))
    return Survey(sorted(chosen), len(files), is_git, [_tests(root), _types(root), history, content])


def _child(task: str, root: Path) -> list[str]:
    return [sys.executable, "-P", _CHILDREN, task, str(root)]


def _is_git(root: Path) -> bool:
    return shutil.which("git") is not None and _git_answers(root, "rev-parse", "--git-dir")


def _why_no_history(root: Path) -> str:
    if shutil.which("git") is None:
        return "git is not installed"
    if not _is_git(root):
        return "not a git repository"
    return "" if _git_answers(root, "rev-parse", "--verify", "HEAD") else "no commits yet"


def _git_answers(root: Path, *arguments: str) -> bool:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False).returncode == 0


def _listed(root: Path) -> list[str]:
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True).stdout
    return sorted({name for name in listed.split("\0") if name and (root / name).is_file()})


def _walked(root: Path) -> list[str]:
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _LEFT_OUT]
        found += [str((Path(folder) / name).relative_to(root)) for name in names]
    return found


def _tests(root: Path) -> Slow:
    folder = next((name for name in ("tests/unit", "test/unit", "tests", "test") if (root / name).is_dir()), "")
    if not folder or not any((root / folder).rglob("test_*.py")):
        return Slow("tests", "unit tests", missing="none found")
    python = python_with(root, "pytest")
    if not python:
        return Slow("tests", "unit tests", missing="pytest is not installed")
    # Neither caches nor bytecode are left behind in somebody's repository.
    options = ["-q", "-p", "no:cacheprovider", "-p", "backburner_demo_progress"]
    env = {"PYTHONPATH": str(_HERE / "pytest_plugin"), "PYTHONDONTWRITEBYTECODE": "1"}
    return Slow("tests", f"unit tests ({folder})", [python, "-m", "pytest", folder, *options], env)


def _types(root: Path) -> Slow:
    configuration = _mypy_configuration(root)
    if configuration is None:
        return Slow("types", "type check", missing="mypy is not configured")
    python = python_with(root, "mypy")
    if not python:
        return Slow("types", "type check", missing="mypy is not installed")
    # `files` in its configuration says what to check; without it mypy wants to be told.
    targets = [] if re.search(r"^files\s*=", configuration, re.MULTILINE) else ["."]
    # No cache: nothing is written into somebody's repository.
    return Slow("types", "type check (mypy)", [python, "-m", "mypy", *targets], {"MYPY_CACHE_DIR": os.devnull})


def _mypy_configuration(root: Path) -> str | None:
    for name, section in (("mypy.ini", "[mypy]"), (".mypy.ini", "[mypy]"), ("pyproject.toml", "[tool.mypy]")):
        path = root / name
        if path.is_file() and section in (text := path.read_text(errors="replace")):
            return text.partition(section)[2]
    return None


def python_with(root: Path, module: str) -> str:
    """The project's own Python, or the one that runs this, when it has the module."""
    for python in (root / ".venv/bin/python", root / "venv/bin/python", Path(sys.executable)):
        if python.exists() and _can_import(python, module):
            return str(python)
    return ""


def _can_import(python: Path, module: str) -> bool:
    command = [str(python), "-c", f"import {module}"]
    environment: Mapping[str, str] = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, capture_output=True, check=False, env=environment).returncode == 0
