"""Real Postgres for the tests: a fresh migrated database for each test, a private server for each crash test.

Fixtures:
    database_url     connection string of a fresh database with all migrations; dropped afterwards
    tcp_server       a migrated server of one file of tests
    postgres_server  a durable server of the test's own, to stop, kill and start again (class DisposablePostgres)

Where the shared server comes from, first that is there: `DATABASE_URL`; a container, when an engine answers; the
embedded server. Each xdist worker has its own: a shared one would have to outlive whichever worker started it.
"""

import asyncio
import gc
import hashlib
import os
import shutil
import sys
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

import scheduler_service
from scheduler_service.postgres import EmbeddedPostgres, ServerOptions, StopMode
from tests.support.services import free_port

if TYPE_CHECKING:
    from testcontainers.community.postgres import PostgresContainer

IMAGE: Final = "postgres:18-alpine"
NOT_DURABLE: Final = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")
BUILD_LOCK: Final = 0x6261636B  # any number that nobody else uses as an advisory lock in the maintenance database
SQL_FILES: Final = Path(scheduler_service.__file__).parent / "journal"


class DisposablePostgres:
    """A server that a test may treat badly. It keeps its data and its connection string through it all."""

    def __init__(self, folder: Path, options: ServerOptions | None = None) -> None:
        self._folder = folder
        self._server = EmbeddedPostgres(options or ServerOptions(durable=True))
        self.dsn = self._server.start(folder)

    @property
    def tcp_dsn(self) -> str:
        """Its connection string over TCP, when it was given a port."""
        return self._server.tcp_dsn

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._server.pid

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop and wait: `fast` in order, `immediate` as at a loss of power."""
        self._server.stop(mode)

    def kill(self) -> None:
        """Kill all its processes with -9 and wait."""
        self._server.kill()

    def start(self) -> None:
        """Start it again and wait until it accepts connections."""
        restarted = self._server.start(self._folder)
        assert restarted == self.dsn, "a restart must not move the server"

    async def migrate(self) -> None:
        """Apply all migrations to its database."""
        from scheduler_service.journal.migrate import migrate

        await migrate(self.dsn)


@pytest.fixture
def postgres_server() -> Iterator[DisposablePostgres]:
    with short_folder() as folder:
        server = DisposablePostgres(folder)
        try:
            yield server
        finally:
            server.stop("immediate")


@pytest.fixture(scope="module")
def tcp_server() -> Iterator[DisposablePostgres]:
    """A migrated server for the tests of one file, which leave it as it was; it listens on TCP too."""
    with short_folder() as folder:
        server = DisposablePostgres(folder, ServerOptions(durable=False, tcp_port=free_port()))
        try:
            asyncio.run(server.migrate())
            yield server
        finally:
            server.stop("immediate")


@pytest.fixture(scope="session")
def shared_server_url() -> Iterator[str]:
    """The connection string of a server whose databases come and go with the tests."""
    given = os.environ.get("DATABASE_URL")
    if given:
        yield given
    elif _container_engine_answers() and (container := _started_container()) is not None:
        yield container.get_connection_url()
        container.stop()
    else:
        with _embedded() as url:
            yield url


@pytest.fixture(scope="session")
async def template_database(shared_server_url: str) -> str:
    """The name of a database with all migrations, made once for each state of the SQL files."""
    name = f"bb_template_{_digest_of_sql()}"
    async with await psycopg.AsyncConnection.connect(shared_server_url, autocommit=True) as connection:
        # Two workers, or two checkouts, on one DATABASE_URL build it one after the other.
        await connection.execute("SELECT pg_advisory_lock(%s)", [BUILD_LOCK])
        row = await (await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])).fetchone()
        if row is None:
            await _build_template(connection, shared_server_url, name)
    return name


@pytest.fixture
def database_url(shared_server_url: str, template_database: str) -> Iterator[str]:
    name = f"bb_test_{uuid.uuid4().hex[:16]}"
    with psycopg.connect(shared_server_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template_database))
        )
        yield with_database(shared_server_url, name)
        # FORCE: a test that failed may have left connections open
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def with_database(url: str, name: str) -> str:
    """Return `url` with another database."""
    return urlsplit(url)._replace(path=f"/{name}").geturl()


async def _build_template(connection: psycopg.AsyncConnection, url: str, name: str) -> None:
    """Build under another name and rename at the end: what has the final name is complete."""
    from scheduler_service.journal.migrate import migrate

    unfinished = sql.Identifier(f"{name}_unfinished")
    await connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(unfinished))
    await connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(unfinished))
    await migrate(with_database(url, f"{name}_unfinished"))
    await connection.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(unfinished, sql.Identifier(name)))


def _digest_of_sql() -> str:
    digest = hashlib.sha256()
    for path in sorted(SQL_FILES.rglob("*.sql")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def _embedded() -> Iterator[str]:
    server = EmbeddedPostgres(ServerOptions(durable=False))
    with short_folder() as folder:
        try:
            yield server.start(folder)
        finally:
            server.stop("immediate")


def _started_container() -> "PostgresContainer | None":
    """Start the image; None when the engine cannot, for instance for want of access to a registry."""
    from docker.errors import DockerException
    from testcontainers.community.postgres import PostgresContainer

    try:
        return PostgresContainer(IMAGE, driver=None).with_command(["postgres", *NOT_DURABLE]).start()
    except DockerException as error:
        print(f"no Postgres container ({error}): the tests use the embedded server", file=sys.stderr)
        return None


def _container_engine_answers() -> bool:
    import docker

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the client forgets its socket when nobody answers
        try:
            docker.from_env(timeout=3).close()
        except docker.errors.DockerException:
            return False
        finally:
            gc.collect()
    return True


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder for a cluster: pytest's own are too deep for a Unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="bb-pg-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
