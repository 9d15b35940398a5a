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
        over = record is None or record.done or not record.made
        if not over and kept < kept_max and at - used_at <= age_max_s:
            kept += 1
        else:
            removed += _remove(tree, record, git)
    return removed


def _remove(tree: Path, record: Record | None, git: Git) -> bool:
    try:
        held = Held(tree.with_name(f"{tree.name}.lock"))
    except Busy:
        return False
    try:
        if tree.is_dir():
            Lease(tree).close()
        trees.drop(tree, records.read(tree) or record, git)
    except (Busy, InvalidWork):
        held.close()
        return False
    except (GitFailed, OSError) as error:
        log.warning("workspace %s cannot be removed: %s", tree, error)
        held.close()
        return False
    held.close(forget=True)
    return True
