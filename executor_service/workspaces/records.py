"""What is known of a workspace beside its directory: a small file of its own, `EFFECT.json`, next to `EFFECT/`.

It is written before the directory is made, and again when that is whole: what was cut off in the making is known by
that, and made anew.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

import orjson

WORKTREE: Final = "WORKSPACE_KIND_WORKTREE"
COPY: Final = "WORKSPACE_KIND_COPY"
DIRECTORY: Final = "WORKSPACE_KIND_DIRECTORY"


@dataclass(frozen=True, slots=True)
class Record:
    """A workspace on disk."""

    kind: str
    #: The repository's or the directory's path as it was asked for, resolved.
    source: str
    #: Commit that the work began with.
    base: str = ""
    #: Tree that the work began with, where that is no commit's.
    base_tree: str = ""
    branch: str = ""
    #: True once the directory is whole.
    made: bool = False
    #: True when nothing needs it any more.
    done: bool = False
    #: What git would run by the repository's configuration before anybody worked in it: see `programs.py`.
    programs: Mapping[str, str] | None = None


def read(tree: Path) -> Record | None:
    """The record of a workspace; None when there is none that can be read."""
    try:
        said = orjson.loads(_path(tree).read_bytes())
        return Record(**{item.name: said[item.name] for item in fields(Record) if item.name in said})
    except (OSError, orjson.JSONDecodeError, TypeError):
        return None


def write(tree: Path, record: Record) -> None:
    """Writes it, whole or not at all."""
    path = _path(tree)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    unnamed = path.with_suffix(".new")
    unnamed.write_bytes(orjson.dumps(asdict(record)))
    unnamed.replace(path)


def remove(tree: Path) -> None:
    """Forgets it."""
    _path(tree).unlink(missing_ok=True)


def touch(tree: Path) -> None:
    """Its age counts from now."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(_path(tree))


def all_of(folder: Path) -> Iterator[tuple[Path, Record | None, float]]:
    """The workspaces of a folder with their records, and when they were last used (seconds since 1970)."""
    names = {path.name.partition(".")[0] for path in folder.iterdir()} if folder.is_dir() else set()
    for name in sorted(names - {""}):
        tree = folder / name
        yield tree, read(tree), used_at(tree)


def used_at(tree: Path) -> float:
    """When a workspace was last used, in seconds since 1970; 0: there is none."""
    for path in (_path(tree), tree):
        with contextlib.suppress(FileNotFoundError):  # somebody removes it just now
            return path.stat().st_mtime
    return 0.0


def _path(tree: Path) -> Path:
    return tree.with_name(f"{tree.name}.json")
