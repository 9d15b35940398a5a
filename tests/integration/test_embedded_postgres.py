"""The embedded server: it keeps its data, it never outlives its owner, and it says what is wrong."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from scheduler_service.postgres import (
    BinariesMissing,
    DataDirectoryInUse,
    EmbeddedPostgres,
    EmbeddedPostgresError,
    ServerOptions,
    StartFailed,
    account,
    binaries,
)
from scheduler_service.postgres.data_directory import DataDirectory
from tests.support.eventually import eventually
from tests.support.postgres import DisposablePostgres

ROOT = Path(__file__).resolve().parents[2]
OWNER = """
import sys
from pathlib import Path
from scheduler_service.postgres import EmbeddedPostgres
server = EmbeddedPostgres()
server.start(Path(sys.argv[1]))
print(server.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bb-pg-") as name:
        yield Path(name)


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres()
    yield server
    server.stop("immediate")


@pytest.fixture
def owner(folder: Path) -> Iterator[tuple["subprocess.Popen[str]", psutil.Process]]:
    """Another process that owns a server on `folder`."""
    command = [sys.executable, "-c", OWNER, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, psutil.Process(int(process.stdout.readline()))
        process.kill()
    DataDirectory(folder).wait_until_unused(30)  # the orphaned server still writes its last checkpoint


def insert_row(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
        connection.execute("INSERT INTO kept VALUES (1)")


def count_rows(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT count(*) FROM kept").fetchone()
    assert row is not None
    return int(row[0])


def test_data_survives_every_way_to_stop(postgres_server: DisposablePostgres) -> None:
    insert_row(postgres_server.dsn)
    postgres_server.stop()
    postgres_server.start()
    insert_row(postgres_server.dsn)
    postgres_server.stop("immediate")
    postgres_server.start()
    insert_row(postgres_server.dsn)
    postgres_server.kill()
    postgres_server.start()
    assert count_rows(postgres_server.dsn) == 3


@pytest.mark.crash
def test_kill_leaves_no_process_behind(postgres_server: DisposablePostgres) -> None:
    postmaster = psutil.Process(postgres_server.pid)
    with psycopg.connect(postgres_server.dsn) as connection:
        backend = psutil.Process(connection.info.backend_pid)
        connection.execute("SELECT 1")
        postgres_server.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    for process in (postmaster, backend):
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.crash
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_server_ends_with_its_owner(
    owner: tuple["subprocess.Popen[str]", psutil.Process],
    folder: Path,
    number: signal.Signals,
    server: EmbeddedPostgres,
) -> None:
    process, postmaster = owner
    process.send_signal(number)
    await eventually(lambda: _is_gone(postmaster), message="the server outlived its owner")
    server.start(folder)  # and left nothing that stops the next start


@pytest.mark.crash
def test_start_waits_for_the_server_of_a_killed_owner(
    owner: tuple["subprocess.Popen[str]", psutil.Process], folder: Path, server: EmbeddedPostgres
) -> None:
    process, _ = owner
    process.kill()
    process.wait()
    server.start(folder)


@pytest.mark.crash
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent was killed")
async def test_server_ends_with_its_guardian(
    owner: tuple["subprocess.Popen[str]", psutil.Process], server: EmbeddedPostgres, folder: Path
) -> None:
    _, postmaster = owner
    guardian = postmaster.parent()
    assert guardian is not None
    guardian.kill()
    await eventually(lambda: _is_gone(postmaster), message="the server outlived its guardian")


def _is_gone(process: psutil.Process) -> bool:
    """A zombie is gone too: whoever inherited it (a test may have made this process a subreaper) may reap it late."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_second_start_names_the_process_in_the_way(
    owner: tuple["subprocess.Popen[str]", psutil.Process], folder: Path, server: EmbeddedPostgres
) -> None:
    process, _ = owner
    with pytest.raises(DataDirectoryInUse, match=f"{folder} is in use by process {process.pid}: stop it, or choose"):
        server.start(folder)


def test_second_start_in_one_process_is_refused(folder: Path, server: EmbeddedPostgres) -> None:
    server.start(folder)
    with pytest.raises(DataDirectoryInUse, match=f"in use by process {os.getpid()}"):
        EmbeddedPostgres().start(folder)
    with pytest.raises(EmbeddedPostgresError, match="already started"):
        server.start(folder)


def test_recycled_process_id_in_a_stale_pid_file_does_not_matter(folder: Path, server: EmbeddedPostgres) -> None:
    server.start(folder)
    server.kill()
    pid_file = folder / "cluster" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]))
    server.start(folder)


def test_half_made_cluster_is_made_again(folder: Path, server: EmbeddedPostgres) -> None:
    (folder / "cluster.new").mkdir()
    (folder / "cluster.new" / "PG_VERSION").write_text("18\n")
    insert_row(server.start(folder))


def test_long_path_gets_its_socket_elsewhere(folder: Path, server: EmbeddedPostgres) -> None:
    deep = folder / ("d" * 120)
    insert_row(server.start(deep))
    elsewhere = Path(psycopg.conninfo.conninfo_to_dict(server.dsn)["host"])  # type: ignore[arg-type]
    assert elsewhere.is_dir()
    server.stop()
    assert not elsewhere.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root borrows an account")
def test_closed_folders_of_root_stay_closed(folder: Path, server: EmbeddedPostgres) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    insert_row(server.start(closed / "data"))
    assert psutil.Process(server.pid).uids().effective != 0
    assert closed.stat().st_mode & 0o777 == 0o700


def test_tcp_needs_the_password(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = EmbeddedPostgres(ServerOptions(tcp_port=port))
    try:
        insert_row(server.start(folder))
        assert count_rows(server.tcp_dsn) == 1
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"postgresql://postgres:wrong@127.0.0.1:{port}/backburner")
    finally:
        server.stop()


def test_failed_start_shows_the_end_of_the_log(folder: Path, server: EmbeddedPostgres) -> None:
    wrong = EmbeddedPostgres(ServerOptions(settings={"max_connections": "none"}))
    with pytest.raises(StartFailed, match="invalid value for parameter"):
        wrong.start(folder)
    insert_row(server.start(folder))  # and nothing of the failed start is in the way


def test_settings_override_ours(folder: Path) -> None:
    server = EmbeddedPostgres(ServerOptions(durable=False, settings={"max_connections": "7"}))
    try:
        with psycopg.connect(server.start(folder)) as connection:
            shown = [connection.execute(f"SHOW {name}").fetchone() for name in ("max_connections", "fsync")]
        assert shown == [("7",), ("off",)]
    finally:
        server.stop()


def test_missing_wheel_names_the_remedy(
    folder: Path, server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "WHEEL", "no_such_wheel")
    with pytest.raises(BinariesMissing, match=r"pip install 'backburner\[embedded\]'.*DATABASE_URL"):
        server.start(folder)


def test_no_account_to_borrow_names_the_remedy(
    folder: Path, server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(account, "BORROWED", ("no_such_account",))
    with pytest.raises(EmbeddedPostgresError, match=r"does not run as root .* no_such_account .* DATABASE_URL"):
        server.start(folder)
