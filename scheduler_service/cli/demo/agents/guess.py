"""How a repository's tests are run, guessed by what is in it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

from scheduler_service.cli.demo.survey import python_with


def guess_test_command(root: Path) -> str:
    """A command for `sh -c` in a clean checkout; empty when nothing is found that can be run here."""
    return next((command for guess in (_python, _npm, _go, _cargo, _make) if (command := guess(root))), "")


def _python(root: Path) -> str:
    if not any(any((root / name).rglob("test_*.py")) for name in ("tests", "test") if (root / name).is_dir()):
        return ""
    python = python_with(root, "pytest")
    if not python:
        return ""
    # What is installed in editable mode would be taken from the checkout of the user, not from the one under test.
    return f"PYTHONPATH=src:. PYTHONDONTWRITEBYTECODE=1 {shlex.quote(python)} -m pytest -q -p no:cacheprovider"


def _npm(root: Path) -> str:
    try:
        script = str(json.loads((root / "package.json").read_text())["scripts"]["test"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if "no test specified" in script or not shutil.which("npm"):
        return ""
    install = "ci" if (root / "package-lock.json").exists() else "install"
    return f"npm {install} --silent --no-audit --no-fund && npm test"


def _go(root: Path) -> str:
    return "go test ./..." if (root / "go.mod").exists() and shutil.which("go") else ""


def _cargo(root: Path) -> str:
    return "cargo test --quiet" if (root / "Cargo.toml").exists() and shutil.which("cargo") else ""


def _make(root: Path) -> str:
    found = next((root / name for name in ("GNUmakefile", "makefile", "Makefile") if (root / name).exists()), None)
    if found is None or not shutil.which("make"):
        return ""
    return "make test" if re.search(r"^test\s*:", found.read_text(errors="replace"), re.MULTILINE) else ""
