import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harnesses.conftest import Place
from tests.harnesses.table import clis
from tests.support import harnesses
from tests.support.harnesses import CLIS, Cli


@pytest.mark.parametrize("name", clis())
async def test_each_cli_is_the_release_that_the_tests_name(name: str, cli: Callable[[str], Cli], place: Place) -> None:
    found = cli(name)
    version = await asyncio.create_subprocess_exec(
        str(found.executable), "--version", cwd=place.workspace, env=place.environment(),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await version.communicate()
    assert found.version in said.decode()


def test_a_cli_that_is_not_installed_says_how_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harnesses, "INSTALLED", tmp_path)
    assert CLIS["codex"].why_not() == (
        f"codex {CLIS['codex'].version} is not installed: python -m tests.support.harnesses"
    )
    assert CLIS["pi"].why_not().endswith("is not installed: make harnesses")


def test_without_npm_the_reason_is_told_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harnesses, "INSTALLED", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["harnesses"])
    assert harnesses.main() == 0
    assert capsys.readouterr().err == "agent CLIs: npm and node are not on PATH; their tests are skipped\n"
