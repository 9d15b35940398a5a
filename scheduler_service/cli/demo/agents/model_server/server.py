"""The server: a thread that listens on 127.0.0.1, the scenarios it plays, and its ledger."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from http.server import ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

from .handler import Handler, Stage
from .ledger import Ledger, Request
from .playing import Playing
from .scenario import Scenario, Usage

PATIENCE: Final = 10.0
"""Seconds that `close` gives the threads of connections to end."""


class ModelServer(Stage):
    """Listens from the start on an ephemeral port (or the given one) until it is closed.

    Raises OSError when the port is taken.
    """

    def __init__(self, scenario: Scenario | None = None, *, port: int = 0) -> None:
        self.ledger = Ledger()
        self._lock: Final = threading.Lock()
        self._others = Playing(scenario or Scenario())
        self._by_key: Final[dict[str, Playing]] = {}
        handler = type("Handler", (Handler,), {"stage": self})
        self._http: Final = _Http(("127.0.0.1", port), handler)
        self._thread: Final = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="model-server")
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        """The base URL for Anthropic and Gemini clients; OpenAI's want `/v1` behind it."""
        return f"http://127.0.0.1:{self.port}"

    def play(self, scenario: Scenario, *, key: str | None = None) -> None:
        """From now on, for the clients with this API key, or for all that have no scenario of their own.

        Its faults and hangs are counted anew. Silences of what was played before end.
        """
        with self._lock:
            before = self._others if key is None else self._by_key.get(key)
            if key is None:
                self._others = Playing(scenario)
            else:
                self._by_key[key] = Playing(scenario)
        if before is not None:
            before.over.set()

    def playing(self, key: str) -> Playing:
        """The scenario of this key."""
        with self._lock:
            return self._by_key.get(key, self._others)

    def requests(self) -> list[Request]:
        """Every request to a model, in the order they came."""
        return self.ledger.requests()

    def charged(self, *, key: str | None = None) -> list[Request]:
        """The requests whose answer was handed out to its end, of one key or of all."""
        return [one for one in self.requests() if one.usage is not None and key in {None, one.key}]

    def total(self, *, key: str | None = None) -> Usage:
        """What they cost in all."""
        return sum((one.usage for one in self.charged(key=key) if one.usage), Usage(0, 0, 0, 0))

    def close(self) -> None:
        """End all silences and connections, and stop listening."""
        self._http.shutdown()
        self._thread.join()
        with self._lock:
            playing = [self._others, *self._by_key.values()]
        for one in playing:
            one.over.set()
        self._http.end_connections()
        self._http.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Http(ThreadingHTTPServer):
    """Knows its connections, to end those that clients keep alive."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: Any) -> None:
        super().__init__(address, handler)
        self._connections: Final[dict[socket.socket, threading.Thread]] = {}
        self._guard: Final = threading.Lock()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, in its thread."""
        with self._guard:
            self._connections[request] = threading.current_thread()
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._guard:
                del self._connections[request]

    def end_connections(self) -> None:
        """Shut all down, and wait for their threads."""
        with self._guard:
            connections = dict(self._connections)
        for connection, thread in connections.items():
            with contextlib.suppress(OSError):  # its client was quicker
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went in the middle of a request is no news; anything else is a fault of ours, and shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)
