"""Chooses the operating system account that the server runs as.

Postgres refuses to run as root, and containers run as root: then an account that is already there is borrowed. No
account is created and no folder of the user is opened to others for it.
"""

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scheduler_service.postgres.errors import EmbeddedPostgresError

BORROWED: Final = ("postgres", "nobody")


@dataclass(frozen=True)
class Account:
    """An account to change to before a Postgres program is executed."""

    uid: int
    gid: int

    def owns(self, path: Path) -> None:
        """Give `path` to this account."""
        try:
            os.chown(path, self.uid, self.gid)
        except PermissionError as error:
            raise EmbeddedPostgresError(
                "Postgres does not run as root, and this root has not the capabilities to run it as another user: "
                "run as another user yourself, or set DATABASE_URL to a running Postgres"
            ) from error

    def reaches(self, path: Path) -> bool:
        """Tell whether this account may pass every folder above `path`."""
        return all(self._may_pass(parent.stat()) for parent in path.resolve().parents)

    def _may_pass(self, folder: os.stat_result) -> bool:
        if folder.st_uid == self.uid:
            return bool(folder.st_mode & stat.S_IXUSR)
        if folder.st_gid == self.gid:
            return bool(folder.st_mode & stat.S_IXGRP)
        return bool(folder.st_mode & stat.S_IXOTH)


def borrowed_account(cluster: Path) -> Account | None:
    """Return the account to run as, or None when the present one will do.

    An existing cluster decides: its files belong to whoever made it, whatever accounts have appeared since.
    """
    if os.geteuid() != 0:
        return None
    if cluster.exists() and (owner := cluster.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    for name in BORROWED:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresError(
        f"Postgres does not run as root and none of the accounts {', '.join(BORROWED)} exists: "
        "run as another user, or set DATABASE_URL to a running Postgres"
    )
