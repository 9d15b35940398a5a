"""How a server is to run, as arguments of `postgres` and as connection strings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode

DATABASE: Final = "backburner"
SUPERUSER: Final = "postgres"

_NOT_DURABLE: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@dataclass(frozen=True)
class ServerOptions:
    """How a server is to run."""

    durable: bool = True
    """False trades every promise about a crash for speed: only for tests that crash nothing."""
    tcp_port: int | None = None
    """Also listen on this port of 127.0.0.1, with a password; None = Unix socket only."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Postgres settings that override ours."""

    @property
    def port(self) -> int:
        """The port, which also names the socket's file."""
        return 5432 if self.tcp_port is None else self.tcp_port

    def arguments(self, socket_dir: Path) -> list[str]:
        """Return the settings as arguments, so that they hold whatever is in the cluster's own files."""
        settings = {
            "listen_addresses": "" if self.tcp_port is None else "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": f'"{socket_dir}"',  # quoted: a comma would separate two folders
            "unix_socket_permissions": "0700",
            "max_connections": "100",
            "shared_buffers": "128MB",
            "max_wal_size": "1GB",
            "io_method": "sync",  # a small server needs no extra processes for reading
            "jit": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
            **({} if self.durable else _NOT_DURABLE),
            **self.settings,
        }
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    def socket_dsn(self, socket_dir: Path) -> str:
        """Return the connection string of the Unix socket."""
        # With the port, or libpq would take it from PGPORT.
        where = urlencode({"host": str(socket_dir), "port": self.port}, quote_via=quote, safe="")
        return f"postgresql://{SUPERUSER}@/{DATABASE}?{where}"

    def tcp_dsn(self, password: str) -> str:
        """Return the connection string for clients that cannot use a Unix socket."""
        return f"postgresql://{SUPERUSER}:{password}@127.0.0.1:{self.tcp_port}/{DATABASE}"
