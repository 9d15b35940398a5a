"""The HTTP server of the metrics: prometheus_client's own, with a bound of connections and of their time.

The executor service has its twin: the services share no module.
"""

import asyncio
import contextlib
import socket
import threading
from functools import partial
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, start_http_server

#: Connections at a time; one more is closed at once.
CONNECTIONS_MAX: Final = 16
#: How long a connection may take to ask and to take what it asked for, byte by byte or not.
CONNECTION_SECONDS: Final = 10.0
_JOIN_SECONDS: Final = 2.0


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; an IPv6 host stands in brackets. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not (host and colon) or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise ValueError(f"{address!r} is not HOST:PORT, such as 127.0.0.1:9464")
    if not (port.isascii() and port.isdigit() and int(port) < 65_536):
        raise ValueError(f"{address!r} has no port from 0 to 65535")
    return host.strip("[]"), int(port)


class Endpoint:
    """Serves a registry from its making until `aclose`. Raises OSError when the address cannot be had."""

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        host, port = parse_address(address)
        self._server, self._thread = start_http_server(port, host, registry)
        self._server.RequestHandlerClass = partial(_Handler, threading.Semaphore(CONNECTIONS_MAX))
        #: `host:port` that it serves on.
        self.address = f"{address.rpartition(':')[0]}:{self._server.server_port}"

    async def aclose(self) -> None:
        """Takes no further connection; who is connected is not waited for."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        await asyncio.to_thread(self._thread.join, _JOIN_SECONDS)


class _Handler(WSGIRequestHandler):
    """One connection, in a thread of its own."""

    seconds = CONNECTION_SECONDS

    def __init__(self, room: threading.Semaphore, *connection: Any) -> None:
        self._room = room
        super().__init__(*connection)

    def handle(self) -> None:
        if not self._room.acquire(blocking=False):
            return
        over = threading.Timer(self.seconds, self._cut)
        over.daemon = True
        over.start()
        try:
            with contextlib.suppress(ConnectionError):  # it was cut off, or has gone away
                super().handle()
        finally:
            over.cancel()
            self._room.release()

    def _cut(self) -> None:
        with contextlib.suppress(OSError):  # it has ended by itself
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        """Each scrape is no news."""
