"""Programs that git runs because a repository's own configuration says so; which of them came while an agent worked.

Filters, drivers and the like of a repository are its user's, and belong to what git makes of his files (git-crypt,
nbstripout). An agent works as the same user and may write there what it likes; what it wrote is not run: the work is
not captured, and the message says what to do. Programs of the user's own configuration (`git config --global`) and of
the system's run. Hooks, fsmonitor, external diffs and textconv are switched off wherever they come from: see `git.py`
and `capture.py`.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Final

from executor_service.workspaces.git import Git, GitFailed

_OF_THE_REPOSITORY: Final = frozenset({"local", "worktree"})
_RUNS: Final = re.compile(
    r"filter\..*\.(?:clean|smudge|process)|merge\..*\.driver|diff\.external|diff\..*\.(?:command|textconv)"
    r"|core\.(?:sshcommand|gitproxy|askpass|alternaterefscommand)|credential\.(?:.*\.)?helper|gpg\.(?:.*\.)?program"
    r"|hook\..*\.command|remote\..*\.(?:uploadpack|receivepack|vcs|proxy)"
    r"|lfs\.(?:extension\..*|customtransfer\..*|.*standalonetransferagent)",
    re.IGNORECASE,
)


def programs_of(git: Git) -> dict[str, str]:
    """Of the repository that git finds here: by setting a digest of its values. What the user has set alike is his."""
    values: dict[str, list[str]] = {}
    trusted: set[tuple[str, str]] = set()
    for scope, name, value in _settings(git):
        if scope not in _OF_THE_REPOSITORY:
            trusted.add((name, value))
        elif _RUNS.fullmatch(name) and (name, value) not in trusted:
            values.setdefault(name, []).append(value)
    return {
        name: hashlib.sha256("\0".join(found).encode("utf-8", "surrogateescape")).hexdigest()
        for name, found in values.items()
    }


def check(git: Git, before: Mapping[str, str] | None) -> None:
    """Raises GitFailed when git would run what was not there before the work."""
    if before is None:
        return
    came = sorted(name for name, digest in programs_of(git).items() if before.get(name) != digest)
    if came:
        raise GitFailed(
            "the repository's configuration was changed while the agent worked, and git would run what it says now: "
            f"{', '.join(came[:5])}. Look at it in {git.folder}, and remove it (git config --unset), or, if it is "
            "yours, have it in your own configuration (git config --global)"
        )


def _settings(git: Git) -> Iterator[tuple[str, str, str]]:
    """Scope, name and value of each setting in the order that git reads them in: the system's and the user's first."""
    said = git.run("config", "--list", "--null", "--show-scope").text.split("\0")
    for scope, setting in zip(said[::2], said[1::2], strict=False):
        name, _, value = setting.partition("\n")
        yield scope, name, value
