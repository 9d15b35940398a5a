"""What became of a workspace, in words."""

import pytest

from backburner.journal.v1 import journal_pb2
from scheduler_service.cli.agents import describe_workspace

COMMIT = "3f2a9c1b7d4e" + "0" * 28


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, ""),
        ({"path": "/t", "base_commit": COMMIT}, ""),
        (
            {"files_changed": 1, "insertions": 3, "result_commit": COMMIT, "branch": "backburner/x"},
            "1 file, +3 -0 · commit 3f2a9c1b7d4e on backburner/x",
        ),
        (
            {"path": "/t", "kept": True, "files_changed": 2, "deletions": 1, "problem": "too large"},
            "2 files, +0 -1 · kept in /t · too large",
        ),
    ],
)
def test_what_became_of_a_workspace_is_one_line(given: dict[str, object], said: str) -> None:
    assert describe_workspace(journal_pb2.WorkspaceResult(**given)) == said  # type: ignore[arg-type]


def test_what_an_agent_called_its_branch_moves_no_cursor() -> None:
    workspace = journal_pb2.WorkspaceResult(result_commit=COMMIT, branch="x\x1b[2J", path="/\x1b[2J", kept=True)
    assert "\x1b" not in describe_workspace(workspace)
