"""Where agents work: `bb.agent(..., workspace=bb.worktree(repo))`, and the merge of what they did: `bb.merge`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Final

from scheduler_service.authoring.effects import Effect, function_effect
from scheduler_service.authoring.errors import EffectError, OptionError
from scheduler_service.authoring.results import AgentResult, MergeResult, Outcome, WorkspaceResult
from scheduler_service.authoring.work import Workspace, refuse

#: The function that every executor has for it.
MERGE: Final = "backburner.merge"

_Path = str | os.PathLike[str]


def worktree(repo: _Path, *, base: str = "", keep: str = "on_failure") -> Workspace:
    """A git worktree of its own for the effect, on a branch of its own, shared by all its attempts.

    `repo` is an absolute path on the executor, of a repository or of a folder in one; `base` the branch, tag or commit
    to begin with (default: its HEAD). The work ends up as a commit on the branch. `keep` says what stays of the
    directory: `on_failure` (the default), `always`, `never`; a session can only go on in one that was kept.
    """
    return Workspace("WORKTREE", os.fspath(repo), base, keep)


def copy_of(directory: _Path, *, keep: str = "on_failure") -> Workspace:
    """A copy of a directory for the effect, shared by all its attempts. For what is no git repository, or is dirty."""
    return Workspace("COPY", os.fspath(directory), "", keep)


def exclusive(directory: _Path) -> Workspace:
    """The directory itself, under a lease: no other effect works in it meanwhile, in one above it, or in one in it.

    While somebody else has it, the effect waits in the queue, and is offered again at least every 30 seconds.
    """
    return Workspace("DIRECTORY", os.fspath(directory))


def merge(
    repo: _Path, results: Iterable[Any], *, into: str = "", base: str = "", update_checkout: bool = False
) -> Effect[MergeResult]:
    """Merges what effects did in worktrees of `repo`, one after the other; conflicts are reported, not made.

    `results` are AgentResults, outcomes of a fan-in, errors of effects, their workspaces, or ids of commits; those
    without a commit are reported as empty. They are merged onto branch `into`, which is made from `base` (default:
    HEAD) when it is not there; without `into` onto a new branch, which the result names. A branch that is checked out
    is moved only with `update_checkout`, together with its files, and only when these are clean. The effect runs on an
    executor that has the repository: with several hosts, say which by `executor_labels=`. Raises OptionError.
    """
    commits = [_commit(item, index) for index, item in enumerate(results)]
    given = {"into": into, "base": base, "update_checkout": update_checkout, "commits": commits}
    kwargs = {"repo": _absolute(os.fspath(repo), "merge: repo")} | {
        name: value for name, value in given.items() if value
    }
    return function_effect(MERGE, (), kwargs, MergeResult)


def _absolute(path: str, place: str) -> str:
    if not path.startswith("/"):
        refuse(place, "an absolute path on the executor", path)
    return path


def _commit(item: Any, index: int) -> Mapping[str, str]:
    name = ""
    if isinstance(item, Outcome):
        name, item = item.key, item.value if item.ok else item.error
    if isinstance(item, EffectError):
        name = name or item.key
    if isinstance(item, AgentResult | EffectError):
        item = item.workspace
    if isinstance(item, WorkspaceResult):
        name, item = name or item.branch, item.result_commit
    if item is not None and not isinstance(item, str):
        what = "an AgentResult, an Outcome, a WorkspaceResult or the id of a commit"
        raise OptionError(f"merge: results[{index}]: expected {what}, got {type(item).__name__}")
    return {field: value for field, value in (("name", name), ("commit", item or "")) if value}
