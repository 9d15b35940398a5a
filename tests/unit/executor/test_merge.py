"""The merge of what several agents did: merged, in conflict, empty; branches moved only from where they were seen."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from executor_service.assignment import InvalidWork
from executor_service.workspaces import merge as merging
from executor_service.workspaces.git import GitFailed
from executor_service.workspaces.merge import MergeFunction, MoveRefused
from executor_service.workspaces.repository import Repository
from tests.support.keepers import KEEPERS
from tests.support.repositories import git, repository, state_of

TEXT = "".join(f"line {number}\n" for number in range(1, 31))


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return repository(tmp_path / "repo", a__txt=TEXT, b__txt=TEXT)


def work(repo: Path, name: str, **files: str | None) -> dict[str, str]:
    """A commit on a branch of its own from main; None removes a file."""
    tree = repo.parent / f"tree-{name}"
    git(repo, "worktree", "add", "--quiet", "-b", name, str(tree), "main")
    for path, text in files.items():
        place = tree / path.replace("__", ".")
        if text is None:
            place.unlink()
        else:
            place.write_text(text)
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", name)
    return {"name": name, "commit": git(repo, "rev-parse", name)}


def merge(repo: Path, *commits: dict[str, str], **given: Any) -> dict[str, Any]:
    return merging.merge(str(repo), commits, keepers=KEEPERS, **given)


def statuses(result: dict[str, Any]) -> list[str]:
    return [item["status"] for item in result["items"]]


def test_three_are_merged_and_one_conflict_is_reported(repo: Path) -> None:
    first = work(repo, "first", a__txt=TEXT.replace("line 3\n", "first\n").replace("line 20\n", "first too\n"))
    second = work(repo, "second", b__txt=TEXT + "more\n")
    third = work(repo, "third", a__txt=TEXT.replace("line 3\n", "third\n").replace("line 20\n", "third too\n"))
    before = state_of(repo)
    result = merge(repo, first, second, third, {"name": "nothing"})
    assert statuses(result) == ["merged", "merged", "conflict", "empty"]
    [conflict] = result["items"][2]["conflicts"]
    assert (conflict["path"], conflict["kind"]) == ("a.txt", "contents")
    assert conflict["hunks"] == [[3, 7], [24, 28]]
    branch = result["branch"]
    assert branch.startswith("backburner/merge-")
    assert git(repo, "rev-parse", branch) == result["commit"]
    assert "first too" in git(repo, "show", f"{branch}:a.txt")
    assert git(repo, "show", f"{branch}:b.txt").endswith("more")
    assert result["base_commit"] == git(repo, "rev-parse", "main")
    assert state_of(repo) == before


def test_conflicts_have_their_kinds(repo: Path) -> None:
    gone = work(repo, "gone", a__txt=None, new__txt="mine\n")
    changed = work(repo, "changed", a__txt=TEXT + "more\n", new__txt="theirs\n")
    result = merge(repo, gone, changed)
    kinds = {item["path"]: item["kind"] for item in result["items"][1]["conflicts"]}
    assert kinds == {"a.txt": "modify/delete", "new.txt": "contents"}


def test_a_name_of_a_file_may_be_anything(repo: Path) -> None:
    odd = 'ü "x"\n\t\\.txt'
    one, two = work(repo, "one", **{odd: "1\n"}), work(repo, "two", **{odd: "2\n"})
    [conflict] = merge(repo, one, two)["items"][1]["conflicts"]
    assert (conflict["path"], conflict["kind"], conflict["hunks"]) == (odd, "contents", [[1, 5]])


def test_the_same_call_again_changes_nothing(repo: Path) -> None:
    commits = [work(repo, "x", a__txt=TEXT + "x\n"), work(repo, "y", b__txt=TEXT + "y\n")]
    result = merge(repo, *commits)
    assert merge(repo, *commits) == result
    into = merge(repo, *commits, into="landing", base="main")
    again = merge(repo, *commits, into="landing", base="main")
    assert into["commit"] == again["commit"] == result["commit"]
    assert statuses(again) == ["empty", "empty"], "they are in it"


def test_a_branch_goes_on_from_where_it_is(repo: Path) -> None:
    merge(repo, work(repo, "x", a__txt=TEXT + "x\n"), into="landing")
    result = merge(repo, work(repo, "y", b__txt=TEXT + "y\n"), into="landing")
    assert git(repo, "log", "--format=%s", "landing").split("\n")[0] == "Merge y"
    assert git(repo, "show", "landing:a.txt").endswith("x")
    assert result["commit"] == git(repo, "rev-parse", "landing")


def test_a_branch_that_is_checked_out_is_moved_only_when_asked_and_clean(repo: Path) -> None:
    commit = work(repo, "x", a__txt=TEXT + "x\n")
    before = state_of(repo)
    with pytest.raises(MoveRefused, match=r"is checked out in .*update_checkout=True"):
        merge(repo, commit, into="main")
    (repo / "b.txt").write_text("mine\n")
    with pytest.raises(MoveRefused, match="which is not clean"):
        merge(repo, commit, into="main", update_checkout=True)
    (repo / "b.txt").write_text(TEXT)
    assert state_of(repo) == before
    merge(repo, commit, into="main", update_checkout=True)
    assert (repo / "a.txt").read_text() == TEXT + "x\n"
    assert git(repo, "status", "--porcelain") == ""


def test_a_branch_that_somebody_moved_meanwhile_is_left_alone(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = work(repo, "x", a__txt=TEXT + "x\n")
    git(repo, "branch", "landing", "main")
    take = merging._Merging.take

    def slowly(self: Any, item: Any) -> Any:
        said = take(self, item)
        theirs = git(repo, "commit-tree", "main^{tree}", "-p", "main", "-m", "theirs")
        git(repo, "update-ref", "refs/heads/landing", theirs)
        return said

    monkeypatch.setattr(merging._Merging, "take", slowly)
    with pytest.raises(MoveRefused, match="somebody else has moved it meanwhile"):
        merge(repo, commit, into="landing")
    assert git(repo, "log", "-1", "--format=%s", "landing") == "theirs"


def test_a_branch_that_somebody_made_meanwhile_is_left_alone(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = work(repo, "x", a__txt=TEXT + "x\n")
    monkeypatch.setattr(Repository, "tip", lambda self, branch: "")
    git(repo, "branch", "landing", "main")
    with pytest.raises(GitFailed, match="update-ref"):
        merge(repo, commit, into="landing")
    assert git(repo, "rev-parse", "landing") == git(repo, "rev-parse", "main")


def test_merges_at_a_time_lose_nothing(repo: Path) -> None:
    commits = [work(repo, f"w{number}", **{f"f{number}": "x\n"}) for number in range(4)]
    git(repo, "branch", "landing", "main")
    refused: list[str] = []

    def until_done(commit: dict[str, str]) -> None:
        for _ in range(20):
            try:
                merge(repo, commit, into="landing")
            except MoveRefused as error:
                refused.append(str(error))
            else:
                return

    threads = [threading.Thread(target=until_done, args=[commit]) for commit in commits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = git(repo, "ls-tree", "--name-only", "landing").split()
    assert [f"f{number}" in names for number in range(4)] == [True] * 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"into": "a..b"}, "is no name of a branch"),
        ({"into": "-f"}, "is no name of a branch"),
        ({"base": "nope"}, "base 'nope' is no commit"),
        ({"commits": [{"commit": "1" * 40, "name": "n"}]}, "was it made on another host"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_the_remedy(repo: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidWork, match=said):
        merging.merge(str(repo), keepers=KEEPERS, **given)
    with pytest.raises(InvalidWork, match="no git repository"):
        merging.merge(os.fspath(repo.parent), keepers=KEEPERS)


@pytest.mark.parametrize(
    ("args", "given"),
    [
        ([1], {"repo": "/r"}),
        ([], {}),
        ([], {"repo": "r"}),
        ([], {"repo": "/r", "extra": 1}),
        ([], {"repo": "/r", "commits": "abc"}),
        ([], {"repo": "/r", "commits": [{"commit": "main"}]}),
        ([], {"repo": "/r", "commits": [{"commit": 1}]}),
        ([], {"repo": "/r", "commits": ["x"]}),
        ([], {"repo": "/r", "into": 1}),
        ([], {"repo": "/r", "commits": [{}] * 1001}),
    ],
)
def test_arguments_that_do_not_fit_are_refused(args: list[Any], given: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        MergeFunction(KEEPERS).decode_arguments(args, given)
