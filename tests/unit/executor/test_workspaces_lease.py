"""Workspaces that cannot be made give their place up; what is beside a user's directory is left as it is."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from executor_service.workspaces import records
from executor_service.workspaces.git import Git
from executor_service.workspaces.leases import Lease
from executor_service.workspaces.trees import Asked
from executor_service.workspaces.workspaces import Workspaces
from tests.support.keepers import KEEPERS
from tests.unit.executor.test_workspace_trees import assignment


async def test_a_lease_is_given_back_when_no_thread_is_free_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "app"
    source.mkdir()
    workspaces = Workspaces(tmp_path / "trees", tmp_path / "scratch", 4, KEEPERS, kept_max=1, kept_days=1)
    attempt: Any = SimpleNamespace(started=lambda pid: monkeypatch.setattr(workspaces._threads, "submit", no_thread))
    asked = Asked(records.DIRECTORY, source, "", "ALWAYS", assignment())

    def no_thread(_call: Callable[[], Any]) -> None:
        return None

    with pytest.raises(RuntimeError, match="hold every thread"):
        await workspaces._open(asked, attempt, Git(tmp_path, KEEPERS))
    Lease(source).close()


async def test_a_file_beside_a_directory_of_the_users_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspaces = Workspaces(tmp_path / "trees", tmp_path / "scratch", 4, KEEPERS, kept_max=1, kept_days=1)
    monkeypatch.setattr(workspaces._threads, "submit", lambda call: call())
    theirs, ours = tmp_path / "app", tmp_path / "trees" / "e"
    (tmp_path / "app.json").write_text("{}")
    records.write(ours, records.Record(records.COPY, "/x", made=True))
    for path in (tmp_path / "app.json", tmp_path / "trees" / "e.json"):
        os.utime(path, (1, 1))
    for path in (theirs, ours):
        workspaces.settled({"path": str(path), "kept": True})
    assert (tmp_path / "app.json").stat().st_mtime == 1
    assert (tmp_path / "trees" / "e.json").stat().st_mtime > 1
