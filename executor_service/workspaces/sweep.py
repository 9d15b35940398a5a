"""Removes workspaces that were left: of attempts cut off in the making, of executors that died, of effects long over.

What is kept is bounded by number and by age. One that anybody works in stays, whoever that is.
"""

import logging
import time
from pathlib import Path

from executor_service.assignment import InvalidWork
from executor_service.workspaces import records, trees
from executor_service.workspaces.git import Git, GitFailed
from executor_service.workspaces.leases import Busy, Held, Lease
from executor_service.workspaces.records import Record

log = logging.getLogger(__name__)


def sweep(folder: Path, git: Git, *, kept_max: int, age_max_s: float, now: float | None = None) -> int:
    """Removes what is over, and of the rest the oldest beyond the bounds; how many went. Blocking."""
    at = time.time() if now is None else now
    known = sorted(records.all_of(folder), key=lambda item: -item[2])
    removed = kept = 0
    for tree, record, used_at in known:
        if not _over(record) and kept < kept_max and at - used_at <= age_max_s:
            kept += 1
        else:
            removed += _remove(tree, used_at, git)
    return removed


def _over(record: Record | None) -> bool:
    """True for what nobody can go on in: it is done, or it was cut off in the making."""
    return record is None or record.done or not record.made


def _remove(tree: Path, seen_at: float, git: Git) -> bool:
    """Removes one that nobody holds, and that nobody has used since it was seen."""
    try:
        held = Held(tree.with_name(f"{tree.name}.lock"))
    except Busy:
        return False
    gone = False
    try:
        gone = _remove_held(tree, seen_at, git)
    except (Busy, InvalidWork):
        pass  # an effect has the directory itself
    except (GitFailed, OSError) as error:
        log.warning("workspace %s cannot be removed: %s", tree, error)
    finally:
        held.close(forget=gone)
    return gone


def _remove_held(tree: Path, seen_at: float, git: Git) -> bool:
    """Decides under the lock: since it was seen somebody may have made it whole, worked in it, and left it."""
    record = records.read(tree)
    if not _over(record) and records.used_at(tree) > seen_at:
        return False
    lease = Lease(tree) if tree.is_dir() else None
    try:
        trees.drop(tree, record, git)
    finally:
        if lease is not None:
            lease.close()
    return True
