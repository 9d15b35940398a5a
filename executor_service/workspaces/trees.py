"""The three kinds of workspaces: how each is made, found again, looked at and given up. Blocking: for threads."""

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from executor_service.assignment import Assignment, InvalidWork
from executor_service.workspaces import capture, files, programs, records
from executor_service.workspaces.git import Git, GitFailed, Stopped
from executor_service.workspaces.leases import Held, Lease
from executor_service.workspaces.records import COPY, DIRECTORY, WORKTREE, Record
from executor_service.workspaces.repository import KEPT_REFS, Repository, existing

log = logging.getLogger(__name__)

_KEEP: Final = "WORKSPACE_KEEP_"
#: Digits of an effect's id in names of branches.
_SHORT: Final = 12


@dataclass(frozen=True, slots=True)
class Asked:
    """The workspace that an effect asks for."""

    kind: str
    source: Path
    base: str
    #: ON_FAILURE, ALWAYS or NEVER.
    keep: str
    assignment: Assignment

    @property
    def short(self) -> str:
        """The effect in a few digits."""
        return self.assignment.effect_id.replace("-", "")[:_SHORT]

    @property
    def branch(self) -> str:
        """The branch of a worktree."""
        return f"backburner/{self.short}"

    @property
    def kept_ref(self) -> str:
        """What holds the commit of an attempt that did not succeed."""
        return f"{KEPT_REFS}/{self.short}"

    @property
    def who(self) -> str:
        """The effect, as others are told of it that wait for its directory."""
        return f"effect {self.assignment.effect_key!r} of run {self.assignment.run_id}"

    @property
    def message(self) -> str:
        """Of the commit that holds the work."""
        a = self.assignment
        return (
            f"{a.name or a.effect_key}\n\nEffect {a.effect_key} ({a.effect_id}), attempt {a.attempt}\nRun {a.run_id}\n"
        )


def asked_of(work: Mapping[str, Any], assignment: Assignment) -> Asked | None:
    """The workspace in the work of an effect; None: it asks for none. Raises InvalidWork."""
    given = work.get("workspace")
    if not given:
        return None
    source = str(given.get("source") or "")
    if not source.startswith("/") or "\0" in source:
        raise InvalidWork(f"workspace.source must be an absolute path on the executor, not {source!r}")
    kind = given.get("kind") or DIRECTORY
    if kind not in (WORKTREE, COPY, DIRECTORY):
        raise InvalidWork(f"workspace.kind {kind!r} is none that this executor knows")
    keep = str(given.get("keep") or "").removeprefix(_KEEP).replace("UNSPECIFIED", "") or "ON_FAILURE"
    return Asked(kind, Path(source), str(given.get("base") or ""), keep, assignment)


@dataclass(slots=True)
class Tree:
    """An open workspace: nobody else has it until it is closed."""

    asked: Asked
    #: Its directory; a worktree's or a copy's stands beside its record.
    root: Path
    #: Where the agent works: a folder of the root when a folder of a repository was asked for.
    cwd: Path
    record: Record
    held: Held | Lease
    #: True when an earlier attempt has worked in it.
    found: bool = False
    #: git for snapshots of what is no worktree.
    shadow: Git | None = None
    #: Why there are none.
    problem: str = ""

    def close(self) -> None:
        """Lets others have it. Its age counts from now."""
        if self.asked.kind != DIRECTORY:
            records.touch(self.root)
        self.held.close()


def hold(asked: Asked, folder: Path) -> Held | Lease:
    """Takes the place of the workspace, so that nobody else has it. `folder` is where worktrees and copies stand.

    Raises InvalidWork, Busy, OSError.
    """
    if not asked.source.is_dir():
        raise InvalidWork(f"{asked.source} is no directory on this executor")
    if asked.kind == DIRECTORY:
        return Lease(asked.source, asked.who)
    return Held(folder / f"{asked.assignment.effect_id}.lock")


def open_tree(asked: Asked, git: Git, folder: Path, held: Held | Lease) -> Tree:
    """Makes the workspace in its place, or finds that of an earlier attempt; gives the place up when it fails.

    Raises InvalidWork, Busy, GitFailed, Stopped, OSError.
    """
    try:
        if isinstance(held, Lease):
            real = asked.source.resolve()
            return Tree(asked, real, real, Record(DIRECTORY, str(real)), held)
        opened = _open_worktree if asked.kind == WORKTREE else _open_copy
        return opened(asked, git, folder / asked.assignment.effect_id, held)
    except BaseException:
        held.close()
        raise


def _open_worktree(asked: Asked, git: Git, tree: Path, held: Held) -> Tree:
    repository = Repository.find(git, asked.source)
    record = existing(tree)
    if record is not None:
        return Tree(asked, tree, _inside(tree, repository.prefix), record, held, found=True)
    with repository.locked() as locked:
        other = locked.worktree_of(asked.branch)
        if other is not None and other != tree and (record := existing(other)) is not None:
            theirs = Held(other.with_name(f"{other.name}.lock"))
            held.close(forget=True)  # of another executor of this host: there the earlier attempt worked
            return Tree(asked, other, _inside(other, repository.prefix), record, theirs, found=True)
        base = locked.commit(asked.base)
        record = Record(WORKTREE, str(asked.source.resolve()), base, branch=asked.branch)
        records.write(tree, record)
        locked.add(tree, asked.branch, base)
    records.write(tree, replace(record, made=True))
    return Tree(asked, tree, _inside(tree, repository.prefix), record, held)


def _inside(tree: Path, prefix: str) -> Path:
    """The same folder in the worktree; its root where the base does not have it."""
    return tree / prefix if prefix and (tree / prefix).is_dir() else tree


def _open_copy(asked: Asked, git: Git, tree: Path, held: Held) -> Tree:
    source = asked.source.resolve()
    if (source / ".git").is_file():
        raise InvalidWork(
            f"{source} is a linked worktree or a submodule, of which a copy would share the index and HEAD: "
            "ask for a worktree (bb.worktree)"
        )
    if tree.is_relative_to(source):
        raise InvalidWork(f"{source} holds the executor's state directory, where its copy would be made")
    record = existing(tree)
    if record is not None:
        return Tree(asked, tree, tree, record, held, found=True)
    record = Record(COPY, str(source))
    records.write(tree, record)
    files.remove_tree(tree)
    files.copy(source, tree, git.stop, git.minding)
    records.write(tree, replace(record, made=True))
    return Tree(asked, tree, tree, record, held)


def look_before(tree: Tree, git: Git, folder: Path) -> None:
    """Notes how it is before the work, where that is known to git. Raises Stopped; of a worktree GitFailed, OSError.

    What keeps git from a directory or a copy, such as a repository without a commit in it, keeps no agent from work.
    """
    if tree.asked.kind == WORKTREE:
        _note_programs(tree, git)
        return
    try:
        _look_before(tree, _in(tree, git), folder)
    except (GitFailed, OSError) as error:
        log.warning("what will be done in workspace %s cannot be captured: %s", tree.root, error)
        tree.shadow, tree.problem = None, f"what was done is not captured: {error}"


def _note_programs(tree: Tree, git: Git) -> None:
    """Once for all attempts of the effect: those after the first find what an agent has left."""
    if tree.record.programs is None:
        tree.record = replace(tree.record, programs=programs.programs_of(_in(tree, git)))
        if tree.asked.kind != DIRECTORY:
            records.write(tree.root, replace(tree.record, made=True))


def _in(tree: Tree, git: Git) -> Git:
    """git in the workspace, and in no repository that the state directory may be in."""
    here = git.at(tree.root)
    return here if tree.asked.kind == DIRECTORY else here.knowing(GIT_CEILING_DIRECTORIES=str(tree.root.parent))


def _look_before(tree: Tree, git: Git, folder: Path) -> None:
    place = (tree.root if tree.asked.kind == COPY else folder / tree.asked.assignment.effect_id).with_suffix(".shadow")
    if not tree.found:
        shutil.rmtree(place, ignore_errors=True)
    tree.shadow = capture.shadow(git, place)
    if tree.shadow is not None:
        _note_programs(tree, git)
    if tree.shadow is None or tree.record.base_tree:
        return
    tree.record = replace(
        tree.record, base=capture.head(tree.shadow), base_tree=capture.snapshot(tree.shadow), made=True
    )
    if tree.asked.kind == COPY:
        records.write(tree.root, tree.record)


def result_of(tree: Tree, git: Git, *, succeeded: bool) -> dict[str, Any]:
    """What became of the workspace: a WorkspaceResult as proto3 JSON.

    What cannot be captured stays where it is, whatever the policy, and `problem` says why.
    """
    result: dict[str, Any] = {"path": str(tree.root), "base_commit": tree.record.base}
    try:
        worktree = tree.asked.kind == WORKTREE
        if worktree or tree.shadow is not None:
            programs.check(_in(tree, git), tree.record.programs)
        result |= _worktree_result(tree, _in(tree, git), succeeded=succeeded) if worktree else _shadow_result(tree)
    except (GitFailed, OSError, Stopped) as error:
        log.warning("what was done in workspace %s cannot be captured: %s", tree.root, error)
        result["problem"] = f"what was done is not captured: {str(error) or 'the attempt was asked to end'}"
        return result | {"kept": True}
    finally:
        if tree.asked.kind == DIRECTORY and tree.shadow is not None:
            shutil.rmtree(Path(tree.shadow.env["GIT_INDEX_FILE"]).parent, ignore_errors=True)
    return {"kept": stays(tree.asked, succeeded=succeeded)} | result


def stays(asked: Asked, *, succeeded: bool) -> bool:
    """Whether the directory is kept once the effect has ended so."""
    return asked.kind == DIRECTORY or asked.keep == "ALWAYS" or (asked.keep != "NEVER" and not succeeded)


def _worktree_result(tree: Tree, here: Git, *, succeeded: bool) -> dict[str, Any]:
    base, asked = tree.record.base, tree.asked
    with _own_index(here) as own:
        content = capture.snapshot(own)
    if content == capture.tree_of(here, base):
        return {}
    commit = capture.commit(here, content, capture.head(here) or base, asked.message)
    repository = Repository(here, tree.root, "")
    if not succeeded:  # the branch and the tree stay as they are, for the retry
        repository.set_ref(asked.kept_ref, commit)
        return {"result_commit": commit, **_fields(asked, capture.difference(here, base, content))}
    repository.set_ref(asked.kept_ref, "")
    repository.set_ref(f"refs/heads/{asked.branch}", commit)
    fields = _fields(asked, capture.difference(here, base, content))
    stay = stays(asked, succeeded=True) or "kept" in fields
    if stay and here.run("symbolic-ref", "-q", "HEAD", fine=(0, 1)).text.endswith(asked.branch):
        here.run("reset", "--quiet", "--mixed")
    return {"result_commit": commit, "branch": asked.branch, **fields}


def _fields(asked: Asked, difference: capture.Difference) -> dict[str, Any]:
    """Of a WorkspaceResult. What only the directory has is not thrown away with it, unless it never is to stay."""
    fields = dict(difference.fields())
    if not difference.nested or asked.kind == DIRECTORY:
        return fields
    named = ", ".join(difference.nested[:5])
    words = f"only commits are captured of git repositories of their own, whose files only the directory has: {named}"
    problem = "; ".join(filter(None, (difference.problem, words)))
    return fields | {"problem": problem} | ({} if asked.keep == "NEVER" else {"kept": True})


@contextlib.contextmanager
def _own_index(git: Git) -> Iterator[Git]:
    with tempfile.TemporaryDirectory(prefix="backburner-") as folder:
        yield capture.index_in(git, Path(folder))


def _shadow_result(tree: Tree) -> dict[str, Any]:
    if tree.shadow is None or not tree.record.base_tree:
        return {"problem": tree.problem} if tree.problem else {}
    content = capture.snapshot(tree.shadow)
    if content == tree.record.base_tree:
        return {}
    result: dict[str, Any] = _fields(tree.asked, capture.difference(tree.shadow, tree.record.base_tree, content))
    now = capture.head(tree.shadow)
    if tree.asked.kind == DIRECTORY and now != tree.record.base and content == capture.tree_of(tree.shadow, now):
        result["result_commit"] = now  # the agent has committed all of it itself
    return result


def drop(tree: Path, record: Record | None, git: Git) -> None:
    """Removes a worktree or a copy; its commits stay, and its branch if it has any.

    Raises GitFailed, OSError, Stopped.
    """
    if record is not None:
        records.write(tree, replace(record, done=True))
    if record is not None and record.kind == WORKTREE and Path(record.source).is_dir():
        with contextlib.suppress(InvalidWork), Repository.find(git, Path(record.source)).locked() as locked:
            locked.forget(tree)
            if record.branch and locked.tip(record.branch) == record.base:
                locked.set_ref(f"refs/heads/{record.branch}", "")
    files.remove_tree(tree)
    shutil.rmtree(tree.with_suffix(".shadow"), ignore_errors=True)
    records.remove(tree)
