"""A primary and its streaming standby: two real servers, reached through one connection string of two hosts."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import psycopg

from scheduler_service.postgres import ServerOptions
from scheduler_service.postgres.binaries import find_binaries
from tests.support.postgres import DisposablePostgres, short_folder
from tests.support.services import free_port

NAME: Final = "spare"


class Pair:
    """Two servers. `dsn` leads to whichever of them takes writes."""

    def __init__(self, primary: DisposablePostgres, standby: DisposablePostgres) -> None:
        self.primary = primary
        self.standby = standby
        hosts = [one.tcp_dsn.rpartition("@")[2].split("/")[0] for one in (primary, standby)]
        login, database = primary.tcp_dsn.rpartition("@")[0], primary.tcp_dsn.rpartition("/")[2]
        self.dsn = f"{login}@{','.join(hosts)}/{database}?target_session_attrs=read-write"

    def wait_for_commits_on_both(self) -> None:
        """From now on nothing is acknowledged that the standby does not have on disk."""
        with psycopg.connect(self.primary.dsn, autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{NAME}'".encode())
            connection.execute("SELECT pg_reload_conf()")

    def is_synchronous(self) -> bool:
        """True once the primary waits for the standby."""
        with psycopg.connect(self.primary.dsn, autocommit=True) as connection:
            return connection.execute("SELECT sync_state FROM pg_stat_replication").fetchall() == [("sync",)]

    def cut_off(self) -> None:
        """The standby follows no longer: whatever is committed from now on is on the primary alone."""
        with psycopg.connect(self.standby.dsn, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
            connection.execute("SELECT pg_reload_conf()")

    def is_cut_off(self) -> bool:
        """True once nobody follows the primary."""
        with psycopg.connect(self.primary.dsn, autocommit=True) as connection:
            return connection.execute("SELECT FROM pg_stat_replication").fetchall() == []

    def bytes_behind(self) -> int:
        """How much of what the primary has flushed never came to the standby."""
        with psycopg.connect(self.standby.dsn, autocommit=True) as connection:
            [(received,)] = connection.execute(
                "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::text"
            ).fetchall()
        with psycopg.connect(self.primary.dsn, autocommit=True) as connection:
            [(behind,)] = connection.execute(
                "SELECT (pg_current_wal_flush_lsn() - %s::pg_lsn)::bigint", [received]
            ).fetchall()
        return int(behind)

    def fail_over(self) -> datetime:
        """Kills the primary with -9 and promotes the standby, which has another timeline from then on.

        Returns when that was, by its clock.
        """
        self.primary.kill()
        with psycopg.connect(self.standby.dsn, autocommit=True) as connection:
            assert connection.execute("SELECT pg_promote(wait_seconds => 60)").fetchone() == (True,)
            [(promoted,)] = connection.execute("SELECT clock_timestamp()").fetchall()
            # It would wait for a standby of its own.
            connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
            connection.execute("SELECT pg_reload_conf()")
        assert isinstance(promoted, datetime)
        return promoted


@contextmanager
def primary_and_standby() -> Iterator[Pair]:
    """A durable server without our schema, and a standby that follows it, asynchronously at first."""
    with short_folder() as one, short_folder() as other:
        primary = DisposablePostgres(one, ServerOptions(tcp_port=free_port()))
        try:
            _copy(primary, one, other)
            standby = DisposablePostgres(other, ServerOptions(tcp_port=free_port(), settings={"hot_standby": "on"}))
            try:
                yield Pair(primary, standby)
            finally:
                standby.stop("immediate")
        finally:
            primary.stop("immediate")


def _copy(primary: DisposablePostgres, source: Path, target: Path) -> None:
    """The cluster of the primary as pg_basebackup takes it, owned by the same user, with its password."""
    shutil.copy2(source / "password", target / "password")
    where = f"{primary.tcp_dsn}?application_name={NAME}"
    program = find_binaries().postgres.with_name("pg_basebackup")
    cluster = target / "cluster"
    subprocess.run(
        [program, "-d", where, "-D", cluster, "-X", "stream", "-R", "-c", "fast"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    owner, folder = (source / "cluster").stat(), source.stat()
    os.chown(target, folder.st_uid, folder.st_gid)
    target.chmod(folder.st_mode & 0o777)
    for path in (cluster, *cluster.rglob("*"), target / "password"):
        os.chown(path, owner.st_uid, owner.st_gid)
