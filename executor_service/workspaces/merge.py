"""The function `backburner.merge`: merges what several agents did, and reports conflicts instead of making them.

The commits are merged one after the other, in git's object store alone: no checkout, index or stash is touched. One
that conflicts is left out and reported, with the files and where in them. A branch is moved in one step, and only from
where it was seen. The same call made again gives the same commits, so that an attempt that is repeated changes nothing.
"""

import hashlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from executor_service import reporting
from executor_service.assignment import InvalidWork
from executor_service.keepers import Keepers
from executor_service.reporting import Reporter
from executor_service.workspaces.git import Git, GitFailed
from executor_service.workspaces.repository import Repository

NAME: Final = "backburner.merge"
#: Commits in one call, files reported of a conflict, and bytes of a file that is looked through for them.
COMMITS_MAX: Final = 1_000
FILES_MAX: Final = 200
FILE_BYTES_MAX: Final = 4 << 20
_ID: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_FIELDS: Final = frozenset({"commit", "name"})
_PARAMETERS: Final = frozenset({"repo", "commits", "into", "base", "update_checkout"})
MERGED: Final = "merged"
CONFLICT: Final = "conflict"
EMPTY: Final = "empty"


class MoveRefused(Exception):
    """The branch is not moved; the message says why, and what to do."""


class MergeFunction:
    """The function as the harness of functions wants it: see `harness/function.py`."""

    name = NAME
    is_async = False

    def __init__(self, keepers: Keepers) -> None:
        self.fn = partial(merge, keepers=keepers)

    def decode_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Checks the arguments, which come by name. Raises TypeError or ValueError."""
        if args or set(kwargs) - _PARAMETERS or not kwargs.get("repo"):
            raise TypeError(f"it takes by name, of which repo is required: {', '.join(sorted(_PARAMETERS))}")
        for name in ("repo", "into", "base"):
            if not isinstance(kwargs.get(name, ""), str):
                raise TypeError(f"{name} must be text")
        if not kwargs["repo"].startswith("/") or "\0" in kwargs["repo"]:
            raise ValueError("repo must be an absolute path on the executor")
        commits = kwargs.get("commits", [])
        if not isinstance(commits, list) or len(commits) > COMMITS_MAX:
            raise ValueError(f"commits must be a list of at most {COMMITS_MAX}")
        for index, item in enumerate(commits):
            _check_commit(item, f"commits[{index}]")
        return [], dict(kwargs)

    def encode_result(self, value: Any) -> Any:
        """It is JSON already."""
        return value


def _check_commit(item: Any, place: str) -> None:
    if not isinstance(item, dict) or set(item) - _FIELDS:
        raise TypeError(f"{place} must be an object of {', '.join(sorted(_FIELDS))}")
    if any(not isinstance(value, str) for value in item.values()):
        raise TypeError(f"{place}: name and commit must be text")
    if item.get("commit") and not _ID.fullmatch(item["commit"]):
        raise ValueError(f"{place}.commit must be the whole id of a commit, or empty")


def merge(
    repo: str,
    commits: Sequence[Mapping[str, str]] = (),
    into: str = "",
    base: str = "",
    update_checkout: bool = False,
    *,
    keepers: Keepers,
) -> dict[str, Any]:
    """Merges and moves the branch; a MergeResult as JSON. Raises InvalidWork, MoveRefused, GitFailed, Stopped."""
    git = Git(Path("/"), keepers, _Asked(reporting.current.get()))
    repository = Repository.find(git, Path(repo))
    _check_branch(repository, into)
    tip = repository.tip(into) if into else ""
    start = tip or repository.commit(base)
    branch = into or f"backburner/merge-{_digest(start, commits)}"
    merging = _Merging(repository.git, start)
    items = [merging.take(item) for item in commits]
    with repository.locked() as locked:
        _move(locked, branch, tip if into else locked.tip(branch), merging.tip, update_checkout=update_checkout)
    return {"branch": branch, "base_commit": start, "commit": merging.tip, "items": items}


@dataclass(slots=True)
class _Asked:
    """Whether the call shall end, as a function in a thread hears of it."""

    reporter: Reporter | None

    def is_set(self) -> bool:
        return self.reporter is not None and self.reporter.ending

    def wait(self, timeout: float) -> bool:
        time.sleep(timeout)
        return self.is_set()


def _check_branch(repository: Repository, name: str) -> None:
    if name and (name.startswith("-") or not repository.git.asks("check-ref-format", f"refs/heads/{name}")):
        raise InvalidWork(f"into {name!r} is no name of a branch")


def _digest(start: str, commits: Sequence[Mapping[str, str]]) -> str:
    text = "\n".join([start, *(item.get("commit", "") for item in commits)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class _Merging:
    """A line of merges: `tip` is how far it is."""

    def __init__(self, git: Git, start: str) -> None:
        self._git = git
        self.tip = start

    def take(self, item: Mapping[str, str]) -> dict[str, Any]:
        """Merges one commit, or says what it conflicts in."""
        commit, name = item.get("commit", ""), item.get("name", "")
        said: dict[str, Any] = {"name": name, "commit": commit}
        if not commit:
            return said | {"status": EMPTY}
        if self._git.run("cat-file", "-e", f"{commit}^{{commit}}", fine=(0, 1, 128)).status:
            raise InvalidWork(
                f"commit {commit} of {name!r} is not in the repository: was it made on another host? "
                "Let the effect run where the repository is (executor_labels=)"
            )
        if self._git.asks("merge-base", "--is-ancestor", commit, self.tip):
            return said | {"status": EMPTY}
        if self._git.asks("merge-base", "--is-ancestor", self.tip, commit):
            self.tip = commit
            return said | {"status": MERGED}
        return said | self._merged(commit, name)

    def _merged(self, commit: str, name: str) -> dict[str, Any]:
        tried = self._git.run("merge-tree", "--write-tree", "-z", "--messages", self.tip, commit, fine=(0, 1))
        tree, rest = tried.text.partition("\0")[::2]
        if tried.status:
            return {"status": CONFLICT, "conflicts": self._conflicts(tree, rest)}
        # The same merge made again is the same commit: its date is that of what it merges.
        date = max(self._git.line("log", "-1", "--format=%ct", one) for one in (self.tip, commit))
        dated = self._git.knowing(GIT_AUTHOR_DATE=f"@{date} +0000", GIT_COMMITTER_DATE=f"@{date} +0000")
        message = f"Merge {name or commit[:12]}\n"
        parents = ("-p", self.tip, "-p", commit)
        self.tip = dated.line("commit-tree", "--no-gpg-sign", tree, *parents, "-F", "-", stdin=message.encode())
        return {"status": MERGED}

    def _conflicts(self, tree: str, rest: str) -> list[dict[str, Any]]:
        """By file: of what kind, and the lines of each conflict in the file as git would have left it."""
        stages, _, messages = rest.partition("\0\0")
        paths = dict.fromkeys(stage.partition("\t")[2] for stage in stages.split("\0") if stage)
        kinds = dict(_kinds(messages))
        return [
            {
                "path": _shown(path),
                "kind": kinds.get(path, "conflict"),
                "hunks": self._hunks(tree, path),
            }
            for path in list(paths)[:FILES_MAX]
        ]

    def _hunks(self, tree: str, path: str) -> list[list[int]]:
        """First and last line of each conflict in a file; none where the file as a whole is in conflict."""
        said = self._git.run("cat-file", "blob", f"{tree}:{path}", fine=(0, 128), bytes_max=FILE_BYTES_MAX)
        hunks: list[list[int]] = []
        for number, line in enumerate(said.out.split(b"\n"), 1):
            if line.startswith(b"<<<<<<< "):
                hunks.append([number, number])
            elif line.startswith(b">>>>>>> ") and hunks:
                hunks[-1][1] = number
        return hunks


def _kinds(messages: str) -> Iterator[tuple[str, str]]:
    """Paths with the kind of their conflict, such as "contents" or "modify/delete"."""
    fields = iter(messages.split("\0"))
    for count in fields:
        if not count.isdecimal():
            return
        paths = [next(fields, "") for _ in range(int(count))]
        kind = next(fields, "")
        next(fields, "")  # the message in words
        if kind.startswith("CONFLICT"):
            yield from ((path, kind.removeprefix("CONFLICT (").removesuffix(")")) for path in paths)


def _shown(path: str) -> str:
    return path.encode("utf-8", "replace").decode()


def _move(repository: Repository, branch: str, seen: str, commit: str, *, update_checkout: bool) -> None:
    """Moves the branch from where it was seen. One that is checked out only when asked to, with its files, if clean."""
    if seen == commit:
        return
    where = repository.worktree_of(branch)
    if where is None:
        _swap(repository, branch, seen, commit)
        return
    if not update_checkout:
        raise MoveRefused(
            f"branch {branch!r} is checked out in {where}: merge into another one, or ask for update_checkout=True"
        )
    there = repository.git.at(where)
    if dirty := there.line("status", "--porcelain", "--untracked-files=no"):
        first = dirty.splitlines()[0]
        raise MoveRefused(
            f"branch {branch!r} is checked out in {where}, which is not clean ({first}): commit, or stash"
        )
    if repository.tip(branch) != seen:
        raise MoveRefused(_moved(branch, seen))
    there.run("merge", "--quiet", "--ff-only", commit)


def _swap(repository: Repository, branch: str, seen: str, commit: str) -> None:
    try:
        repository.git.run("update-ref", "-m", "backburner: merge", f"refs/heads/{branch}", commit, seen)
    except GitFailed as error:
        if repository.tip(branch) != seen:
            raise MoveRefused(_moved(branch, seen)) from error
        raise


def _moved(branch: str, seen: str) -> str:
    was = f"no longer at {seen[:12]}" if seen else "there by now"
    return f"branch {branch!r} is {was}: somebody else has moved it meanwhile. Merge again"
