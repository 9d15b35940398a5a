"""Background children of the demo: `python children.py history|content REPOSITORY`. Standard library only.

They show the line protocol of executors (README): any program in any language reports percent, step and a structured
result by printing lines.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_COMMIT: Final = "\x01"


def main() -> int:
    """Run the task named by the first argument on the folder named by the second."""
    task, repository = sys.argv[1:3]
    say(result={"history": history, "content": content}[task](Path(repository)))
    return 0


def say(**fields: Any) -> None:
    """Report by the line protocol: on the pipe that the executor gives, else on stdout, where a prefix marks it."""
    pipe = os.environ.get("BACKBURNER_PROGRESS_FD")
    if pipe:
        os.write(int(pipe), f"{json.dumps(fields)}\n".encode())
    else:
        print(f"::backburner {json.dumps(fields)}", flush=True)


def history(root: Path) -> dict[str, Any]:
    """Walk every commit: how many, by whom, which files were touched most."""
    total = int(_git(root, "rev-list", "--count", "HEAD"))
    authors: collections.Counter[str] = collections.Counter()
    touched: collections.Counter[str] = collections.Counter()
    percent = Percent(total)
    log = ["git", "-C", str(root), "log", f"--format={_COMMIT}%as %an", "--name-only", "HEAD"]
    with subprocess.Popen(log, stdout=subprocess.PIPE, text=True, errors="replace") as walk:
        for line in walk.stdout or ():
            if line.startswith(_COMMIT):
                day, _, author = line[1:].rstrip("\n").partition(" ")
                authors[author] += 1
                percent.step(f"commit {percent.done + 1} of {total}, {day}")
            elif line.strip():
                touched[line.strip()] += 1
    return {
        "commits": sum(authors.values()),
        "authors": len(authors),
        "most_touched": [name for name, _ in touched.most_common(3)],
    }


def content(root: Path) -> dict[str, Any]:
    """Fingerprint every file: one digest of all of them, and which have the same content."""
    files = _files(root)
    percent, whole, digests = Percent(len(files)), hashlib.sha256(), collections.Counter[str]()
    size = 0
    for name in files:
        data = (root / name).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        whole.update(f"{digest}  {name}\n".encode())
        digests[digest] += bool(data)
        size += len(data)
        percent.step(name)
    copies = sum(count - 1 for count in digests.values() if count > 1)
    return {"files": len(files), "bytes": size, "copies": copies, "sha256": whole.hexdigest()}


class Percent:
    """Reports each whole percent once."""

    def __init__(self, total: int) -> None:
        self.done = 0
        self._total = max(total, 1)
        self._said = -1

    def step(self, what: str) -> None:
        """One more is done."""
        self.done += 1
        whole = 100 * self.done // self._total
        if whole > self._said:
            self._said = whole
            say(percent=whole, step=what)


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], stdout=subprocess.PIPE, text=True, errors="replace", check=True
    ).stdout


def _files(root: Path) -> list[str]:
    try:
        listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    except (OSError, subprocess.CalledProcessError):
        listed = list(_walk(root))  # no repository, or no git
    return sorted({name for name in listed if name and (root / name).is_file()})


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (str((Path(folder) / name).relative_to(root)) for name in names)


if __name__ == "__main__":
    sys.exit(main())
