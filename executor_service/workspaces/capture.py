"""What has changed in a workspace: a snapshot by git, the difference as numbers and as a patch, a commit that holds it.

Nothing here touches an index, a branch or a stash of the user's: snapshots go through an index of their own, and those
of a directory or of a copy into an object store of their own, too.
"""

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from executor_service.workspaces.git import Git, GitFailed

#: A larger patch is left out of the result: the commit has it.
PATCH_BYTES_MAX: Final = 256 << 10
#: Of what is read of an index as text: that of ten million files.
_INDEX_BYTES_MAX: Final = 1 << 30
#: The beginning of an entry of an index that is a commit of another repository.
_LINK_MODE: Final = "160000"
_LINK: Final = re.compile(rf"{_LINK_MODE} [0-9a-f]+ 0\t")
_DIFF: Final = ("diff-tree", "-r", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color")


def index_in(git: Git, folder: Path) -> Git:
    """The same git with an index of its own in this folder. It begins as a copy: what is known of files stays known."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    own, theirs = folder / "index", Path(git.line("rev-parse", "--path-format=absolute", "--git-path", "index"))
    if theirs.exists():
        shutil.copyfile(theirs, own)
    return git.knowing(GIT_INDEX_FILE=str(own))


def shadow(git: Git, folder: Path) -> Git | None:
    """git for snapshots of a directory that leave no trace in its repository; None when it is in none."""
    try:
        where = git.line("rev-parse", "--path-format=absolute", "--is-inside-work-tree", "--git-common-dir")
    except GitFailed as error:
        if "not a git repository" in str(error):
            return None
        raise
    inside, _, common = where.partition("\n")
    if inside != "true":
        return None
    (folder / "objects").mkdir(parents=True, exist_ok=True, mode=0o700)
    return index_in(git, folder).knowing(
        GIT_OBJECT_DIRECTORY=str(folder / "objects"), GIT_ALTERNATE_OBJECT_DIRECTORIES=f'"{common}/objects"'
    )


def snapshot(git: Git) -> str:
    """The tree of what is in the folder now, untracked files included, ignored ones not."""
    if nested := _nested(git):
        # Of these only the commit counts. `git add` would ask each for its status, by filters of its own configuration.
        others = _paths([".", *(f":(exclude,literal){path}" for path in nested)])
        git.run("add", "--all", "--pathspec-from-file=-", "--pathspec-file-nul", stdin=others)
        git.run("update-index", "-z", "--stdin", stdin=_paths(nested))
    else:
        git.run("add", "--all", "--", ".")
    return git.line("write-tree")


def _nested(git: Git) -> list[str]:
    """The repositories in the folder that the index has commits of: submodules and the like that are there."""
    entries = git.run("ls-files", "--stage", "-z", bytes_max=_INDEX_BYTES_MAX).text.split("\0")
    links = [entry.partition("\t")[2] for entry in entries if _LINK.match(entry)]
    return [path for path in links if os.path.lexists(git.folder / path / ".git")]


def _paths(names: Iterable[str]) -> bytes:
    return b"".join(os.fsencode(name) + b"\0" for name in names)


def head(git: Git) -> str:
    """The commit that is checked out; empty: there is none yet."""
    said = git.run("rev-parse", "--verify", "--quiet", "HEAD^{commit}", fine=(0, 1, 128))
    return said.text if said.status == 0 else ""


def tree_of(git: Git, commit: str) -> str:
    """The tree of a commit."""
    return git.line("rev-parse", "--verify", f"{commit}^{{tree}}")


def commit(git: Git, tree: str, parent: str, message: str) -> str:
    """A commit of a tree on its parent: the parent itself when that has the same tree."""
    if tree == tree_of(git, parent):
        return parent
    return git.line("commit-tree", "--no-gpg-sign", tree, "-p", parent, "-F", "-", stdin=message.encode())


@dataclass(frozen=True, slots=True)
class Difference:
    """How two trees differ."""

    files_changed: int
    insertions: int
    deletions: int
    patch: str
    patch_bytes: int
    #: Why there is no patch although there is a difference.
    problem: str = ""
    #: Repositories of their own in the folder, of which only another commit is in the difference, and no file.
    nested: Sequence[str] = ()

    def fields(self) -> Mapping[str, Any]:
        """What of it stands in a WorkspaceResult."""
        names = ("files_changed", "insertions", "deletions", "patch", "patch_bytes", "problem")
        return {name: value for name in names if (value := getattr(self, name))}


def difference(git: Git, base: str, tree: str) -> Difference:
    """How a tree differs from another one, or from a commit's."""
    counts = [line.split("\t", 2) for line in git.line(*_DIFF, "--numstat", "-z", base, tree).split("\0") if line]
    added, removed = (sum(int(row[column]) for row in counts if row[column] != "-") for column in (0, 1))
    said = git.run(*_DIFF, "-p", "--binary", "--full-index", base, tree, bytes_max=PATCH_BYTES_MAX + 1)
    patch, problem = "", ""
    if said.out_bytes > PATCH_BYTES_MAX:
        problem = f"the patch has {said.out_bytes} bytes, more than {PATCH_BYTES_MAX}: take it from the commit"
    else:
        try:
            patch = said.out.decode()
        except UnicodeDecodeError:
            problem = "the patch is no UTF-8: take it from the commit"
        if "\0" in patch:
            patch, problem = "", "the patch holds NUL characters, which cannot be stored: take it from the commit"
    return Difference(len(counts), added, removed, patch, said.out_bytes, problem, _came(git, base, tree))


def _came(git: Git, base: str, tree: str) -> list[str]:
    """Repositories of their own whose commit is new in the second tree."""
    said = git.run(*_DIFF, "--raw", "-z", base, tree, bytes_max=_INDEX_BYTES_MAX).text.split("\0")
    return [path for entry, path in zip(said[::2], said[1::2], strict=False) if entry.split(" ")[1] == _LINK_MODE]
